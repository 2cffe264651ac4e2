"""What a tuning writes into its folder, and the check that it replaces nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qabuild.artifact import staging
from qabuild.errors import BadTarget
from qabuild.system import files
from qabuild.system.sealed import require_outside

FOLDER = "tuned"
TARGET, LOCK, PAGE = f"{FOLDER}.toml", f"{FOLDER}.lock", "report.html"
ARTIFACTS = "artifacts"
HEADER = "# Written by `qabuild tune`.\n"
"""The first line of every target that it writes."""
BEGINNINGS = {TARGET: HEADER, LOCK: "# Written by `qabuild lock`", PAGE: "<!doctype html>\n<!-- qabuild tune -->\n"}
"""How what is written begins."""
FOLDERS = ("candidates", "screened", "verified", "comparisons", ARTIFACTS)


def require_ours(output: Path) -> None:
    """Raise BadTarget where something would be replaced that no tuning wrote, QABuildError for an unusable folder."""
    require_outside(output / TARGET)
    staging.require_writable(output)
    foreign = next(_foreign(output), None)
    if foreign is not None:
        raise BadTarget(
            f"{foreign} exists, and no tuning wrote it", "move it away, or name another folder with --output"
        )
    staging.require_ours(output / ARTIFACTS / FOLDER)
    for name in ("screened", "verified"):
        for path in _entries(output / name):
            staging.require_ours(path)


def _foreign(output: Path) -> Iterator[Path]:
    """What no tuning wrote, of the files and folders that this one would write."""
    yield from (output / name for name, beginning in BEGINNINGS.items() if not _begins(output / name, beginning))
    yield from (output / name for name in FOLDERS if os.path.lexists(output / name) and not (output / name).is_dir())
    yield from (
        path for path in _entries(output / "candidates") if path.suffix == ".toml" and not _begins(path, HEADER)
    )


def _entries(folder: Path) -> list[Path]:
    """All but what a killed build left."""
    return sorted(path for path in folder.glob("*") if not path.name.startswith(".")) if folder.is_dir() else []


def _begins(path: Path, beginning: str) -> bool:
    """Whether the file at `path`, if there is one, begins like that."""
    if not os.path.lexists(path):
        return True
    try:
        return files.read(path).startswith(beginning.encode())
    except OSError:  # a folder, a pipe, a dangling link
        return False
