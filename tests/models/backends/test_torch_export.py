"""Exported programs: what is refused before torch loads one, and native code of AOTInductor."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import qabuild
from qabuild.errors import BadTarget, MissingEnvironment, UntrustedInput, VerificationFailed
from qabuild.models.backends import logit_check, torch_export
from qabuild.models.backends.torch_export import Options, archive
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime
from qabuild.system import machine

FP32 = Runtime()
AOT = Options(aot=True)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported BERT."""
    directory = tmp_path_factory.mktemp("exported")
    torch_export.compile(resolve(tiny_checkpoint("bert")), Options(), FP32, directory)
    return directory


# --- what a program may hold ----------------------------------------------------------------------------------------


def rewritten(exported: Path, folder: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy whose program's entries, by name, were changed."""
    directory = shutil.copytree(exported, folder / "changed")
    with zipfile.ZipFile(directory / "model.pt2") as source:
        entries = {entry.filename.split("/", 1)[1]: source.read(entry) for entry in source.infolist()}
    change(entries)
    with zipfile.ZipFile(directory / "model.pt2", "w") as target:
        for name, content in entries.items():
            target.writestr(f"model/{name}", content)
    return directory


def in_graph(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    """A change of the document that holds the graph."""

    def apply(entries: dict[str, bytes]) -> None:
        document = json.loads(entries[archive.GRAPH])
        change(document)
        entries[archive.GRAPH] = json.dumps(document).encode()

    return apply


def nodes(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["graph_module"]["graph"]["nodes"]  # type: ignore[no-any-return]


def save_to_file(document: dict[str, Any]) -> None:
    """Call `aten.save`, which writes a file, with a name."""
    argument = {"name": "filename", "arg": {"as_string": "/tmp/file"}, "kind": 1}
    nodes(document)[-1].update(target="torch.ops.aten.save.default", inputs=[argument])


def pickled(entries: dict[str, bytes]) -> None:
    document = json.loads(entries[archive.PAYLOADS[0]])
    next(iter(document["config"].values()))["use_pickle"] = True
    entries[archive.PAYLOADS[0]] = json.dumps(document).encode()


def of_a_weight(**stated: Any) -> Callable[[dict[str, bytes]], None]:
    """A change of what is stated of a tensor."""

    def change(entries: dict[str, bytes]) -> None:
        document = json.loads(entries[archive.PAYLOADS[0]])
        weight = next(each for each in document["config"].values() if len(each["tensor_meta"]["sizes"]) == 2)
        weight["tensor_meta"].update(stated)
        entries[archive.PAYLOADS[0]] = json.dumps(document).encode()

    return change


def call(target: str) -> Callable[[dict[str, bytes]], None]:
    return in_graph(lambda document: nodes(document)[-1].update(target=target))


def symbol(expression: str) -> Callable[[dict[str, bytes]], None]:
    def change(document: dict[str, Any]) -> None:
        values = document["graph_module"]["graph"]["sym_int_values"]
        next(iter(values.values()))["as_expr"]["expr_str"] = expression

    return in_graph(change)


def specification(kind: str) -> Callable[[dict[str, bytes]], None]:
    text = json.dumps([1, {"type": kind, "context": '{"default_factory_module": "os"}', "children_spec": []}])

    def change(document: dict[str, Any]) -> None:
        document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = text

    return in_graph(change)


ATTACKS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "native code": lambda entries: entries.update({"data/aotinductor/model/x.wrapper.so": b"\x7fELF"}),
    "the older format": lambda entries: entries.update({"serialized_exported_program.json": b"{}"}),
    "older pickled weights": lambda entries: entries.update({"data/weights/model.pt": b"\x80\x02."}),
    "a pickled weight": pickled,
    "pickled example inputs": lambda entries: entries.update({archive.EXAMPLES: b"\x80\x02."}),
    "a pickled object": lambda entries: entries.update({"data/constants/opaque_obj_0": b"\x80\x02."}),
    "no version": lambda entries: entries.pop("archive_version") and None,
    "no JSON": lambda entries: entries.update({archive.GRAPH: b"{"}),
    "a function of a module": call("torch.os.system"),
    "a custom operator": call("torch.ops.mine.run.default"),
    "a file operator": call("torch.ops.aten.from_file.default"),
    "a file's name": in_graph(save_to_file),
    "an operator extension": call("#mine:run"),
    "a method call": call("_operator.methodcaller"),
    "guards": in_graph(lambda document: document.update(guards_code=["print(1)"])),
    "metadata": in_graph(lambda document: nodes(document)[0].update(metadata={"source_fn_st": "os.system"})),
    "a call in a symbol": symbol("__import__('os').system('true')"),
    "a call without quotes": symbol("exit()"),
    "a name that is source": in_graph(lambda document: nodes(document)[0].update(name="x=print(1)")),
    "a power of a power": symbol("9**9**9"),
    "a power of a power by name": symbol("Pow(9, Pow(9, 9999999))"),
    "a power by another name": symbol("PowByNatural(9, 99999999)"),
    "a power of a large power": symbol("Pow(Pow(9, 9), 9)"),
    "a power in the graph": call("_operator.pow"),
    "a shift": symbol("1<<99999999999"),
    "a long number": symbol("9" * 900),
    "a long expression": symbol("+".join(["s1"] * 9999)),
    "very many nodes": in_graph(lambda document: nodes(document).extend(nodes(document) * 300)),
    "weights without content": lambda entries: entries.update(
        {name: b"" for name in entries if name.startswith("data/weights/weight_")}
    ),
    "constants without content": lambda entries: entries.update(
        {name: b"" for name in entries if name.startswith("data/constants/tensor_")}
    ),
    "a weight that is too short": lambda entries: entries.update({"data/weights/weight_0": b"\0" * 4}),
    "a weight beyond its record": of_a_weight(storage_offset={"as_int": 10**7}),
    "a tree of another type": specification("collections.defaultdict"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_that_holds_more_than_tensors_and_a_graph_is_refused(
    attack: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    directory = rewritten(exported, tmp_path, ATTACKS[attack])
    monkeypatch.setattr(torch.export, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(UntrustedInput, match=r"model\.pt2"):
        torch_export.load(directory, Options(), FP32)


def test_a_rewritten_program_without_a_change_loads(exported: Path, tmp_path: Path) -> None:
    torch_export.load(rewritten(exported, tmp_path, lambda entries: None), Options(), FP32)


def test_a_file_that_is_no_archive_is_refused(exported: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(exported, tmp_path / "damaged")
    (directory / "model.pt2").write_bytes(b"\x80\x02.")
    with pytest.raises(UntrustedInput, match="cannot be read"):
        torch_export.load(directory, Options(), FP32)


NAMES = st.sampled_from([f"Symbol('s{number}', positive=True, integer=True)" for number in (0, 7, 41)])
EXPRESSIONS = st.recursive(
    NAMES | st.integers(-99, 99).map(str) | st.integers(-99, 99).map("Integer({})".format),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["Add", "Mul", "Min", "Max", "FloorDiv", "Mod", "Eq", "Ne"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
        ),
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda parts: f"({' '.join(parts)})"),
    ),
).filter(lambda expression: len(expression) < 900)


@given(EXPRESSIONS)
def test_arithmetic_is_accepted(expression: str) -> None:
    assert archive._is_arithmetic(expression)


@given(EXPRESSIONS, st.sampled_from(["eval(1)", "x.y", "a[0]", "'s'", "lambda: 0", "__class__", "s1; s2", "s1:s2"]))
def test_anything_else_in_an_expression_is_refused(expression: str, other: str) -> None:
    assert not archive._is_arithmetic(f"Add({expression}, {other})")


# --- shapes ---------------------------------------------------------------------------------------------------------


def test_an_export_that_fixes_a_shape_is_refused(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from qabuild.models.backends.torch_export import program

    def export(model: Any, inputs: Any, example: Any, longest: Any) -> Any:
        arguments = tuple(example[name] for name in inputs)
        return torch.export.export(program.Positional(model, inputs).eval(), arguments, strict=False)

    monkeypatch.setattr(program, "export", export)
    with pytest.raises(VerificationFailed, match="exported program"):
        torch_export.compile(resolve(tiny_checkpoint("bert")), Options(), FP32, tmp_path)


@pytest.mark.both_lines
def test_the_longest_input_of_the_model_is_accepted(exported: Path) -> None:
    import torch

    model = torch_export.load(exported, Options(), FP32)
    longest = json.loads((exported / "export.json").read_text())["longest_input"]
    assert longest == model.config.max_position_embeddings
    for length in (3, longest):
        assert model(torch.ones(1, length, dtype=torch.long)).start_logits.shape == (1, length)


def test_a_program_is_bound_to_its_device(exported: Path) -> None:
    with pytest.raises(BadTarget, match="exported on cpu"):
        torch_export.load(exported, Options(), Runtime(device="cuda"))


# --- AOTInductor ----------------------------------------------------------------------------------------------------

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "torch_export"
aot = true
[verify]
dataset = "sample"
samples = 8
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    """The C++ compiler; without one the test is skipped."""
    return torch_export.cxx() or pytest.skip("no C++ compiler")


@pytest.fixture(scope="module")
def built(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of native code, built and verified on this machine. Compiling it takes a minute."""
    folder = tmp_path_factory.mktemp("aot")
    (folder / "native.toml").write_text(TARGET)
    built = qabuild.build(folder / "native.toml", folder / "artifacts")
    assert built.verification is not None
    assert built.verification.passed
    return built.directory


def test_native_code_that_was_compiled_here_loads(built: Path) -> None:
    answer: Any = qabuild.load(built)(question=tiny.QUESTION, context=tiny.CONTEXT)
    assert answer["answer"] in tiny.CONTEXT


def test_native_code_matches_the_eager_model(built: Path) -> None:
    source = resolve("sample")
    tokenizer = load_tokenizer(source.directory)
    model = torch_export.load(built, AOT, FP32)
    batches = list(logit_check.probes(tokenizer, model.inputs, model.config))
    expected = logit_check.outputs_of(load_model(source), batches)
    assert logit_check.require_same(expected, model, batches, logit_check.TOLERANCES["fp32"], "native code") < 1e-4


def test_native_code_of_another_machine_is_refused_unless_allowed(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # another user
    with pytest.raises(UntrustedInput, match="did not compile") as refusal:
        qabuild.load(built)
    assert "--allow-native" in str(refusal.value)
    with pytest.raises(UntrustedInput, match="did not compile"):
        qabuild.verify(built)
    answer: Any = qabuild.load(built, allow_native=True)(question=tiny.QUESTION, context=tiny.CONTEXT)
    assert answer["answer"] in tiny.CONTEXT
    assert qabuild.verify(built, allow_native=True).passed


def test_native_code_of_another_machine_loads_by_the_key_that_signed_it(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    signed = shutil.copytree(built, tmp_path / "signed")
    public = qabuild.keygen(tmp_path / "ours.key")
    with pytest.raises(UntrustedInput, match="not signed"):
        qabuild.load(signed, key=public)
    qabuild.sign(signed, tmp_path / "ours.key")
    assert qabuild.verify(signed, key=public).passed
    answer: Any = qabuild.load(signed, key=public)(question=tiny.QUESTION, context=tiny.CONTEXT)
    assert answer["answer"] in tiny.CONTEXT
    with pytest.raises(UntrustedInput, match="--allow-native"):
        qabuild.load(signed)


def test_native_code_is_refused_on_a_processor_without_its_instructions(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "compiler_flags", lambda: ("sse2",))
    with pytest.raises(MissingEnvironment, match=r"lacks (.|\n)*avx"):
        torch_export.load(built, AOT, FP32)


def test_native_code_without_a_compiler_is_an_error(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingEnvironment, match=r"install g\+\+"):
        torch_export.compile(resolve(tiny_checkpoint("bert")), AOT, FP32, tmp_path)
    assert "no AOTInductor" in torch_export.here()
