"""Checks that the files and folders a target names exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qabuild.errors import BadTarget

if TYPE_CHECKING:
    from qabuild.target.model import Target


def require_paths(target: Target) -> None:
    """Raise BadTarget, listing every file and folder that the target names and that does not exist."""
    missing = [
        f"{place}: {key}: {path}: no such file or folder" for place, key, path in target.paths if not path.exists()
    ]
    if missing:
        heading = [f"{target.name}: {len(missing)} paths do not exist"] if len(missing) > 1 else []
        raise BadTarget(
            "\n  ".join(heading + missing),
            "a relative path is relative to the folder of the file that states it; a Hub id is written 'owner/name'",
        )
