"""ONNX and OpenVINO graphs: what is refused before a runtime opens one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild.errors import UntrustedInput
from qabuild.models.backends import backend, vet
from qabuild.models.backends.onnxruntime import graph_check as onnx_check
from qabuild.models.backends.openvino import graph_check as openvino_check
from qabuild.models.backends.torch_export import archive as exported_check
from qabuild.models.backends.torchscript import archive as traced_check
from qabuild.models.runtime import Runtime


def refusal(name: str, file: str, content: bytes, folder: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the backend refuses that file; the runtime must not have opened it."""
    runtime = pytest.importorskip(name)
    opener = "InferenceSession" if name == "onnxruntime" else "Core"
    monkeypatch.setattr(runtime, opener, lambda *_, **__: pytest.fail("it was opened"))
    shutil.copy(config / "config.json", folder)
    (folder / file).write_bytes(content)
    with pytest.raises(UntrustedInput) as refused:
        backend(name).load(folder, backend(name).Options(), Runtime())
    assert file in refused.value.message
    return refused.value.message


# --- ONNX -----------------------------------------------------------------------------------------------------------


def graph_of(*nodes: Any, **parts: Any) -> Any:
    """An ONNX model of those nodes; `parts` are further arguments of the graph and the model."""
    onnx = pytest.importorskip("onnx")
    make, model_parts = onnx.helper, {key: parts.pop(key) for key in ("functions",) if key in parts}
    logits = make.make_tensor_value_info("start_logits", onnx.TensorProto.FLOAT, ["batch", "sequence"])
    ids = make.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "sequence"])
    graph = make.make_graph(list(nodes), "graph", [ids], [logits], **parts)
    return make.make_model(graph, **model_parts)


def node(operator: str, domain: str = "", **attributes: Any) -> Any:
    onnx = pytest.importorskip("onnx")
    return onnx.helper.make_node(operator, ["input_ids"], ["start_logits"], domain=domain, **attributes)


def external(location: str) -> Any:
    """A tensor whose content is in that file."""
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="weight", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def branch(inner: Any) -> Any:
    return node("If", then_branch=graph_of(inner).graph, else_branch=graph_of(inner).graph)


def function() -> Any:
    onnx = pytest.importorskip("onnx")
    opsets = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_function("mine", "Run", ["x"], ["y"], [node("Abs")], opsets)


GRAPHS: dict[str, Callable[[], Any]] = {
    "another library's operator": lambda: graph_of(node("Run", "mine")),
    "an operator of Python": lambda: graph_of(node("PyOp", "ai.onnx.contrib")),
    "a known operator's name in another library": lambda: graph_of(node("Gelu", "mine")),
    "compiled code": lambda: graph_of(node("EPContext", "com.microsoft", ep_cache_context=b"\x7fELF")),
    "another operator of ONNX Runtime": lambda: graph_of(node("PythonOp", "com.microsoft")),
    "in a branch": lambda: graph_of(branch(node("Run", "mine"))),
    "in a branch of a branch": lambda: graph_of(branch(branch(node("Run", "mine")))),
    "a function": lambda: graph_of(node("Run", "mine"), functions=[function()]),
    "a file above": lambda: graph_of(node("Abs"), initializer=[external("../secret")]),
    "a file below": lambda: graph_of(node("Abs"), initializer=[external("reference/answers.json")]),
    "any file": lambda: graph_of(node("Abs"), initializer=[external("/etc/passwd")]),
    "a file that is not there": lambda: graph_of(node("Abs"), initializer=[external("model.onnx_data")]),
    "an address in memory": lambda: graph_of(node("Abs"), initializer=[external("*/_ORT_MEM_ADDR_/*")]),
    "a file in a constant": lambda: graph_of(node("Constant", value=external("/etc/passwd"))),
}


