"""Reads targets from TOML: files that extend each other, overrides of one run, targets that build on others.

Reading has no side effects: it uses no network, environment or device, and accesses no path but those of the TOML
files themselves.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qabuild.errors import BadTarget, RenamedKey
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.support import check
from qabuild.system.files import read as read_file
from qabuild.system.hub import is_path
from qabuild.target import explain
from qabuild.target.model import DATASET_TABLES, RENAMED, NamedPath, Target
from qabuild.target.source_map import File, KeyPath, Places, Toml

# Keys that may name a path. A relative path is relative to the file that states it, so it is made absolute before
# `extends` merges files of different folders.
SOURCES: tuple[KeyPath, ...] = (
    ("checkpoint", "model"),
    ("checkpoint", "target"),
    ("train", "deepspeed"),
    ("prune", "recover", "deepspeed"),
    ("distill", "teacher", "model"),
    ("distill", "teacher", "target"),
    ("backend", "calibration"),
    *((*table, "dataset") for table in DATASET_TABLES),
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Target:
    """Read the target at `path`; each override is `dotted.key=value`, its value in TOML or a bare string.

    Raises BadTarget that lists every mistake of the file, and of those it extends, in one message.
    """
    return _load(Path(path), overrides, ())


def applicable(paths: Sequence[Path], overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each target: with several, those of keys that it has, such as options of its backend.

    A target has the keys of its backend and of its tables; one that no target has, all are given: reading them says
    what is wrong with it. Raises BadTarget where a target cannot be read.
    """
    if len(paths) == 1:
        return [list(overrides)]
    contents = [_merged(_read_chain(path, ())) for path in paths]
    chosen: list[list[str]] = [[] for _ in paths]
    for override in overrides:
        key = override.partition("=")[0].strip().split(".")
        having = [number for number, content in enumerate(contents) if _has(content, key)]
        for number in having or range(len(paths)):
            chosen[number].append(override)
            contents[number] = _merge(contents[number], _parse_override(override))
    return chosen


def _has(content: Toml, key: Sequence[str]) -> bool:
    """Whether a target with that content has the key's table and, of its backend, the option."""
    table, *rest = key
    if table == "backend" and rest and isinstance(options := content.get("backend"), dict):
        name = options.get("name")
        return isinstance(name, str) and name in BACKENDS and rest[0] in backend(name).Options.model_fields
    field = Target.model_fields.get(table)
    return field is not None and (field.default is not None or table in content)


def _merged(files: Sequence[File]) -> Toml:
    merged: Toml = {}
    for file in reversed(files):
        merged = _merge(merged, file.content)
    return merged


def files_of(path: Path) -> tuple[Path, ...]:
    """The file of the target at `path`, those that it extends, and those of the targets that it builds on.

    Raises BadTarget as `load` does.
    """
    load(path)  # so that no cycle is left
    chain = _read_chain(path, ())
    merged, found = _merged(chain), [file.path for file in chain]
    for *tables, _ in (key for key in SOURCES if key[-1] == "target"):
        table = merged
        for name in tables:
            table = table.get(name, {})
        if base := table.get("target"):
            found += files_of(Path(base))
    return tuple(dict.fromkeys(Path(os.path.normpath(file)) for file in found))


