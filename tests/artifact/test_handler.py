"""The card's snippet and the handler run without qabuild, from a download.

Each backend runs in a process that can import the packages of requirements.txt, their dependencies, and no others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bare
import proven
import pytest
from hub import Hub

from qabuild.artifact import handler, readme
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import Verification
from qabuild.models.backends import backend
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime
from qabuild.publishing import card
from qabuild.qa import ask, plain_decoder
from qabuild.qa.answer_options import Answer
from qabuild.system import packages
from qabuild.target.gates import Gates

pytestmark = pytest.mark.hub

SERVED: dict[str, tuple[tuple[str, str], ...]] = {
    "torch": (("eager", "fp32"), ("eager", "bf16"), ("torchscript", "bf16"), ("torch_export", "bf16")),
    "onnxruntime": (("onnxruntime", "int8"),),
    "deepspeed": (("deepspeed", "bf16"),),
    "openvino": (("openvino", "fp32"),),
}
"""Backends and dtypes by the package that they need; one environment per package."""
QUESTION = {"question": "Who repaired the bridge?", "context": "The bridge was repaired by Alma Serin in 1871."}
OTHER_QUESTION = {"question": "When was it repaired?", "context": "The bridge was repaired by Alma Serin in 1871. " * 8}
REQUESTS: tuple[Mapping[str, Any], ...] = (
    {"inputs": QUESTION},
    {"inputs": [QUESTION, OTHER_QUESTION], "parameters": {"top_k": 2.0, "max_answer_len": 4, "batch_size": 8}},
    {"inputs": OTHER_QUESTION, "parameters": {"max_seq_len": 64, "doc_stride": 16, "handle_impossible_answer": True}},
)
INVALID: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({}, "question is missing"),
    ({"inputs": {"question": "Who?"}}, "context is missing"),
    ({"inputs": {"question": " ", "context": "x"}}, "question is missing or empty"),
    ({"inputs": "Who?"}, "question is missing"),
    ({"inputs": QUESTION, "parameters": {"topk": 2}}, "unknown parameters: topk; known: align_to_words"),
    ({"inputs": QUESTION, "parameters": [2]}, "parameters"),
    ({"inputs": QUESTION, "parameters": {"top_k": 0}}, "top_k is 0; give a whole number of at least 1"),
    ({"inputs": QUESTION, "parameters": {"max_question_len": -2}}, "max_question_len is -2"),
    ({"inputs": QUESTION, "parameters": {"max_answer_len": "5"}}, "max_answer_len is '5'"),
    ({"inputs": QUESTION, "parameters": {"doc_stride": float("inf")}}, "doc_stride is inf"),
    ({"inputs": QUESTION, "parameters": {"doc_stride": 1e9}}, "doc_stride"),
    ({"inputs": QUESTION, "parameters": {"max_seq_len": 0.5}}, "max_seq_len is 0.5"),
    ({"inputs": QUESTION, "parameters": {"align_to_words": "yes"}}, "align_to_words is 'yes'"),
    ({"inputs": QUESTION, "parameters": {"normalize": "all"}}, "normalize is 'all'; give one of window, context, none"),
)

# Runs the two snippets of a card, then the handler of the artifact that the first downloaded.
USE = """
import json, sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location

