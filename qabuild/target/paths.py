"""Files and folders that a target names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qabuild.errors import BadTarget

if TYPE_CHECKING:
    from qabuild.target.model import Target


def require_paths(target: Target) -> None:
    """Raise BadTarget with all files and folders that the target names and that are not there."""
    gone = [f"{at}: {key}: {path}: no such file or folder" for at, key, path in target.paths if not path.exists()]
    if gone:
        several = [f"{target.name}: {len(gone)} paths lead nowhere"] if len(gone) > 1 else []
        raise BadTarget(
            "\n  ".join(several + gone),
            "a relative path is taken from the folder of the file that states it; a Hub id is written 'owner/name'",
        )
