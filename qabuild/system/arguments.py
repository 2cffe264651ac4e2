"""Checks of what Python callers give: each raises BadTarget that names the argument and says what it takes."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qabuild.errors import BadTarget


def path(name: str, value: Any) -> str:
    """Text, or a path object as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    hint = "give its `directory`" if hasattr(value, "directory") else "give one, as in './here' or 'owner/name'"
    raise BadTarget(f"{name}: {_shown(value)} is neither text nor a path", hint)


def paths(name: str, value: Any) -> list[str]:
    """One of what `path` takes, or several."""
    several = isinstance(value, Iterable) and not isinstance(value, (str, os.PathLike))
    return [path(name, each) for each in (value if several else [value])]


def number(name: str, value: object, example: str) -> float:
    """A number, also of NumPy; infinity and NaN are none."""
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        given = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        given = math.nan
    if not math.isfinite(given):
        raise BadTarget(f"{name}: {_shown(value)} is no number", example)
    return given


def whole(name: str, value: object, least: int, example: str) -> int:
    """A whole number from `least`, also of NumPy."""
    given = number(name, value, example)
    if given < least or given != int(given):
        raise BadTarget(f"{name}: {value!r} is {'too few' if given < least else 'no whole number'}", example)
    return int(given)


def wholes(name: str, value: Any, least: int, example: str) -> tuple[int, ...]:
    """Several whole numbers from `least`."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Collection):
        raise BadTarget(f"{name}: {_shown(value)} is no list of numbers", example)
    return tuple(whole(name, each, least, example) for each in value)


def mapping(name: str, value: Any, example: str) -> dict[str, Any]:
    """A dictionary with text as its keys; None is an empty one."""
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise BadTarget(f"{name}: {_shown(value)} is no dictionary with text as keys", example)
    return dict(value or {})


def parameters(value: Any) -> dict[str, Any]:
    """Parameters of a pipeline's calls."""
    return mapping("parameters", value, 'as in {"top_k": 2}')


def word(name: str, value: object, known: Collection[str]) -> str:
    """One of the `known` words."""
    if not isinstance(value, str) or value not in known:
        raise BadTarget(f"{name}: {_shown(value)} is not known", f"choose from {', '.join(known)}")
    return value


def words(name: str, value: object, known: Collection[str]) -> tuple[str, ...]:
    """Several of the `known` words, or a single one."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, Collection):
        raise BadTarget(f"{name}: {_shown(value)} is no list of names", f"give some of {', '.join(known)}")
    return tuple(dict.fromkeys(word(name, each, known) for each in given))


def pipeline(value: Any) -> Any:
    """A QuestionAnsweringPipeline, or what can be called like one."""
    if not callable(value):
        raise BadTarget(f"pipeline: {_shown(value)} cannot be called", "give what `qabuild.load(artifact)` returns")
    return value


def _shown(value: object) -> str:
    """The value, or of a long one its type."""
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"
