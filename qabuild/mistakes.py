"""Explains what pydantic found wrong with a target, in the words of its file."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from qabuild.backends import BACKENDS, backend
from qabuild.target import Target

if TYPE_CHECKING:
    from qabuild.reading import File

KeyPath = tuple[str, ...]
"""Names of tables, outermost first, and that of a key."""


def explain(error: ValidationError, files: list[File], overrides: Sequence[str]) -> str:
    """All mistakes, one a line, each with its place, its key path, what was given and what would be accepted."""
    messages: dict[KeyPath, str] = {}
    for mistake in error.errors():
        path = _key_path(mistake)
        place = _place(path, files, overrides, mistake["type"] == "value_error")
        messages.setdefault(path, f"{place}: {'.'.join(path)}: {_wrong(mistake, path)}")
    count = "one mistake" if len(messages) == 1 else f"{len(messages)} mistakes"
    return f"{files[0].path}: {count}\n" + "\n".join(f"  {message}" for message in messages.values())


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


def _place(path: KeyPath, files: list[File], overrides: Sequence[str], of_a_table: bool) -> str:
    """File and line, or "--set"; what is wrong with a table as a whole is so by the override of any of its keys."""
    key = ".".join(path)
    for override in overrides:
        name = override.split("=")[0].strip()
        if name == key or (of_a_table and name.startswith(f"{key}.")):
            return "--set"
    for length in range(len(path), 0, -1):  # a missing key is placed at its table
        for file in files:
            if line := file.lines.get(path[:length]):
                return f"{file.path}:{line}"
    return str(files[0].path)


def _wrong(mistake: Any, path: KeyPath) -> str:
    kind, given = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_offer(path, mistake['loc'])}"
    if kind == "missing":
        wanted = f"a table with a name: {', '.join(BACKENDS)}" if path == ("backend",) else _accepted(path)
        return f"is missing; accepted: {wanted}"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    if kind.startswith("union_tag"):
        name = given.get("name") if isinstance(given, dict) else given
        near = difflib.get_close_matches(str(name), BACKENDS, n=1)
        perhaps = f"; perhaps you meant {near[0]!r}" if near else ""
        return f"{f'given {name!r}' if name else 'is missing'}; accepted: {', '.join(BACKENDS)}{perhaps}"
    return f"given {given!r}; accepted: {_accepted(path) or mistake['msg']} ({mistake['msg']})"


def _offer(path: KeyPath, location: Sequence[int | str]) -> str:
    """Which key was probably meant: the nearest name in the same table, or the same name in others."""
    siblings = _fields(path[:-1])
    if path[0] == "backend":
        siblings = backend(str(location[1])).Options.model_fields
        if owners := [name for name in BACKENDS if path[-1] in backend(name).Options.model_fields]:
            return f" of backend {location[1]}; it belongs to {', '.join(owners)}"
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
