"""The model repository of Triton: its configs parse, and its model answers as verified, over a stand-in for Triton."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends.onnxruntime import graph_check

pytest.importorskip("onnxruntime")

import triton_python_backend_utils as triton

from qabuild.serving.triton import TritonPythonModel

pytestmark = pytest.mark.both_lines

TARGET = '[checkpoint]\nmodel = "sample"\n[backend]\nname = "onnxruntime"\n[verify]\ndataset = "sample"\nsamples = 4\n'
LONG = "The old bridge was repaired by Alma Serin in 1871. " * 40
QUESTIONS = [
    {"question": "Who built the mill?", "context": "Ann Vole built the mill in 1871."},
    {"question": "Who repaired the old bridge?", "context": LONG},  # several windows
    {"question": "How many people live in Arvik?", "context": "About 4,200 people live in Arvik."},
]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an ONNX graph."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "tiny.toml").write_text(TARGET)
    return qabuild.build(folder / "tiny.toml", folder).directory


@pytest.fixture(scope="module")
def models(graph: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model repository."""
    return qabuild.export(graph, "triton", tmp_path_factory.mktemp("exported") / "served").directory / "models"


@pytest.fixture
def answerer(graph: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> TritonPythonModel:
    monkeypatch.setattr(triton, "repository", models)
    return started(models, open_artifact(graph).digest)


def started(models: Path, digest: str) -> TritonPythonModel:
    """The model, started as Triton does."""
    stated = {"graph": "tiny-graph", "digest": digest, "allow_unverified": "false"}
    config = {"parameters": {name: {"string_value": value} for name, value in stated.items()}}
    model = TritonPythonModel()
    model.initialize(
        {"model_config": json.dumps(config), "model_repository": str(models / "tiny"), "model_version": "1"}
    )
    return model


def request(questions: list[str], contexts: list[str]) -> Any:
    return request_of_bytes(*([text.encode() for text in texts] for texts in (questions, contexts)))


def request_of_bytes(questions: list[bytes], contexts: list[bytes]) -> Any:
    texts = {"question": questions, "context": contexts}
    tensors = [triton.Tensor(name, np.array(each, object)) for name, each in texts.items()]
    return triton.InferenceRequest(tensors)


def test_its_model_answers_as_verified(answerer, graph):
    first, rest = QUESTIONS[:1], QUESTIONS[1:]
    requests = [request([q["question"] for q in asked], [q["context"] for q in asked]) for asked in (first, rest)]
    found: list[dict[str, Any]] = []
    for response in answerer.execute(requests):
        assert not response.has_error()
        columns = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        assert {name: array.dtype.kind for name, array in columns.items()} == {
            **{"answer": "O", "score": "f", "start": "i", "end": "i"},
            "question_truncated": "b",
        }
        found += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for answer, expected in zip(found, qabuild.load(graph)(iter(QUESTIONS)), strict=True):
        assert answer["answer"].decode() == expected["answer"]
        assert (answer["start"], answer["end"]) == (expected["start"], expected["end"])
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_a_bad_request_gets_an_error_and_the_others_their_answers(answerer):
    bad, good = answerer.execute([request(["Who?", "When?"], ["Ann."]), request(["Who?"], ["Ann built the mill."])])
    assert bad.has_error()
    assert bad.error().message()
    assert not good.has_error()


def test_bytes_that_are_not_utf8_fail_their_own_request_only(answerer):
    bad = request_of_bytes([b"Who?"], [b"\xff built the mill."])
    first, second = answerer.execute([bad, request(["Who?"], ["Ann built the mill."])])
    assert "utf-8" in first.error().message()
    assert not second.has_error()


def test_another_artifact_in_its_place_is_refused(models):
    with pytest.raises(UntrustedInput, match="its digest is"):
        started(models, "0" * 64)


def test_the_graph_is_the_verified_one_and_its_inputs_are_read(models, graph):
    import onnxruntime

    assert (models / "tiny-graph" / "1" / "model.onnx").read_bytes() == (graph / "model.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph / "model.onnx")
    assert graph_check.inputs(graph / "model.onnx") == [node.name for node in session.get_inputs()]


def test_an_artifact_without_a_graph_is_refused(artifact, tmp_path):
    with pytest.raises(BadTarget, match="makes no ONNX graph"):
        qabuild.export(artifact, "triton", tmp_path / "served")


@pytest.mark.layouts
def test_its_configs_are_those_that_triton_reads(models, graph):
    """Parsed by Triton's own protocol; loaded from its file, since the package imports gRPC."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    try:
        path = metadata.distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    except metadata.PackageNotFoundError:
        pytest.skip("no Triton client: pip install tritonclient")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(path))
    assert spec is not None
    assert spec.loader is not None
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)

    def read(name: str) -> Any:
        return text_format.Parse((models / name / "config.pbtxt").read_text(), protocol.ModelConfig())

    reader, runtime = read("tiny"), read("tiny-graph")
    assert (reader.name, reader.backend, runtime.name, runtime.backend) == (
        "tiny",
        "python",
        "tiny-graph",
        "onnxruntime",
    )
    assert [tensor.name for tensor in runtime.input] == graph_check.inputs(graph / "model.onnx")
    assert {tuple(tensor.dims) for tensor in (*runtime.input, *runtime.output)} == {(-1, -1)}
    assert reader.parameters["digest"].string_value == open_artifact(graph).digest
    assert reader.parameters["graph"].string_value == runtime.name
    assert [tensor.name for tensor in reader.input] == ["question", "context"]
    assert [tensor.name for tensor in reader.output] == ["answer", "score", "start", "end", "question_truncated"]
