"""Sealed folders: those that hold a manifest, and to which nothing is added."""

from __future__ import annotations

from pathlib import Path

from qabuild.errors import BadTarget

MANIFEST = "manifest.json"


def require_outside(path: Path) -> None:
    """Raise BadTarget for an output file inside an artifact, where it would break the seal."""
    for folder in path.absolute().parents:
        if (folder / MANIFEST).is_file():
            raise BadTarget(f"{path}: lies in the artifact {folder}, which is sealed", "name a file elsewhere")
