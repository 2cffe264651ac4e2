"""The files that a plan was made of: whether they are the same once a step has read them."""

from __future__ import annotations

import os
from pathlib import Path

State = tuple[int, int, int]
"""Inode, size and time of the last change, in nanoseconds."""


class InputFiles:
    """Files as they were before they were hashed. One that was replaced meanwhile is noticed though it was put back."""

    def __init__(self) -> None:
        self._states: dict[Path, State | None] = {}

    def note(self, path: Path) -> None:
        """Remember the file, or all files of the folder; what was noted before keeps its state."""
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            self._states.setdefault(file, _state(file))

    def changed(self) -> Path | None:
        """A file that is not as it was, if there is one."""
        return next((path for path, state in self._states.items() if _state(path) != state), None)


def _state(path: Path) -> State | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
