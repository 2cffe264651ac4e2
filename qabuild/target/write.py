"""Writes targets as TOML files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import tomli_w

from qabuild.system import files
from qabuild.system.hub import is_path
from qabuild.target.read import SOURCES


def write(tables: Mapping[str, Any], path: Path, header: str = "") -> None:
    """Write a target to `path`: a comment, and its tables; files and folders that they name become relative to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = header + tomli_w.dumps(_with_relative_sources(tables, path.parent.resolve()))
    files.write(path, text.encode())


def _with_relative_sources(tables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    copied = deepcopy(dict(tables))
    for *names, key in SOURCES:
        table: Any = copied
        for name in names:
            table = table.get(name) if isinstance(table, dict) else None
        source = table.get(key) if isinstance(table, dict) else None
        if isinstance(source, str) and is_path(source):
            relative = os.path.relpath(os.path.expanduser(source), folder)
            table[key] = relative if relative.startswith("..") else f"./{relative}"
    return copied