def _load(path: Path, overrides: Sequence[str], built_on_by: tuple[Path, ...]) -> Target:
    """`load`; `built_on_by` are the targets that led to this one by [checkpoint] target, outermost first."""
    files = _read_chain(path, built_on_by)
    merged = _merged(files)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    places = Places(files, overrides)
    if "name" in merged:
        shown = places.of(("name",)).shown
        raise BadTarget(f"{path}: one mistake\n  {shown}: name: unknown key; the name of a target is that of its file")
    try:
        target = Target.model_validate({**merged, "name": path.stem})
    except ValidationError as error:
        raise BadTarget(explain.explain(error, path, places)) from None
    try:
        check({}, target.backend, target.runtime)
    except BadTarget as error:
        place = places.of(tuple((error.key or "backend").split(".")))
        shown = place.shown if place.shown.startswith(str(path)) else f"{path}: {place.shown}"
        raise BadTarget(f"{shown}: {error.message}", error.hint) from None
    teacher = target.distill.teacher.target if target.distill else None
    base_names = filter(None, (target.checkpoint.target, teacher))
    bases = {base: _load(Path(base), (), (*built_on_by, path)) for base in base_names}
    base_paths = (
        named for base in bases.values() for named in base.paths if not named.key.startswith(("backend", "verify"))
    )
    target = target.built_on(bases).with_paths((*base_paths, *_paths(target, places)))
    if target.verify.gates.min_teacher_f1_retention is not None and target.distill is None:
        raise BadTarget(
            f"{path}: verify.gates.min_teacher_f1_retention: there is no teacher",
            "name one in [distill], or remove the gate",
        )
    if target.verify.gates.max_f1_drop_from_original is not None and target.original is None:
        raise BadTarget(
            f"{path}: verify.gates.max_f1_drop_from_original: the checkpoint is the original, nothing trains it",
            "set max_f1_drop, which compares with the checkpoint",
        )
    return target


def _paths(target: Target, places: Places) -> Iterator[NamedPath]:
    """The files and folders that the target's own tables name and that building it reads."""
    for key in SOURCES:
        value: Any = target
        for name in key:
            value = getattr(value, name, None)
        is_read = target.calibrated if key[0] == "backend" else key[-1] != "target"
        if is_read and value and is_path(value):
            yield NamedPath(places.of(key).shown, ".".join(key), Path(value))


# --- files ------------------------------------------------------------------------------------------------------------


def _read_chain(path: Path, built_on_by: tuple[Path, ...]) -> list[File]:
    """The target's file, the file it extends, and so on."""
    _refuse_cycle(path, built_on_by, "build on each other's checkpoint", "give one of them a model of its own")
    chain: list[File] = []
    while True:
        _refuse_cycle(path, [f.path for f in chain], "extend each other", "let one of them state its own tables")
        file = _read(path, f"extended by {chain[-1].path}" if chain else _describe_dependents(built_on_by))
        chain.append(file)
        base = file.content.pop("extends", None)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise BadTarget(
                f"{path}: extends: given {base!r}", 'write the path of one TOML file: extends = "base.toml"'
            )
        path = path.parent / base


def _refuse_cycle(path: Path, chain: Sequence[Path], how: str, hint: str) -> None:
    if path.resolve() in [earlier.resolve() for earlier in chain]:
        raise BadTarget(f"targets {how} in a circle: {' -> '.join(map(str, [*chain, path]))}", hint)


def _describe_dependents(built_on_by: tuple[Path, ...]) -> str:
    return f"built on by {' -> '.join(map(str, built_on_by))}" if built_on_by else ""


def _read(path: Path, reason: str) -> File:
    suffix = f" ({reason})" if reason else ""
    try:
        text = read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise BadTarget(f"{path}: no such target{suffix}", _suggest_target(path)) from None
    except IsADirectoryError:
        raise BadTarget(f"{path} is a folder{suffix}", "name a .toml file in it") from None
    except UnicodeDecodeError as error:
        raise BadTarget(f"{path}: not UTF-8 at byte {error.start}{suffix}", "save the file as UTF-8") from None
    except OSError as error:
        raise BadTarget(f"{path}: cannot be read: {error.strerror}{suffix}") from None
    if not text.strip():
        raise BadTarget(f"{path}: is empty{suffix}", "`qabuild init` writes a target to begin with")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, a number of thousands of digits, deep nesting
        twice = "overwrite" in str(error) or "twice" in str(error)
        hint = "a key or a table is defined twice" if twice else "write strings in quotes, table names in [brackets]"
        raise BadTarget(f"{path}: not TOML: {error}{suffix}", hint) from None
    return File(path, text, _with_absolute_sources(_with_new_names(content, str(path)), path.parent))


