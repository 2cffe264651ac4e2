"""The parameters of a request: the server takes what its description states, as do `qabuild.load` and the handler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from server import Server

import qabuild
from qabuild.qa.answer_options import Answer
from qabuild.qa.bulk.batch import answer_batch
from qabuild.qa.parameter_values import BATCHING, CHOICES, COUNTS
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.serving.request_parameters import PARAMETERS

CONTEXT = "Ann Vole built the mill in 1871. It stood by the old bridge, and ground corn until 1902. " * 8
QUESTION = {"question": "Who built the mill?", "context": CONTEXT}
OTHER = {"question": "Until which year did the old mill by the bridge grind corn?", "context": CONTEXT}

COUNTED = {
    "top_k": (1, 3),
    "doc_stride": (0, 16),
    "max_answer_len": (1, 4),
    "max_seq_len": (64, 100),
    "max_question_len": (1, 5),
}
"""Two values of each."""
CASES = [
    *((name, value) for name, values in COUNTED.items() for value in values),
    *((name, value) for name, values in CHOICES.items() if name not in BATCHING for value in values),
    *((name, float(least)) for name, (least, _) in COUNTED.items()),
]


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with Server(artifact, "--max-wait-ms", 0) as running:
        yield running


@pytest.fixture(scope="module")
def pipeline(artifact: Path) -> qabuild.QuestionAnsweringPipeline:
    return qabuild.load(artifact)


@pytest.fixture(scope="module")
def handler(artifact: Path) -> Callable[[Any], Any]:
    """The sealed handler."""
    spec = spec_from_file_location("sealed_handler", artifact / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(artifact))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def schemas(server: Server) -> dict[str, Any]:
    return server.request("GET", "/openapi.json")[1]["components"]["schemas"]  # type: ignore[no-any-return]


def tensors(parameters: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "shape": [2], "datatype": "BYTES", "data": [each[name] for each in (QUESTION, OTHER)]}
        for name in ("question", "context")
    ]
    return {"inputs": inputs, "parameters": parameters}


def described(schemas: dict[str, Any], name: str, document: Any) -> bool:
    """Whether the description allows the body."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    return bool(Draft202012Validator(schema).is_valid(document))


def fits(pipeline: qabuild.QuestionAnsweringPipeline, parameters: dict[str, Any]) -> bool:
    """Whether the model can have them, and windows overlap by half of their length at most."""
    try:
        pipeline.check(**parameters)
    except (TypeError, ValueError):
        return False
    cut = Parameters().updated(parameters).cut(pipeline.tokenizer)
    return cut.doc_stride <= cut.max_seq_len // 2


def close_to(results: Any) -> Any:
    """With scores that may differ in their last digits: other batches pad otherwise, other sums have another order."""
    if isinstance(results, list):
        return [close_to(result) for result in results]
    return {**results, "score": pytest.approx(results["score"], rel=1e-3, abs=1e-6)}


def possible(results: Any) -> Any:
    """Without spans that cannot be answers: the plain decoder fills up a short list with them, at score 0."""
    if isinstance(results, list):
        return [possible(each) for each in results if isinstance(each, list) or each["score"] > 0]
    return results


def test_the_cases_name_every_parameter() -> None:
    assert COUNTED.keys() | (CHOICES.keys() - BATCHING) == PARAMETERS.keys()
    assert PARAMETERS.keys() | set(BATCHING) == COUNTS.keys() | CHOICES.keys() == Parameters.__annotations__.keys()
    assert PARAMETERS.keys() >= Answer.model_fields.keys()


@pytest.mark.parametrize(("name", "value"), CASES)
def test_every_way_of_asking_takes_a_parameter_and_answers_alike(server, pipeline, handler, schemas, name, value):
    parameters = {name: value}
    results = pipeline([QUESTION, OTHER], **parameters)
    expected = close_to(results)
    document = {"items": [QUESTION, OTHER], **parameters}
    assert described(schemas, "Asked", document)
    assert server.ask(document)["results"] == expected
    handled = handler({"inputs": [QUESTION, OTHER], "parameters": parameters})
    assert possible(handled) == close_to(possible(results))
    batch = {"id": ["a", "b"]} | {key: [each[key] for each in (QUESTION, OTHER)] for key in QUESTION}
    if name == "top_k":
        return  # tensors, and the columns of a batch, have their own forms of several answers
    bulk = answer_batch(pipeline, batch, parameters=parameters)
    document = tensors(parameters)
    assert described(schemas, "Inference", document)
    outputs = {each["name"]: each["data"] for each in server.ask(document, "/v2/models/tiny/infer")["outputs"]}
    for answers in (bulk, outputs):
        rows = [{key: answers[key][row] for key in ("answer", "score", "start", "end")} for row in range(2)]
        assert rows == [{key: each[key] for key in ("answer", "score", "start", "end")} for each in expected]


WORDS = sorted({value for values in CHOICES.values() for value in values if isinstance(value, str)})
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-1, 120)
    | st.integers(-1, 120).map(float)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
    | st.lists(st.sampled_from(WORDS), max_size=2)
)


@given(name=st.sampled_from(sorted({*PARAMETERS, *BATCHING, "topk", "num_workers"})), value=VALUES)
def test_what_is_taken_is_what_is_described(server, pipeline, handler, schemas, name, value):
    parameters = {name: value}
    can_do = fits(pipeline, parameters)
    document: Any = {**QUESTION, **parameters}
    is_described = described(schemas, "Asked", document)
    taken = server.request("POST", "/answer", json.dumps(document))[0]
    assert taken == (200 if is_described and can_do else 422)
    document = tensors(parameters)
    taken_as_tensors = server.request("POST", "/v2/models/tiny/infer", json.dumps(document))[0]
    assert taken_as_tensors == (200 if described(schemas, "Inference", document) and can_do else 422)
    if taken == 200:
        assert handler({"inputs": QUESTION, "parameters": parameters})
    is_small = name in COUNTED and type(value) is int and value <= 100
    if can_do and name in PARAMETERS and (isinstance(value, str) or is_small):
        assert is_described  # no word and no number within the limits is missing of what `qabuild.load` takes


def test_what_was_sealed_can_be_asked_for(tmp_path):
    """A stride that no other request may have."""
    (tmp_path / "tiny.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n[verify]\ndataset = "sample"\nsamples = 4\n'
        "[answer]\nmax_seq_len = 64\ndoc_stride = 40\n"
    )
    folder = qabuild.build(tmp_path / "tiny.toml", tmp_path).directory
    with Server(folder) as server:
        own = {"max_seq_len": 64, "doc_stride": 40}
        assert server.ask({**OTHER, **own, "top_k": 2}) == close_to(server.ask({**OTHER, "top_k": 2}))
        for other in ({"doc_stride": 41}, {"max_seq_len": 60}):
            status, answer = server.request("POST", "/answer", json.dumps({**OTHER, **other}))
            assert (status, "is more than half of max_seq_len" in answer["error"]) == (422, True)
