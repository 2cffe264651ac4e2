"""The cache folder of this user or machine."""

from __future__ import annotations

import os
from pathlib import Path

LAYOUT = "v1"


def default_root() -> Path:
    """QABUILD_CACHE, or qabuild's folder in the platform's cache folder."""
    if root := os.environ.get("QABUILD_CACHE"):
        return Path(os.path.expanduser(root)).absolute()
    from platformdirs import user_cache_path

    return user_cache_path("qabuild")


def compiled_for_this_machine(digest: str, root: Path | None = None) -> Path:
    """Where a runtime may cache what it compiles from the files with that digest, or from any files ("").

    It is not a step's result and never part of an artifact: a runtime that misses it compiles again within a second.
    """
    return (root or default_root()) / LAYOUT / "compiled" / digest
