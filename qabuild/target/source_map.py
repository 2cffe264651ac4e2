"""Where in which TOML file each key of a target stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

Toml = dict[str, Any]


@dataclass(frozen=True)
class File:
    """One TOML file of a chain of `extends`."""

    path: Path
    text: str
    content: Toml

    @cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """Line number of every table header and key, found by scanning: tomllib keeps no places."""
        found: dict[KeyPath, int] = {}
        table: KeyPath = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
                table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
                found.setdefault(table, number)
            elif key := re.match(r"\s*([\w\"'.-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=", line):
                parts = tuple(part.strip().strip("\"'") for part in key[1].split("."))
                found.setdefault(table + parts, number)
        return found


KeyPath = tuple[str, ...]
"""Names of tables, outermost first, and that of a key."""


class Place(NamedTuple):
    """Where a key stands; places sort as the files and their lines do."""

    file: int
    line: int
    shown: str


_OVERRIDDEN = Place(-1, 0, "--set")


class Places:
    """Where the keys of a target stand: in its file or one that it extends, or in `--set`."""

    def __init__(self, files: Sequence[File], overrides: Sequence[str]) -> None:
        self._unknown = Place(0, 0, str(files[0].path))
        self._overridden = [tuple(override.split("=")[0].strip().split(".")) for override in overrides]
        self._found: dict[KeyPath, Place] = dict.fromkeys(self._overridden, _OVERRIDDEN)
        for number, file in enumerate(files):
            for key, line in file.lines.items():
                self._found.setdefault(key, Place(number, line, f"{file.path}:{line}"))

    def of(self, key: KeyPath, *, as_a_whole: bool = False) -> Place:
        """The place of a key, or that of its table where it is missing.

        What is wrong with a table `as_a_whole` is so by the override of any of its keys.
        """
        overridden = any(other[: len(key)] == key for other in self._overridden)
        if overridden and (as_a_whole or key not in self._found):
            return _OVERRIDDEN
        tables = (key[:length] for length in range(len(key), 0, -1))
        return next((self._found[table] for table in tables if table in self._found), self._unknown)
