"""Writes targets as TOML files."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import tomli_w

from qabuild.system import files
from qabuild.target.read import SOURCES


def write(tables: Mapping[str, Any], path: Path, header: str = "", relative: Collection[str] = ()) -> None:
    """Write a target to `path`: a comment, and its tables.

    Files and folders that they name and that are `relative`, where they stand as normalised absolute paths, become
    relative to the target's folder; others stay absolute.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = header + tomli_w.dumps(_with_relative_sources(tables, path.parent, relative))
    files.write(path, text.encode())


def relative_to(folder: Path, source: Path) -> str:
    """The path from `folder` to `source` as a target states it."""
    relative = os.path.relpath(source, folder.resolve())
    return relative if relative == ".." or relative.startswith("../") else f"./{relative}"


def _with_relative_sources(tables: Mapping[str, Any], folder: Path, relative: Collection[str]) -> dict[str, Any]:
    copied = deepcopy(dict(tables))
    for *names, key in SOURCES:
        table: Any = copied
        for name in names:
            table = table.get(name) if isinstance(table, dict) else None
        source = table.get(key) if isinstance(table, dict) else None
        if isinstance(source, str) and os.path.normpath(source) in relative:
            table[key] = relative_to(folder, Path(source))
    return copied
