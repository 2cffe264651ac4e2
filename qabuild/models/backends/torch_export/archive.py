"""Writes reproducible archives of exported programs, and refuses to load one that holds more than tensors and a graph.

`torch.export.load` unpickles what an archive marks as pickled, calls the functions that its graph names, starting from
the module torch, and evaluates its symbolic expressions and guards as Python. `problems` accepts none of these: no
pickles, only operators of a list, and only arithmetic.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qabuild.models.backends import vet
from qabuild.models.backends.operators import ATEN

GRAPH = "models/model.json"
EXAMPLES = "data/sample_inputs/model.pt"
PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
SERIAL = ".data/serialization_id"
ENTRIES = {GRAPH, EXAMPLES, *PAYLOADS, SERIAL, ".data/version", "archive_format", "archive_version", "byteorder"}
_EPOCH = (1980, 1, 1, 0, 0, 0)

_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_ARITHMETIC = "add|sub|mul|truediv|floordiv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|getitem"
_TARGET = re.compile(
    rf"torch\.ops\.aten\.({'|'.join(sorted(ATEN))})\.[A-Za-z_]\w*"
    rf"|_operator\.({_ARITHMETIC})"
    r"|torch\.sym_(min|max|not|ite|int|float)"
)
_SYMBOL = re.compile(r"'[suz]+\d+'")
_NAMES = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Min", "Max", "Mod", "PythonMod", "FloorDiv", "CleanDiv"),
    *("ModularIndexing", "Eq", "Ne", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan"),
    *("GreaterThan", "And", "Or", "Not", "true", "false", "positive", "nonnegative", "integer", "True", "False"),
    *("BooleanTrue", "BooleanFalse", "evaluate", "Piecewise", "ExprCondPair", "Where", "IntTrueDiv", "PowByNatural"),
}
"""What symbolic expressions may name: symbols, numbers, and arithmetic of sympy and torch."""
_EXPRESSION = re.compile(r"[\w\s()+*/%,=<>&|~-]*")
_LONGEST_EXPRESSION = 1000
_EXPONENT = re.compile(r"-?\d|Integer\(-?\d\)")
_MOST_NODES = 20_000
"""Those of two layers have up to 307."""
_MODE = re.compile(
    r"none|tanh|floor|trunc|constant|[a-z]+(,[a-z]+)*->[a-z]*"
    r"|Runtime assertion failed for expression [\w<>=+*(), -]+ on node '\w+'"
)
"""Modes of GELU, division and padding, equations of einsum, and messages. Some operators take names of files."""
_WORD = re.compile(r"[\w.+-]*")
_OBJECTS = {"as_operator", "as_custom_obj", "as_graph", "custom_obj", "custom_obj_values", "treespec_namedtuple_fields"}
"""Arguments and values that are neither tensors nor numbers nor texts."""
_SPECIFICATION = {"builtins.tuple", "builtins.list", "builtins.dict", None}


def save(program: Any, path: Path) -> None:
    """`torch.export.save` without traces of the machine and the process.

    Left out are the nodes' metadata, which holds source lines and paths; the example inputs, which are pickled; and the
    guards, which are Python source: the ranges of the dimensions are checked without them.
    """
    import torch

    raw = path.with_suffix(".raw.pt2")
    torch.export.save(program, raw)
    with zipfile.ZipFile(raw) as source, zipfile.ZipFile(path, "w") as archive:
        digest = hashlib.sha256()
        for entry in sorted(source.infolist(), key=lambda entry: entry.filename):
            name = _inner_name(entry)
            if name == SERIAL:
                continue
            content = source.read(entry)
            if name == GRAPH:
                content = _stripped(content)
            if name == EXAMPLES:
                content = b""
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            _add(archive, name, content)
        _add(archive, SERIAL, digest.hexdigest().encode())
    raw.unlink()


def _stripped(content: bytes) -> bytes:
    document = json.loads(content)
    document["guards_code"] = []
    for node in _nodes(document):
        node["metadata"] = {}
    # Without signatures, they serve only to restore the tree of submodules.
    graph = document["graph_module"]
    graph["module_call_graph"] = [call for call in graph["module_call_graph"] if call["signature"] is not None]
    return json.dumps(document, sort_keys=True).encode()


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every node of every graph in the document."""
    for parent in _objects(value):
        if isinstance(parent.get("nodes"), list):
            yield from parent["nodes"]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON document, at any depth."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(child)


