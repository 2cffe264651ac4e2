"""Source map of a target: the TOML file and line of each key."""

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
        """Line number of every table header and key, found by scanning: tomllib reports no positions."""
        lines: dict[KeyPath, int] = {}
        table: KeyPath = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
                table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
                lines.setdefault(table, number)
            elif key := re.match(r"\s*([\w\"'.-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=", line):
                parts = tuple(part.strip().strip("\"'") for part in key[1].split("."))
                lines.setdefault(table + parts, number)
        return lines


KeyPath = tuple[str, ...]
"""Names of the tables, outermost first, then the key."""


class Place(NamedTuple):
    """The file and line of a key; places sort in the order of files and lines."""

    file: int
    line: int
    shown: str


_OVERRIDDEN = Place(-1, 0, "--set")


class Places:
    """The places of a target's keys: in its file, in one that it extends, or in `--set`."""

    def __init__(self, files: Sequence[File], overrides: Sequence[str]) -> None:
        self._unknown = Place(0, 0, str(files[0].path))
        self._overridden = [tuple(override.split("=")[0].strip().split(".")) for override in overrides]
        self._places: dict[KeyPath, Place] = dict.fromkeys(self._overridden, _OVERRIDDEN)
        for number, file in enumerate(files):
            for key, line in file.lines.items():
                self._places.setdefault(key, Place(number, line, f"{file.path}:{line}"))

    def of(self, key: KeyPath, *, whole_table: bool = False) -> Place:
        """The place of a key, or of its table where the key is missing.

        With `whole_table`, an override of any key of the table counts as the place of the table.
        """
        overridden = any(override[: len(key)] == key for override in self._overridden)
        if overridden and (whole_table or key not in self._places):
            return _OVERRIDDEN
        tables = (key[:length] for length in range(len(key), 0, -1))
        return next((self._places[table] for table in tables if table in self._places), self._unknown)
