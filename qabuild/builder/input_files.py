"""The files that a plan was made of: whether they are the same once a step has read them."""

from __future__ import annotations

import os
from pathlib import Path

from qabuild.models.checkpoint.resolve import PATTERNS

State = tuple[int, int, int]
"""Inode, size and time of the last change, in nanoseconds."""


class InputFiles:
    """Files as they were before they were hashed. One that was replaced meanwhile is noticed though it was put back."""

    def __init__(self) -> None:
        self._states: dict[Path, State | None] = {}

    def note(self, path: Path) -> None:
        """Remember a file; what was noted before keeps its state."""
        self._states.setdefault(path, _state(path))

    def note_checkpoint(self, folder: Path) -> None:
        """Remember the files of a checkpoint; others in its folder, such as logs, may change."""
        for pattern in PATTERNS:
            for path in folder.glob(pattern):
                self.note(path)

    def changed(self) -> Path | None:
        """A file that is not as it was, if there is one."""
        return next((path for path, state in self._states.items() if _state(path) != state), None)


def _state(path: Path) -> State | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