def problems(path: Path) -> Iterator[str]:
    """Whatever the archive holds besides tensors and a graph of known operators."""
    reader, names = vet.records(path)
    for name in names - ENTRIES:
        if not _TENSOR.fullmatch(name):
            yield f"the entry {name!r} is not one of an exported program"
    for name in ENTRIES - names:
        yield f"the entry {name!r} is missing"
    if reader.get_record(EXAMPLES):
        yield "it holds pickled example inputs"
    for name in PAYLOADS:
        yield from _payload_problems(reader, name)
    yield from _graph_problems(json.loads(reader.get_record(GRAPH)))


def _payload_problems(reader: Any, record: str) -> Iterator[str]:
    """Tensors that are pickled, or reach beyond their record: torch takes memory without content for an empty one."""
    from torch._export.serde.serialize import deserialize_scalar_type

    folder = record.rpartition("/")[0]
    for name, payload in json.loads(reader.get_record(record))["config"].items():
        if payload["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            yield f"{name!r} is not a plain tensor"
        meta = payload["tensor_meta"]
        size = reader.get_record_size(f"{folder}/{payload['path_name']}")
        if _elements(meta) * deserialize_scalar_type(meta["dtype"]).itemsize > size:
            yield f"{name!r} reaches beyond {payload['path_name']}, which has {size} bytes"


def _elements(meta: Any) -> int:
    """How many elements a storage must have for that tensor, a view of it."""
    sizes, strides = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
    if 0 in sizes:
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return int(meta["storage_offset"]["as_int"] + steps + 1)


def _graph_problems(document: Any) -> Iterator[str]:
    if document["guards_code"]:
        yield "it holds guards, which are source code"
    if sum(1 for _ in _nodes(document)) > _MOST_NODES:
        yield f"the graph has more than {_MOST_NODES} nodes"
    for node in _nodes(document):
        if node["metadata"] or not node["target"]:
            yield "the graph holds metadata, or a call of nothing"
    for each in _objects(document):
        if held := _OBJECTS & {key for key, value in each.items() if value}:
            yield f"the graph holds {', '.join(sorted(held))}"
        for key, value in each.items():
            texts = value if isinstance(value, list) else [value]
            for text in (key, *(text for text in texts if isinstance(text, str))):
                if not _is_safe("name" if text is key else key, text):
                    yield f"the graph holds the {key} {text!r}"


def _is_safe(key: str, text: str) -> bool:
    """Whether a text of the graph's document is what its key promises. Names become Python source, too."""
    if key == "target":
        return _TARGET.fullmatch(text) is not None
    if key == "expr_str":
        return _is_arithmetic(text)
    if key in ("in_spec", "out_spec"):
        return _is_plain(json.loads(text)[1])
    if key == "as_string":
        return _MODE.fullmatch(text) is not None
    return _WORD.fullmatch(text) is not None


def _is_arithmetic(expression: str) -> bool:
    """Whether it holds symbols, numbers and arithmetic alone: it is evaluated as Python (sympy.sympify)."""
    rest = _SYMBOL.sub("", expression)
    if len(expression) > _LONGEST_EXPRESSION or not _EXPRESSION.fullmatch(rest):
        return False
    if not all(name in _FUNCTIONS or re.fullmatch(r"[suz]+\d+", name) for name in _NAMES.findall(rest)):
        return False
    return all(map(_is_quick, ast.walk(ast.parse(expression, mode="eval"))))


def _is_quick(node: ast.AST) -> bool:
    """Whether it is no power or shift of unbounded size: to compute those of numbers can take forever."""
    match node:
        case ast.Constant(value=int(number)):
            return abs(number) < 2**63
        case ast.Call(func=ast.Name(id="Pow" | "PowByNatural"), args=[base, exponent]):
            return "Pow" not in ast.unparse(base) and _EXPONENT.fullmatch(ast.unparse(exponent)) is not None
        case ast.Call(func=ast.Name(id=name)):
            return name not in ("Pow", "PowByNatural")
        case ast.Call() | ast.BinOp(op=ast.Pow() | ast.LShift() | ast.RShift()):
            return False
    return True


def _is_plain(specification: Any) -> bool:
    """Whether a tree of arguments consists of tuples, lists and dictionaries: other types may import modules."""
    kind, context = specification["type"], specification["context"] or ""
    return kind in _SPECIFICATION and "{" not in context and all(map(_is_plain, specification["children_spec"]))


def _inner_name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.split("/", 1)[1]


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(f"model/{name}", _EPOCH), content)