work = json.load(sys.stdin)
assert not any(find_spec(name) for name in work["absent"])
results = []
for use, load in work["snippets"]:
    defined = {}
    exec(use, defined)
    exec(load, defined)
    sys.path.remove(defined["directory"])
    del sys.modules["handler"]
    assert defined["model"].config and defined["tokenizer"].is_fast
    spec = spec_from_file_location("handler", defined["directory"] + "/handler.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(defined["directory"])
    answers = [handler(request) for request in work["requests"]]
    refusals = []
    for request in work["invalid"]:
        try:
            refusals.append(handler(request))
        except ValueError as error:
            refusals.append(str(error))
    results.append([defined["answer"](work["requests"][0]), answers, refusals])
json.dump(results, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


def compile_artifact(name: str, dtype: str, folder: Path) -> artifacts.Artifact:
    """The sample, compiled by that backend and sealed."""
    module, runtime = backend(name), Runtime(device="cpu", dtype=dtype)  # type: ignore[arg-type]
    options = module.Options()
    folder.mkdir(parents=True)
    record = module.compile(resolve("sample"), options, runtime, folder)
    versions = packages.versions({*module.PACKAGES, *module.compile_packages(options), *ask.PACKAGES})
    handler.write(options, runtime, versions, folder)
    return artifacts.seal(
        folder,
        name=folder.name,
        qabuild="0.1.0",
        checkpoint={"name": "sample", "revision": None, "digest": "d" * 64, "model_type": "roberta"},
        backend=options.model_dump(),
        runtime=runtime,
        verify={
            "split": "validation",
            "samples": None,
            "cross_check": 0.1,
            "gates": Gates(min_f1_retention=0).model_dump(),
        },
        answer=Answer().parameters(unanswerable=False),
        publish={},
        record=record,
        versions=versions,
        steps={},
    )


def expected(artifact: artifacts.Artifact) -> list[Any]:
    """Answers to the requests of the stock pipeline or the plain decoder, with the model as qabuild loads it."""
    import transformers

    module, manifest = backend(artifact.manifest.backend["name"]), artifact.manifest
    options, runtime = manifest.options, manifest.runtime
    model, tokenizer = module.load(artifact.directory, options, runtime), load_tokenizer(artifact.directory)
    stock = getattr(transformers, "QuestionAnsweringPipeline", None)
    answer = stock(model=model, tokenizer=tokenizer) if stock else partial(plain_decoder.answer, model, tokenizer)

    def answers_to(request: Mapping[str, Any]) -> Any:
        given, inputs = request.get("parameters", {}), request["inputs"]
        parameters = {name: int(value) for name, value in given.items() if name != "batch_size"}
        if isinstance(inputs, list):
            return [answer(**question, **parameters) for question in inputs]
        return answer(**inputs, **parameters)

    return [answers_to(request) for request in REQUESTS]


def rounded(answers: Any) -> Any:
    """The answers with scores to four places, as the order of summation may differ."""
    if isinstance(answers, list):
        return [rounded(answer) for answer in answers]
    return {**answers, "score": round(answers["score"], 4)}


@pytest.mark.both_lines
@pytest.mark.parametrize("package", SERVED)
def test_a_download_answers_with_only_the_packages_of_its_requirements(package, hub, tmp_path):
    needed = {name for backend_name, _ in SERVED[package] for name in backend(backend_name).PACKAGES}
    if missing := packages.missing(dict.fromkeys(needed, ()), "cpu"):
        pytest.skip("; ".join(missing))
    compiled = [compile_artifact(name, dtype, tmp_path / f"{name}-{dtype}") for name, dtype in SERVED[package]]
    snippets = []
    for artifact in compiled:
        proven.verify(artifact)
        verification = Verification.from_dict(artifact.evidence or {})
        repo = f"me/{artifact.manifest.name}"
        text = card.make(artifact, verification, readme.UserContent(), repo=repo, revision="main", base_license=None)
        hub.commit("model", repo, artifact.directory)
        snippets.append([part.split("```")[0] for part in text.split("```python\n")[1:3]])
        assert repo in snippets[-1][0]

    (tmp_path / "use.py").write_text(USE)
    environment = bare.make(compiled[0].directory / handler.REQUIREMENTS, tmp_path / "environment")
    work = {
        "snippets": snippets,
        "requests": REQUESTS,
        "invalid": [request for request, _ in INVALID],
        "absent": ["qabuild", "datasets", "pytest"],
    }
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", bare.ENVIRONMENT, environment, "use.py", "answers.json"],
        input=json.dumps(work),
        env={**os.environ, **hub.environment(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    for artifact, (from_snippet, answers, refusals) in zip(
        compiled, json.loads((tmp_path / "answers.json").read_text()), strict=True
    ):
        assert rounded(answers) == rounded(expected(artifact))
        assert rounded(from_snippet) == rounded(answers[0])
        for refusal, (_, message) in zip(refusals, INVALID, strict=True):
            assert message in refusal


def test_both_files_do_not_depend_on_the_folder(tmp_path):
    module, runtime = backend("onnxruntime"), Runtime()
    versions = {"torch": "2.9.0+cu128", "onnxruntime": "1.2", "onnx": "1.1", "transformers": "4.57.1", "numpy": "2.0"}
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        handler.write(module.Options(), runtime, versions, tmp_path / folder)
    for name in (handler.HANDLER, handler.REQUIREMENTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert (tmp_path / "one" / handler.REQUIREMENTS).read_text() == (
        "onnxruntime==1.2\ntorch==2.9.0\ntransformers==4.57.1\n"
    )


def test_versions_are_compared_by_release_without_the_local_label():
    compiled = {"torch": "2.9.0+cpu", "transformers": "4.57.1", "tokenizers": "0.22.1"}
    assert handler.other_versions("eager", compiled, {**compiled, "torch": "2.9.0+cu128", "evaluate": "1"}) == {}
    assert handler.other_versions("eager", compiled, {**compiled, "torch": "2.10.0"}) == {"torch": "2.10.0"}
    assert handler.other_versions("eager", compiled, {"torch": "2.9.0", "transformers": "4.57.1"}) == {
        "tokenizers": "(none)"
    }
