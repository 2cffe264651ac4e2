"""The name of an artifact: given in one step to what was staged and proved, or not at all.

Beside artifacts/NAME may lie NAME.failed, whose verification failed, and two folders that only a killed build leaves:
.NAME.partial, where it is staged, and .NAME.old, see `_exchange`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import readme
from qabuild.errors import BadTarget
from qabuild.system.files import explained


def require_ours(goal: Path) -> None:
    """Refuse to put an artifact in the place of anything else: what had the name is deleted."""
    for path in (goal, _failed(goal)):
        if os.path.lexists(path) and not (path / artifacts.MANIFEST).is_file():
            raise BadTarget(
                f"{path}: is not an artifact, and would be replaced by one",
                "move it away, or name another folder with --output",
            )


@contextmanager
def staged(goal: Path) -> Iterator[Path]:
    """An empty folder beside `goal`, gone afterwards."""
    stage = _stage(goal)
    try:
        stage.mkdir(parents=True)
        yield stage
    finally:
        with suppress(OSError):  # the next build tries again, and says so
            _remove(stage)


def clean_up(goal: Path) -> None:
    """Remove what a killed build left, and give back the name that it may have taken away, see `_exchange`."""
    _remove(_stage(goal))
    if os.path.lexists(goal):
        _remove(_aside(goal))
    elif _aside(goal).exists():
        os.rename(_aside(goal), goal)


def disk_explained(output: Path) -> AbstractContextManager[None]:
    return explained(output, "the output folder", "make room or make it writable, or name another with --output")


def promote(stage: Path, goal: Path, *, passed: bool) -> Path:
    """Give what was staged its name: NAME where it passed, NAME.failed where it did not."""
    landed = goal if passed else _failed(goal)
    _keep_card(goal, stage)
    _remove(_failed(goal))
    if os.path.lexists(landed):
        _exchange(stage, landed)  # what had the name is now at `stage`, and goes with it
    else:
        os.rename(stage, landed)
    return landed


def _keep_card(goal: Path, stage: Path) -> None:
    """Take over what people wrote into the model card of the artifact that is replaced."""
    if (goal / readme.FILE).is_file():
        written = (goal / readme.FILE).read_text(encoding="utf-8", errors="replace")
        with suppress(BadTarget):  # what cannot be read is kept as it is
            written = readme.without_made(written)
        (stage / readme.FILE).write_text(written, encoding="utf-8")


def _failed(goal: Path) -> Path:
    return goal.with_name(f"{goal.name}.failed")


def _stage(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.partial")


def _aside(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.old")


def _remove(path: Path) -> None:
    """Remove a folder, or the link that stands for it; that there is none is well."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step, so that a kill leaves either the old artifact or the new (renameat2, Linux)."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        done = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0
    except AttributeError:
        done = False
    if not done:  # another system or file system: the name is free for a moment
        os.rename(other, _aside(other))
        os.rename(one, other)
        os.rename(_aside(other), one)