def _with_new_names(content: Toml, place: str) -> Toml:
    """Rename old keys, each with a warning. Raises BadTarget where a key is given under both names."""
    for (table, old), new in RENAMED.items():
        values = content.get(table)
        if not isinstance(values, dict) or old not in values:
            continue
        if new in values:
            raise BadTarget(f"{place}: {table}.{old} is the old name of {table}.{new}", f"remove {table}.{old}")
        values[new] = values.pop(old)
        warnings.warn(f"{place}: {table}.{old} is now called {table}.{new}", RenamedKey, stacklevel=2)
    return content


def _suggest_target(path: Path) -> str:
    files = {file.stem: file for folder in (path.parent / "targets", path.parent) for file in folder.glob("*.toml")}
    matches = difflib.get_close_matches(path.stem, files, n=1)
    return (
        f"perhaps you meant {files[matches[0]]}"
        if matches
        else "`qabuild targets` lists the targets here; `qabuild init` writes one"
    )


def _with_absolute_sources(content: Toml, folder: Path) -> Toml:
    for *tables, key in SOURCES:
        table: Any = content
        for name in tables:
            table = table.get(name) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(source := table.get(key), str):
            table[key] = _target_path(source, folder) if key == "target" else absolute_source(source, folder)
    return content


def _target_path(source: str, folder: Path) -> str:
    """The file of a target given by path, or by name if it is in the folder of this file."""
    return str(Path(folder, os.path.expanduser(source if source.endswith(".toml") else f"{source}.toml")).absolute())


def absolute_source(source: str, folder: Path) -> str:
    """`source` made absolute: ~ is expanded, ./ and ../ are relative to `folder`; anything else stays as it is."""
    if source.startswith("~"):
        return str(Path(os.path.expanduser(source)))
    return str(Path(folder, source).absolute()) if is_relative(source) else source


def is_relative(source: str) -> bool:
    """Whether `source` is a relative path."""
    return source in (".", "..") or source.startswith(("./", "../"))


def relative_sources(path: Path) -> frozenset[str]:
    """The files and folders that the target at `path`, and those it extends and builds on, state as relative paths.

    They are absolute and normalised. Raises BadTarget as `load` does.
    """
    sources = set()
    for file in files_of(path):
        content = tomllib.loads(read_file(file).decode("utf-8-sig"))
        for *tables, key in SOURCES:
            table: Any = content
            for name in tables:
                table = table.get(name) if isinstance(table, dict) else None
            source = table.get(key) if isinstance(table, dict) else None
            if isinstance(source, str) and (is_relative(source) or (key == "target" and not is_path(source))):
                absolute = _target_path if key == "target" else absolute_source
                sources.add(os.path.normpath(absolute(source, file.parent)))
    return frozenset(sources)


def _merge(base: Toml, over: Toml) -> Toml:
    """`over` merged into `base`, table by table.

    A changed value inherits nothing that belongs to the old one: a backend's options, a Hub id's revision and digests.
    """
    merged = dict(base)
    if any(over.get(key, base.get(key)) != base.get(key) for key in ("model", "target", "dataset", "calibration")):
        belonging = ("configuration", "revision", "digest", "fingerprint", "columns")
        for key in ("model", "target", *belonging, *(f"calibration_{name}" for name in belonging)):
            merged.pop(key, None)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            other_backend = key == "backend" and value.get("name", old.get("name")) != old.get("name")
            merged[key] = value if other_backend else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _parse_override(override: str) -> Toml:
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise BadTarget(f"--set {override}: not of the form key=value", "for example --set verify.samples=200")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text  # a bare word is a string, which saves nested quotes in the shell
    if path == ["extends"]:
        raise BadTarget(f"--set {override}: `extends` cannot be overridden", "write a file for it")
    nested: Toml = {path[-1]: value}
    for part in reversed(path[:-1]):
        nested = {part: nested}
    return _with_absolute_sources(_with_new_names(nested, f"--set {override}"), Path.cwd())
