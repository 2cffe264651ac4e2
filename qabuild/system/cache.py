"""The layout of the cache."""

from __future__ import annotations

from pathlib import Path

from qabuild.system import user_folders

LAYOUT = "v1"


def compiled_for_this_machine(digest: str, root: Path | None = None) -> Path:
    """Where a runtime may cache what it compiles from the files with that digest, or from any files ("").

    It is not a step's result and never part of an artifact: a runtime that misses it compiles again within a second.
    """
    return (root or user_folders.cache()) / LAYOUT / "compiled" / digest
