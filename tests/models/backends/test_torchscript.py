"""TorchScript archives: what is refused before torch loads one."""

from __future__ import annotations

import ast
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from qabuild.errors import UntrustedInput
from qabuild.models.backends import operators, torchscript
from qabuild.models.backends.torchscript import Options
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime

FP32 = Runtime()
Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def traced(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a traced BERT."""
    directory = tmp_path_factory.mktemp("traced")
    torchscript.compile(resolve(tiny_checkpoint("bert")), Options(), FP32, directory)
    return directory


def entries_of(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename.split("/", 1)[1]: archive.read(entry) for entry in archive.infolist()}


def archive_of(entries: Entries) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in entries.items():
            archive.writestr(f"model/{name}", text)
    return content.getvalue()


def code_name(entries: Entries) -> str:
    [name] = [name for name in entries if name.endswith(".py")]
    return name


def in_code(*replacements: tuple[str, str]) -> Callable[[Entries], None]:
    """A change of the module's code. Each replaced text must be in it."""

    def change(entries: Entries) -> None:
        name = code_name(entries)
        for old, new in replacements:
            assert old in entries[name].decode()
            entries[name] = entries[name].decode().replace(old, new, 1).encode()

    return change


def call(expression: str) -> Callable[[Entries], None]:
    """Evaluate an expression before the result is returned."""
    return in_code(("    return (", f"    extra = {expression}\n    return ("))


def pickled(name: str, module: str, attribute: str) -> Callable[[Entries], None]:
    return lambda entries: entries.update({name: pickle.PROTO + b"\x02c" + f"{module}\n{attribute}\n".encode() + b"."})


def other_class(entries: Entries) -> None:
    name = code_name(entries)
    entries[name] += b"class Other(Module):\n  def forward(self: Tensor) -> Tensor:\n    return self\n"


def beyond_the_record(entries: Entries) -> None:
    """More elements of a constant than its record has, in the pickle that states them."""
    content = entries["constants.pkl"]
    stated = content.index(b"cpu") + len("cpu") + 2  # after the device and where it is memoised
    assert content[stated : stated + 1] == pickle.BININT1
    entries["constants.pkl"] = content[:stated] + pickle.BININT + b"\0\0\0\x10" + content[stated + 2 :]


def shorter_record(entries: Entries) -> None:
    entries["constants/0"] = entries["constants/0"][:-1]


DEPTH = 200_000
DEEP_LISTS = b"\x80\x02" + b"]" * DEPTH + b"a" * (DEPTH - 1) + b"."

ATTACKS: dict[str, Callable[[Entries], None]] = {
    "an operator with a file": call('torch.from_file("/tmp/x", True, 4)'),
    "an operator by its namespace": call('ops.aten.from_file("/tmp/x", True, 4)'),
    "an operator of another library": call("ops.mine.run(input_ids)"),
    "a method of a value": call('input_ids.from_file("/tmp/x", True, 4)'),
    "a method of a text": call('"/tmp/x".from_file(True, 4)'),
    "an item of a list": call("[torch.add][0](input_ids, 1)"),
    "a save": call('torch.save(input_ids, "/tmp/x")'),
    "a print": call("print(input_ids)"),
    "a wait for another process": call("fork(torch.add, input_ids, 1)"),
    "a function of other code": call("__torch__.other.run(input_ids)"),
    "an object of native code": call("__torch__.torch.classes.mine.Runner()"),
    "an exception": call('ops.prim.RaiseException("a", "b")'),
    "a path in a known operator": call('torch.gelu(input_ids, approximate="/tmp/x")'),
    "a loop": in_code(("    return (", "    while True:\n      extra = 1\n    return (")),
    "an assertion": in_code(("    return (", "    assert False\n    return (")),
    "an import": in_code(("class ", "import os\nclass ")),
    "a comment": in_code(("    return (", "    # type: () -> Tensor\n    return (")),
    "two statements in a line": in_code(("    return (", "    a = 1; return (")),
    "a default argument": in_code(("input_ids: Tensor", "input_ids: Tensor=torch.ones([1])")),
    "a field": in_code(("  __buffers__", "  handle : __torch__.torch.classes.mine.Runner\n  __buffers__")),
    "a method on loading": in_code(
        ("  def forward", "  def __setstate__(self: int, x: int) -> int:\n    return x\n  def forward")
    ),
    "another name of the method": in_code(("  def forward", "  def __setstate__")),
    "another class in the file": other_class,
    "another base": in_code(("(Module)", "(NamedTuple)")),
    "another file of code": lambda entries: entries.update(
        {"code/__torch__/other.py": b"def run(x: int) -> int:\n  return x\n"}
    ),
    "no code": lambda entries: entries.pop(code_name(entries)) and None,
    "code that is no syntax": in_code(("    return (", "    return ((")),
    "records of source lines": lambda entries: entries.update({code_name(entries) + ".debug_pkl": b"\x80\x02."}),
    "a file of the author": lambda entries: entries.update({"extra/setup.py": b""}),
    "a file of the same name": lambda entries: entries.update({"Data.pkl": b""}),
    "a pickled function": pickled("constants.pkl", "os", "system"),
    "a pickled object of native code": pickled("constants.pkl", "__torch__.torch.classes.mine", "Runner"),
    "a constant beyond its record": beyond_the_record,
    "a record that is too short": shorter_record,
    "a constant without a record": lambda entries: entries.pop("constants/0") and None,
    "lists in lists": lambda entries: entries.update({"constants.pkl": DEEP_LISTS}),
    "tuples in tuples": lambda entries: entries.update({"constants.pkl": b"\x80\x02)" + b"\x85" * DEPTH + b"."}),
    "lists in lists in the module": lambda entries: entries.update({"data.pkl": DEEP_LISTS}),
    "a module with fields": lambda entries: entries.update(
        {"data.pkl": entries["data.pkl"].replace(b"}(u", b"}(X\x01\x00\x00\x00aK\x01u")}
    ),
    "a module of another class": pickled("data.pkl", "__torch__.torch.classes.mine", "Runner"),
    "no pickle": lambda entries: entries.update({"data.pkl": b"\xff"}),
    "deep nesting": call("(" * 500 + "1" + ")" * 500),
    "very deep nesting": call("-" * 200_000 + "1"),
}


def refused(traced: Path, folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    import torch

    directory = shutil.copytree(traced, folder / "changed")
    (directory / "model.pt").write_bytes(content)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UntrustedInput, match=r"model\.pt: ") as refusal:
        torchscript.load(directory, Options(), FP32)
    return refusal.value.message


@pytest.mark.both_lines
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_archive_that_holds_more_than_a_traced_module_is_refused(
    attack: str, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = entries_of(traced / "model.pt")
    ATTACKS[attack](entries)
    refused(traced, tmp_path, archive_of(entries), monkeypatch)


def test_an_archive_is_read_as_torch_reads_it(traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two archives of one size, one after the other, Python's reader takes the second and torch's the first."""
    entries = entries_of(traced / "model.pt")
    sound = archive_of(entries)
    in_code(("torch.gelu(", "torch.save("))(entries)
    both = archive_of(entries) + sound
    (tmp_path / "both").write_bytes(both)
    assert b"torch.save(" not in entries_of(tmp_path / "both")[code_name(entries)]
    assert "'torch.save'" in refused(traced, tmp_path, both, monkeypatch)


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04" * 40])
def test_a_file_that_is_no_archive_is_refused(
    content: bytes, traced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(traced, tmp_path, content, monkeypatch)


def test_a_rewritten_archive_without_a_change_loads(traced: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(traced, tmp_path / "rewritten")
    (directory / "model.pt").write_bytes(archive_of(entries_of(traced / "model.pt")))
    torchscript.load(directory, Options(), FP32)


@pytest.mark.both_lines
@pytest.mark.parametrize("model_type", torchscript.TRACED.supported)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_trace_of_an_architecture_is_accepted(
    model_type: str, dtype: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """In every dtype. The operators that it calls are all in the table."""
    import torch

    from qabuild.models.backends.logit_check import probes
    from qabuild.models.backends.torch_model import AUTOCAST, TorchModel
    from qabuild.models.backends.torchscript import archive, trace
    from qabuild.qa.model_inputs import input_names
    from qabuild.system.quiet import quiet_tracing

    if model_type == "deberta" and dtype != "fp32":
        pytest.skip("its mask does not fit into half precision")
    source = resolve(tiny_checkpoint(model_type))
    model, tokenizer = load_model(source), load_tokenizer(source.directory)
    inputs = input_names(model, tokenizer)
    eager = TorchModel(model, inputs, model.config, torch.device("cpu"), AUTOCAST[dtype])
    with quiet_tracing():
        archive.save(trace.trace(eager, next(probes(tokenizer, inputs, model.config))), tmp_path / "model.pt")
    assert not list(archive.problems(tmp_path / "model.pt"))
    entries = entries_of(tmp_path / "model.pt")
    calls = [node.func for node in ast.walk(ast.parse(entries[code_name(entries)])) if isinstance(node, ast.Call)]
    called = {name.removeprefix("torch.") for name in map(ast.unparse, calls) if name.startswith("torch.")}
    assert called - {"device"} <= operators.ATEN


MODES = {"approximate", "assert_msg", "equation", "mode", "padding", "reduce", "rounding_mode"}
TEXT_FUNCTIONS = {"add", "any", "eq", "ge", "gt", "index", "le", "lt", "ne", "slice", "split"}


def test_no_listed_operator_takes_the_name_of_a_file_or_returns_nothing() -> None:
    """Texts are modes, or operands of functions of texts. What returns nothing is an assertion."""
    import torch

    names = set()
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, name = schema.name.partition("::")
        if namespace == "aten" and name in operators.ATEN:
            texts = {argument.name for argument in schema.arguments if "str" in str(argument.type)}
            assert texts <= MODES or name in TEXT_FUNCTIONS, schema
            assert schema.returns or name.startswith("_assert"), schema
            names.add(name)
    assert len(names) > 150


def test_every_tiny_architecture_is_traced_or_refused() -> None:
    assert {*torchscript.TRACED.supported, *torchscript.TRACED.refused} == set(tiny.ARCHITECTURES)
