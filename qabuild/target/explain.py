"""Turns pydantic's errors for a target into messages that name file, line and key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qabuild.models.backends import BACKENDS, backend
from qabuild.target.model import Target
from qabuild.target.source_map import KeyPath, Place, Places


def explain(error: ValidationError, path: Path, places: Places) -> str:
    """All mistakes of the target at `path`, one per line, in file order.

    Each line states the place, the key path, the given value and the accepted values.
    """
    mistakes: dict[KeyPath, tuple[Place, str]] = {}
    for detail in error.errors():
        key = _key_path(detail)
        place = places.of(key, whole_table=detail["type"] == "value_error")
        mistakes.setdefault(key, (place, _describe(detail, key)))
        if detail["type"] == "union_tag_invalid":  # pydantic stops here; report keys that no backend has as well
            for name in sorted(detail["input"].keys() - _fields(("backend",)).keys()):
                mistakes["backend", name] = places.of(("backend", name)), f"unknown key{_suggest(('backend', name))}"
    count = "one mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    in_order = sorted(mistakes.items(), key=lambda item: item[1][0])
    lines = [f"  {place.shown}: {'.'.join(key)}: {message}" for key, (place, message) in in_order]
    return f"{path}: {count}\n" + "\n".join(lines)


def _key_path(detail: Any) -> KeyPath:
    """The key path in the file: pydantic's location without the names of a union's members."""
    if detail["type"].startswith("union_tag"):
        return ("backend", "name")
    parts = [str(part) for part in detail["loc"]]
    if parts[0] == "backend":
        del parts[1:2]
    path: KeyPath = ()
    for part in parts:
        fields = _fields(path)
        if not fields:  # not a table, so it has no keys
            return path
        path = (*path, part)
        if part not in fields:
            return path
    return path


def _describe(detail: Any, path: KeyPath) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_suggest(path, detail['loc'][1] if path[0] == 'backend' else None)}"
    if path == ("backend",):
        problem = "is missing" if kind == "missing" else f"given {value!r}"
        return f"{problem}; accepted: a table with a name: {', '.join(BACKENDS)}"
    if kind == "missing" and detail["loc"][-1] == path[-1]:
        return f"is missing; accepted: {_description(path)}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind.startswith("union_tag"):
        name = value.get("name") if isinstance(value, dict) else value
        matches = difflib.get_close_matches(str(name), BACKENDS, n=1)
        suggestion = f"; perhaps you meant {matches[0]!r}" if matches else ""
        return f"{f'given {name!r}' if name else 'is missing'}; accepted: {', '.join(BACKENDS)}{suggestion}"
    accepted = ": ".join(filter(None, (_constraint(detail), _description(path))))
    return f"given {value!r}; accepted: {accepted}"


_CONSTRAINTS = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "int_type": "a whole number",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "literal_error": "{expected}",
    "missing": "one more value",
    "model_type": "a table",
    "string_too_short": "text that is not empty",
    "string_type": "text in quotes",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
    "tuple_type": "a list",
}
"""What a key accepts, by pydantic's error type."""


def _constraint(detail: Any) -> str:
    if detail["type"] == "string_pattern_mismatch":  # the field's description is clearer than the pattern
        return ""
    constraint = _CONSTRAINTS.get(detail["type"])
    return constraint.format(**detail.get("ctx", {})) if constraint else str(detail["msg"])


def _suggest(path: KeyPath, backend_name: str | None = None) -> str:
    """What was probably meant: the closest name in the same table, or else the same name in another, or one of all."""
    siblings = _fields(path[:-1])
    if backend_name:
        siblings = backend(backend_name).Options.model_fields
        if owners := [name for name in BACKENDS if path[-1] in backend(name).Options.model_fields]:
            return f" of backend {backend_name}; it belongs to {', '.join(owners)}"
    elif len(path) == 1:
        siblings = {"extends": None, **siblings}
    if matches := difflib.get_close_matches(path[-1], siblings, n=1):
        return f"; perhaps you meant {matches[0]!r}"
    tables = [key[:-1] for key in _all_keys() if key[-1] == path[-1]]
    names = [f"[{'.'.join(table)}]" if table else "the top level" for table in tables]
    owner = f"; it belongs to {' or '.join(names)}" if names else ""
    return f"{owner}; known keys: {', '.join(siblings)}" if siblings else owner


def _description(path: KeyPath) -> str:
    field = _fields(path[:-1]).get(path[-1])
    return (field.description or "") if field else ""


def _fields(table: KeyPath) -> dict[str, Any]:
    """The fields of a table of the target; for `[backend]`, those of all backends."""
    if table == ("backend",):
        return {key: field for name in BACKENDS for key, field in backend(name).Options.model_fields.items()}
    model: type[BaseModel] = Target
    for part in table:
        field = model.model_fields.get(part)
        nested = table_of(field.annotation) if field else None
        if nested is None:
            return {}
        model = nested
    return {key: field for key, field in model.model_fields.items() if (model, key) != (Target, "name")}


def _all_keys(table: KeyPath = ()) -> Iterator[KeyPath]:
    for key, field in _fields(table).items():
        yield (*table, key)
        if (*table, key) == ("backend",) or table_of(field.annotation):
            yield from _all_keys((*table, key))


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that is a table, required or optional; None for any other field."""
    members = (annotation, *get_args(annotation))
    return next((member for member in members if isinstance(member, type) and issubclass(member, BaseModel)), None)