@pytest.mark.both_lines
@pytest.mark.parametrize("graph", GRAPHS)
def test_an_onnx_file_that_holds_more_than_a_graph_is_refused(
    graph: str, tmp_path: Path, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = GRAPHS[graph]().SerializeToString()
    refusal("onnxruntime", "model.onnx", content, tmp_path, tiny_checkpoint(), monkeypatch)


def test_a_plain_onnx_graph_with_weights_beside_it_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "model.onnx_data").write_bytes(b"data")
    model = graph_of(node("Abs"), node("Attention", "com.microsoft"), initializer=[external("model.onnx_data")])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    vet.vet(tmp_path / "model.onnx", onnx_check.problems)


# --- OpenVINO -------------------------------------------------------------------------------------------------------

LAYER = '<layer id="0" name="x" type="{type}" version="{version}"><output /></layer>'
NET = '<?xml version="1.0"?>\n<net name="x" version="11"><layers>{layers}</layers></net>'
LAUGHS = '<!DOCTYPE net [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


def net(kind: str = "Add", version: str = "opset1") -> str:
    return NET.format(layers=LAYER.format(type=kind, version=version))


XML = {
    "an extension": net("Run", "extension"),
    "another library": net("Add", "mine"),
    "a plugin's operators": net("Subgraph", "SnippetsOpset"),
    "part of a known name": net("Add", "opset1.mine"),
    "no operator set": net().replace('version="opset1"', ""),
    "in the body of another layer": NET.format(
        layers=f'<layer version="opset8"><body>{net("A", "mine")}</body></layer>'
    ),
    "a document type": net().replace("<net", LAUGHS + "<net"),
    "a file as an entity": net().replace("<net", '<!DOCTYPE net SYSTEM "file:///etc/passwd"><net'),
    "another encoding": net("Run", "extension").replace('"1.0"', '"1.0" encoding="utf-16"'),
    "a namespace": net("Run", "extension").replace("<net", '<net xmlns="x"'),
    "a layer's namespace": net("Run", "extension").replace("<layer ", '<layer xmlns="x" '),
    "an instruction": net().replace("<layers", "<?xml-model x?><layers"),
    "deep nesting": net().replace("</net>", "<rt_info>" * 100 + "</rt_info>" * 100 + "</net>"),
    "no graph": "<Run />",
    "no XML": "model",
    "nothing": "",
}


@pytest.mark.both_lines
@pytest.mark.parametrize("text", XML)
def test_an_openvino_graph_of_other_operators_is_refused(
    text: str, tmp_path: Path, tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal("openvino", "openvino_model.xml", XML[text].encode(), tmp_path, tiny_checkpoint(), monkeypatch)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig", "cp037"])
def test_an_openvino_graph_in_another_encoding_is_refused(encoding: str, tmp_path: Path) -> None:
    """The runtime's parser reads it, and the check of this text would not see its declarations."""
    (tmp_path / "openvino_model.xml").write_bytes(net().replace("<net", LAUGHS + "<net").encode(encoding))
    with pytest.raises(UntrustedInput):
        vet.vet(tmp_path / "openvino_model.xml", openvino_check.problems)
    (tmp_path / "openvino_model.xml").write_bytes(net().encode(encoding))
    with pytest.raises(UntrustedInput):
        vet.vet(tmp_path / "openvino_model.xml", openvino_check.problems)


def test_a_plain_openvino_graph_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_text(net())
    vet.vet(tmp_path / "openvino_model.xml", openvino_check.problems)


# --- any bytes ------------------------------------------------------------------------------------------------------

HEADS = st.sampled_from(
    [b"", b"<net>", b"PK\x03\x04", b"\x80\x02", b"\x3a\x10\x0a\x0e\x22\x03", b"PK\x05\x06" + b"\0" * 18]
)


@given(HEADS, st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused(tmp_path_factory: Any, head: bytes, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "model"
    path.write_bytes(head + tail)
    for check in (onnx_check, openvino_check, traced_check, exported_check):
        with suppress(UntrustedInput):
            vet.vet(path, check.problems)
