"""The server from outside: a real process, and what clients see of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import Server

import qabuild
from qabuild.qa import sample
from qabuild.serving.protocol import FIELDS
from qabuild.serving.request_parameters import PARAMETERS

QUESTION = {"question": "Who built the mill?", "context": "Ann Vole built the mill in 1871."}
OTHER = {"question": "When was the mill built?", "context": "Ann Vole built the mill in 1871. " * 60}
UNTIL_FULL = ("--max-wait-ms", 600_000)
"""Questions wait until their batch is full, or the server stops."""


@pytest.fixture(scope="module")
def server(artifact: Path) -> Iterator[Server]:
    with Server(artifact) as running:
        yield running


@pytest.fixture(scope="module")
def pipeline(artifact: Path) -> qabuild.QuestionAnsweringPipeline:
    return qabuild.load(artifact)


def close_to(result: Any) -> Any:
    """The result with scores that may differ in their last digits, as other batches pad and add otherwise."""
    if isinstance(result, list):
        return [close_to(answer) for answer in result]
    return {**result, "score": pytest.approx(result["score"], abs=1e-5)}


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"top_k": 3, "max_answer_len": 4},
        {"handle_impossible_answer": True, "normalize": "context"},
        {"max_seq_len": 64, "doc_stride": 16, "max_question_len": None, "align_to_words": False},
    ],
)
def test_answers_are_those_of_the_pipeline(server, pipeline, parameters):
    for question in (QUESTION, OTHER):
        assert server.ask({**question, **parameters}) == close_to(pipeline(**question, **parameters))
    together = server.ask({"items": [QUESTION, OTHER], **parameters})
    assert together == {"results": close_to(pipeline([QUESTION, OTHER], **parameters))}


def test_a_list_of_one_question_or_none_is_answered_by_a_list(server):
    assert server.ask({"items": [QUESTION]}) == {"results": [server.ask(QUESTION)]}
    assert server.ask({"items": []}) == {"results": []}


def test_questions_of_many_clients_are_answered_in_one_batch(artifact, pipeline):
    questions = [
        {"question": qa["question"], "context": paragraph["context"]}
        for article in json.loads(sample.HELDOUT.read_text())["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ][:24]
    with Server(artifact, "--max-batch", 24, *UNTIL_FULL) as running, ThreadPoolExecutor(24) as clients:
        results = list(clients.map(running.ask, questions))
        assert running.metric("qabuild_batch_questions_count") == 1
        assert running.metric("qabuild_questions_total") == 24
    assert results == [close_to(pipeline(**question)) for question in questions]


# --- refusals --------------------------------------------------------------------------------------------------------


INVALID: tuple[tuple[Any, int, str], ...] = (
    ({}, 422, "question: missing"),
    ({"question": "Who?"}, 422, "context: missing"),
    ({**QUESTION, "question": ""}, 422, "question: empty"),
    ({**QUESTION, "question": None}, 422, "question: not a string"),
    ({**QUESTION, "context": ["x"]}, 422, "context: not a string"),
    ({**QUESTION, "context": "\ud800"}, 422, "context: not valid text"),
    ({**QUESTION, "context": "x" * 1_000_000}, 413, "context: 1000000 characters; this server takes 100000"),
    ({**QUESTION, "topk": 2}, 422, "topk: unknown field; known are question, context"),
    ({**QUESTION, "batch_size": 2}, 422, "batch_size: unknown field"),
    ({**QUESTION, "top_k": 0}, 422, "top_k: give a whole number from 1 to 100"),
    ({**QUESTION, "top_k": "3"}, 422, "top_k: give a whole number"),
    ({**QUESTION, "top_k": True}, 422, "top_k: give a whole number"),
    ({**QUESTION, "top_k": 1.5}, 422, "top_k: give a whole number"),
    ({**QUESTION, "handle_impossible_answer": 1}, 422, "handle_impossible_answer: give false or true"),
    ({**QUESTION, "top_k": 101}, 422, "top_k: give a whole number from 1 to 100"),
    ({**QUESTION, "max_answer_len": 10**40}, 422, "max_answer_len: give a whole number from 1 to 4096"),
    ({**QUESTION, "doc_stride": 2.5}, 422, "doc_stride: give a whole number"),
    ({**QUESTION, "doc_stride": 250}, 422, "doc_stride: 250 is more than half of max_seq_len"),
    ({**QUESTION, "max_seq_len": 4000}, 422, "is more than the model reads"),
    ({**QUESTION, "align_to_words": "yes"}, 422, "align_to_words: give false, true or auto"),
    ({**QUESTION, "normalize": ["window"]}, 422, "normalize: give window, context or none"),
    ({**QUESTION, "model": 3}, 422, "model: give the name of an artifact"),
    ({**QUESTION, "model": "gone"}, 404, "no such model; this server has tiny"),
    ({**QUESTION, "items": []}, 422, "question: give `items`, or"),
    ({"items": QUESTION}, 422, "items: give a list"),
    ({"items": [QUESTION, "Who?"]}, 422, "items[1]: give"),
    ({"items": [{**QUESTION, "top_k": 2}]}, 422, "items[0].top_k: unknown field"),
    ({"items": [{"question": "Who?"}]}, 422, "items[0].context: missing"),
    ({"items": [QUESTION] * 2000}, 413, "2000 questions in one request; this server takes 1024"),
    ([QUESTION], 422, "not a JSON object"),
    (b"", 400, "not JSON"),
    (b'{"question": "Who?"', 400, "not JSON"),
    (b'{"question": "Who?", "question": "When?"}', 400, "the key 'question' is there twice"),
    (b'{"top_k": NaN}', 400, "NaN is no number of JSON"),
    (b'{"top_k": -Infinity}', 400, "-Infinity is no number of JSON"),
    (b'{"top_k": 1e999, "question": "Who?", "context": "x"}', 422, "top_k: give a whole number"),
    (b'{"question": "\xff"}', 400, "not UTF-8: byte 14"),
    (b"[" * 100_000, 400, "nested too deeply"),
    (b'{"top_k": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested too deeply"),
    (b'{"top_k": ' + b"9" * 5000 + b"}", 400, "value has 5000 digits"),
    (b"x" * 4_000_001, 413, "this server takes 4000000 bytes"),
)


@pytest.mark.parametrize(("body", "status", "message"), INVALID)
def test_a_bad_request_has_its_status_and_one_line(server, body, status, message):
    got, document = server.request("POST", "/answer", body if isinstance(body, bytes) else json.dumps(body))
    assert (got, list(document)) == (status, ["error"])
    assert message in document["error"]
    assert len(document["error"].splitlines()) == 1
    assert len(document["error"]) < 400


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)
SETTINGS = st.none() | st.booleans() | st.integers(-1, 5000) | st.floats() | st.sampled_from(["auto", "context"])
REQUESTS = (
    VALUES
    | st.dictionaries(st.sampled_from(FIELDS), VALUES)
    | st.builds(lambda chosen: {**QUESTION, **chosen}, st.dictionaries(st.sampled_from(sorted(PARAMETERS)), SETTINGS))
    | st.builds(lambda items: {"items": items}, st.lists(st.just(QUESTION) | VALUES, max_size=3))
)


@given(document=REQUESTS)
def test_any_json_is_answered_or_refused(server, document):
    status, answer = server.request("POST", "/answer", json.dumps(document))
    assert status == 200 or (400 <= status < 500 and list(answer) == ["error"]), answer
    status, answer = server.request("POST", "/v2/models/tiny/infer", json.dumps(document))
    assert 400 <= status < 500
    assert list(answer) == ["error"]


@given(body=st.binary())
def test_any_bytes_are_refused(server, body):
    status, answer = server.request("POST", "/answer", body)
    assert 400 <= status < 500
    assert list(answer) == ["error"]


# --- clients and files -----------------------------------------------------------------------------------------------


def test_an_artifact_that_changes_is_served_as_it_was(artifact, tmp_path):
    folder = Path(shutil.copytree(artifact, tmp_path / "tiny"))
    with Server(folder) as running:
        before = running.ask(QUESTION)
        assert running.request("GET", "/readyz") == (200, {"ready": True, "changed_on_disk": []})
        with open(folder / "model.safetensors", "r+b") as weights:
            weights.truncate(100)
        assert running.ask(OTHER)
        assert running.ask(QUESTION) == close_to(before)
        assert running.request("GET", "/readyz") == (200, {"ready": True, "changed_on_disk": ["tiny"]})
        shutil.rmtree(folder)
        assert running.ask(QUESTION) == close_to(before)


# --- description and metrics -----------------------------------------------------------------------------------------


def test_the_description_needs_no_network(server):
    _, document = server.request("GET", "/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert set(document["components"]["schemas"]["Asked"]["oneOf"][0]["properties"]) == set(FIELDS) - {"items"}
    status, page = server.request("GET", "/docs")
    assert status == 200
    assert "POST /answer" in page
    assert not any(word in page for word in ("<script", "<link", "src=", "http://", "https://"))


def test_requests_and_durations_are_counted(server):
    before = server.metric('qabuild_requests_total{path="/healthz",status="200"}')
    assert server.request("GET", "/healthz") == (200, {"alive": True})
    assert server.metric('qabuild_requests_total{path="/healthz",status="200"}') == before + 1
    assert server.metric("qabuild_request_seconds_count") > before
    _, text = server.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
    assert text.endswith("# EOF\n")


# --- the Open Inference Protocol -------------------------------------------------------------------------------------


def tensor(name: str, *texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **changes}


TENSORS = [tensor("question", *[each["question"] for each in (QUESTION, OTHER)])]
TENSORS += [tensor("context", *[each["context"] for each in (QUESTION, OTHER)])]


def test_tensors_are_answered_by_tensors(server, pipeline):
    assert server.request("GET", "/v2")[1]["name"] == "qabuild"
    assert server.request("GET", "/v2/health/live") == (200, {"live": True})
    assert server.request("GET", "/v2/health/ready") == (200, {"ready": True})
    assert server.request("GET", "/v2/models/tiny/ready") == (200, {"name": "tiny", "ready": True})
    assert server.request("GET", "/v2/models/gone/ready")[0] == 404
    metadata = server.request("GET", "/v2/models/tiny")[1]
    assert [each["name"] for each in metadata["inputs"]] == ["question", "context"]
    document = {"id": "a", "inputs": TENSORS, "parameters": {"max_answer_len": 4}}
    answer = server.ask(document, "/v2/models/tiny/infer")
    assert (answer["id"], answer["model_name"], [answer["model_version"]]) == ("a", "tiny", metadata["versions"])
    outputs = {each["name"]: each for each in answer["outputs"]}
    assert [{key: each[key] for key in ("name", "datatype")} for each in answer["outputs"]] == [
        {key: each[key] for key in ("name", "datatype")} for each in metadata["outputs"]
    ]
    expected = close_to(pipeline([QUESTION, OTHER], max_answer_len=4))
    for index, result in enumerate(expected):
        assert {name: outputs[name]["data"][index] for name in ("answer", "score", "start", "end")} == result


def test_tensors_may_have_two_dimensions_and_outputs_may_be_chosen(server):
    texts = (QUESTION["question"], QUESTION["context"])
    for nested in (False, True):
        inputs = [
            {**tensor(name, text), "shape": [1, 1], "data": [[text]] if nested else [text]}
            for name, text in zip(("question", "context"), texts, strict=True)
        ]
        answer = server.ask({"inputs": inputs, "outputs": [{"name": "answer"}]}, "/v2/models/tiny/infer")
        assert [each["name"] for each in answer["outputs"]] == ["answer"]
    two = [{**each, "shape": [2, 1], "data": [[text] for text in each["data"]]} for each in TENSORS]
    assert server.ask({"inputs": two}, "/v2/models/tiny/infer")["outputs"][0]["shape"] == [2]


INVALID_TENSORS: tuple[tuple[Any, str], ...] = (
    ({"inputs": TENSORS[:1]}, "inputs: no tensor context"),
    ({"inputs": {}}, "inputs: give a list"),
    ({"inputs": [*TENSORS, TENSORS[0]]}, "inputs: give one question and one context"),
    ({"inputs": [TENSORS[0], tensor("context", "x")]}, "inputs: give one question and one context"),
    ({"inputs": [tensor("query", "x")]}, "inputs[0].name"),
    ({"inputs": [tensor("question", "x", datatype="INT64")]}, "inputs[0].datatype: give BYTES"),
    ({"inputs": [tensor("question", "x", shape=[2])]}, "inputs[0].shape: 1 strings have the shape [1]"),
    ({"inputs": [tensor("question", "x", shape=[-1])]}, "inputs[0].shape: give a list of sizes"),
    ({"inputs": [tensor("question", "x", data=[3])]}, "inputs[0].data[0]: not a string"),
    ({"inputs": [tensor("question", "")]}, "inputs[0].data[0]: empty"),
    ({"inputs": [tensor("question", "x", extra=1)]}, "inputs[0].extra: unknown field"),
    ({"inputs": ["x"]}, "inputs[0]: not an object"),
    ({"inputs": TENSORS, "id": 3}, "id: not a string"),
    ({"inputs": TENSORS, "id": "\ud800"}, "id: not valid text (lone surrogates)"),
    ({"inputs": TENSORS, "parameters": {"top_k": 2}}, "parameters.top_k: give 1; tensors hold one answer"),
    ({"inputs": TENSORS, "parameters": {"normalize": "all"}}, "parameters.normalize: give window, context or none"),
    ({"inputs": TENSORS, "parameters": {"topk": 1}}, "parameters.topk: unknown field"),
    ({"inputs": TENSORS, "parameters": []}, "parameters: not an object"),
    ({"inputs": TENSORS, "outputs": [{"name": "text"}]}, "outputs: 'text' is unknown; known are answer"),
    ({"inputs": TENSORS, "outputs": ["answer"]}, "outputs: give a list of objects"),
    ({"inputs": TENSORS, "outputs": [{"name": "answer", "shape": [2]}]}, "outputs[0].shape: unknown field"),
)


@pytest.mark.parametrize(("document", "message"), INVALID_TENSORS)
def test_bad_tensors_are_refused(server, document, message):
    status, answer = server.request("POST", "/v2/models/tiny/infer", json.dumps(document))
    assert status == 422
    assert message in answer["error"]
