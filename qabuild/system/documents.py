"""JSON documents, parsed once into typed values: whatever they hold, the outcome is a value or a ValueError."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from qabuild.errors import UntrustedInput
from qabuild.system import files

T = TypeVar("T")

CLOSED = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of values that hold nothing but their fields."""
OPEN = ConfigDict(extra="allow", allow_inf_nan=False)
"""Of tables that hold more than is read by name."""
Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, or of bytes, that a float holds exactly."""

DEEPEST = 100
"""Levels of nesting. Later code may recurse over a document, so it is far from Python's limit."""


def read_json(content: bytes) -> Any:
    """The JSON value of a document in UTF-8.

    Raises ValueError, in one line, where it is damaged, nested too deeply, repeats a key or holds a number that is not
    finite: readers differ on these.
    """
    try:
        text = content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} levels deep") from None
    level, depth = [value], 0
    while level := [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]:
        depth += 1
        if depth >= DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} levels deep")
    return value


def typed(kind: type[T], value: Any) -> T:
    """The JSON value as `kind`, strictly: a dataclass, a TypedDict or a pydantic model, with nothing converted.

    Raises ValueError, in one line, that names the place of the first mistake.
    """
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True))
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from None


def first_mistake(error: ValidationError) -> str:
    """What pydantic found first, in one line: the dotted key, where there is one, and the problem."""
    first = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def load(kind: type[T], path: Path, hint: str) -> T:
    """The document in the file as `kind`. Raises UntrustedInput where it is none, with `hint`."""
    try:
        return typed(kind, read_json(files.read(path)))
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise UntrustedInput(f"{path}: damaged: {problem}", hint) from None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return members


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number
