"""Refuses an ONNX file that holds more than a graph of known operators and its weights.

The file is read as Protocol Buffers' wire format, by the field numbers of onnx.proto: loading a model does not need the
package onnx. Weights are skipped, not read.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own domain, whose operators compute on tensors and have no other effect."""
FUSED: Mapping[str, frozenset[str]] = {
    "com.microsoft": frozenset(
        {
            # Those of every supported architecture, level and dtype.
            *("Attention", "BiasGelu", "FastGelu", "Gelu", "QAttention", "QuickGelu", "SkipLayerNormalization"),
            # Others that the optimiser has for encoders, and the quantiser for what they consist of.
            *("BiasAdd", "BiasSoftmax", "DynamicQuantizeMatMul", "EmbedLayerNormalization", "FusedConv", "FusedGemm"),
            *("FusedMatMul", "GatedRelativePositionBias", "GemmFastGelu", "MatMulIntegerToFloat", "MatMulNBits"),
            *("MultiHeadAttention", "PackedAttention", "PackedMultiHeadAttention", "QEmbedLayerNormalization"),
            *("QGemm", "QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean"),
            *("QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "RelativePositionBias", "RemovePadding"),
            *("RestorePadding", "RotaryEmbedding", "SkipSimplifiedLayerNormalization", "TransposeMatMul"),
        }
    ),
    # Level 99 lays out convolutions for the processor.
    "com.microsoft.nchwc": frozenset(
        {"AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput", "ReorderOutput"}
    ),
}
"""Operators of ONNX Runtime's own that its optimiser, fp16 conversion and quantiser make, by domain."""

_FUNCTIONS, _TRAINING = 25, 20
_NESTED = {
    ("model", 7): "graph",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("graph", 15): "sparse tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 6): "graph",
    ("attribute", 10): "tensor",
    ("attribute", 11): "graph",
    ("attribute", 22): "sparse tensor",
    ("attribute", 23): "sparse tensor",
    ("sparse tensor", 1): "tensor",
    ("sparse tensor", 2): "tensor",
    ("tensor", 13): "entry",
}
"""The messages that hold others, by kind and field number."""
_OP_TYPE, _DOMAIN = 4, 7
_INPUT, _NAME = 11, 1
_KEY, _VALUE = 1, 2
_SAFE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)

Fields = dict[int, list[int | memoryview]]
"""The fields of a message, by number; a field may occur several times."""


def problems(path: Path) -> Iterator[str]:
    """Whatever the file holds besides a graph of known operators, with its weights in it or beside it."""
    for kind, fields in _messages("model", _mapped(path)):
        if kind == "model" and {_FUNCTIONS, _TRAINING} & set(fields):
            yield "it holds functions, or a graph for training"
        elif kind == "node":
            yield from _node_problems(_texts(fields, _DOMAIN) or [""], _texts(fields, _OP_TYPE))
        elif kind == "entry" and "location" in _texts(fields, _KEY):
            for name in _texts(fields, _VALUE):
                if not _SAFE_NAME.fullmatch(name) or not (path.parent / name).is_file():
                    yield f"its weights are in {name[:80]!r}, which is no file beside it"


def operators(path: Path) -> Iterator[tuple[str, str]]:
    """Domain and name of the operator of each node, nested graphs included; ONNX's own domain is the empty string."""
    for kind, fields in _messages("model", _mapped(path)):
        if kind == "node":
            domain = "".join(_texts(fields, _DOMAIN))
            for name in _texts(fields, _OP_TYPE):
                yield "" if domain in STANDARD else domain, name


def inputs(path: Path) -> list[str]:
    """The names of the graph's inputs."""
    graph = next(fields for kind, fields in _messages("model", _mapped(path)) if kind == "graph")
    values = (dict(_fields(value)) for value in graph.get(_INPUT, []) if isinstance(value, memoryview))
    return [bytes(name).decode() for value in values if isinstance(name := value.get(_NAME), memoryview)]


def _mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _node_problems(domains: list[str], operators: list[str]) -> Iterator[str]:
    for domain in domains:
        for operator in operators:
            if domain not in STANDARD and operator not in FUSED.get(domain, ()):
                yield f"the operator {operator[:80]!r} of {domain[:80]!r} is none that qabuild compiles to"


def _messages(kind: str, content: memoryview) -> Iterator[tuple[str, Fields]]:
    """The message and all in it that `_NESTED` names, each with its kind and fields."""
    fields: Fields = {}
    for number, value in _fields(content):
        fields.setdefault(number, []).append(value)
    yield kind, fields
    for number, values in fields.items():
        if inner := _NESTED.get((kind, number)):
            for value in values:
                if isinstance(value, memoryview):
                    yield from _messages(inner, value)


def _fields(content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or bytes. Raises ValueError where the message is damaged."""
    position = 0
    while position < len(content):
        key, position = _integer(content, position)
        if key & 7 == 0:
            value, position = _integer(content, position)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, position = _integer(content, position)
        else:
            size = {1: 8, 5: 4}[key & 7]
        if position + size > len(content):
            raise ValueError("a field is cut off")
        yield key >> 3, content[position : position + size]
        position += size


def _integer(content: memoryview, position: int) -> tuple[int, int]:
    """The integer of variable length at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("an integer is too long")


def _texts(fields: Fields, number: int) -> list[str]:
    return [bytes(value).decode() for value in fields.get(number, []) if isinstance(value, memoryview)]
