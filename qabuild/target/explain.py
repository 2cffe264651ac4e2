"""Explains what pydantic found wrong with a target, in the words of its file."""

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
    """All mistakes of the target at `path`, one a line and in their order.

    Each with its place, its key path, what was given and what would be accepted.
    """
    found: dict[KeyPath, tuple[Place, str]] = {}
    for mistake in error.errors():
        key = _key_path(mistake)
        place = places.of(key, as_a_whole=mistake["type"] == "value_error")
        found.setdefault(key, (place, _wrong(mistake, key)))
        if mistake["type"] == "union_tag_invalid":  # pydantic looks no further, but what no backend knows is wrong too
            for name in sorted(mistake["input"].keys() - _fields(("backend",)).keys()):
                found["backend", name] = places.of(("backend", name)), f"unknown key{_offer(('backend', name))}"
    count = "one mistake" if len(found) == 1 else f"{len(found)} mistakes"
    in_order = sorted(found.items(), key=lambda each: each[1][0])
    lines = [f"  {place.shown}: {'.'.join(key)}: {wrong}" for key, (place, wrong) in in_order]
    return f"{path}: {count}\n" + "\n".join(lines)


def _key_path(mistake: Any) -> KeyPath:
    """Where the mistake stands in the file: pydantic's location without the names of a union's members."""
    if mistake["type"].startswith("union_tag"):
        return ("backend", "name")
    parts = [str(part) for part in mistake["loc"]]
    if parts[0] == "backend":
        del parts[1:2]
    path: KeyPath = ()
    for part in parts:
        known = _fields(path)
        if not known:  # below a key there are no more keys
            return path
        path = (*path, part)
        if part not in known:
            return path
    return path


def _wrong(mistake: Any, path: KeyPath) -> str:
    kind, given = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_offer(path, mistake['loc'][1] if path[0] == 'backend' else None)}"
    if path == ("backend",):
        wrong = "is missing" if kind == "missing" else f"given {given!r}"
        return f"{wrong}; accepted: a table with a name: {', '.join(BACKENDS)}"
    if kind == "missing" and mistake["loc"][-1] == path[-1]:
        return f"is missing; accepted: {_accepted(path)}"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    if kind.startswith("union_tag"):
        name = given.get("name") if isinstance(given, dict) else given
        near = difflib.get_close_matches(str(name), BACKENDS, n=1)
        perhaps = f"; perhaps you meant {near[0]!r}" if near else ""
        return f"{f'given {name!r}' if name else 'is missing'}; accepted: {', '.join(BACKENDS)}{perhaps}"
    accepted = ": ".join(filter(None, (_wanted(mistake), _accepted(path))))
    return f"given {given!r}; accepted: {accepted}"


_WANTED = {
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
"""What would be accepted instead, by pydantic's type of a mistake."""


def _wanted(mistake: Any) -> str:
    if mistake["type"] == "string_pattern_mismatch":  # its description says it better than the pattern
        return ""
    wanted = _WANTED.get(mistake["type"])
    return wanted.format(**mistake.get("ctx", {})) if wanted else str(mistake["msg"])


def _offer(path: KeyPath, backend_name: str | None = None) -> str:
    """Which key was probably meant: the nearest name in the same table, or the same name in others."""
    siblings = _fields(path[:-1])
    if backend_name:
        siblings = backend(backend_name).Options.model_fields
        if owners := [name for name in BACKENDS if path[-1] in backend(name).Options.model_fields]:
            return f" of backend {backend_name}; it belongs to {', '.join(owners)}"
    elif len(path) == 1:
        siblings = {"extends": None, **siblings}
    if near := difflib.get_close_matches(path[-1], siblings, n=1):
        return f"; perhaps you meant {near[0]!r}"
    homes = [other[:-1] for other in _all_keys() if other[-1] == path[-1]]
    if homes:
        named = [f"[{'.'.join(home)}]" if home else "the top" for home in homes]
        return f"; it belongs to {' or '.join(named)}"
    return f"; known here: {', '.join(siblings)}" if siblings else ""


def _accepted(path: KeyPath) -> str:
    field = _fields(path[:-1]).get(path[-1])
    return (field.description or "") if field else ""


def _fields(table: KeyPath) -> dict[str, Any]:
    """The fields of a table of the target; of `[backend]`, those of every backend."""
    if table == ("backend",):
        return {key: field for name in BACKENDS for key, field in backend(name).Options.model_fields.items()}
    model: type[BaseModel] = Target
    for part in table:
        field = model.model_fields.get(part)
        inner = table_of(field.annotation) if field else None
        if inner is None:
            return {}
        model = inner
    return {key: field for key, field in model.model_fields.items() if (model, key) != (Target, "name")}


def _all_keys(table: KeyPath = ()) -> Iterator[KeyPath]:
    for key, field in _fields(table).items():
        yield (*table, key)
        if (*table, key) == ("backend",) or table_of(field.annotation):
            yield from _all_keys((*table, key))


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The model behind a field that is a table, or a table that may be absent; None for any other field."""
    members = (annotation, *get_args(annotation))
    return next((each for each in members if isinstance(each, type) and issubclass(each, BaseModel)), None)
