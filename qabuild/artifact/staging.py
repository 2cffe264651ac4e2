"""Stages an artifact and moves it to its final name atomically, once its verification has run.

Beside artifacts/NAME there may be NAME.failed, whose verification failed, and two folders that only a killed build
leaves: .NAME.partial, the staging folder, and .NAME.old, see `_exchange`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from qabuild.artifact import failed_folder, readme
from qabuild.errors import BadTarget
from qabuild.system import files
from qabuild.system.files import errors_explained
from qabuild.system.sealed import MANIFEST

REMEDY = "make room or make it writable, or name another with --output"


def require_ours(goal: Path) -> None:
    """Raise BadTarget where the artifact would replace, and so delete, anything but an artifact."""
    for path in (goal, failed_folder(goal)):
        if os.path.lexists(path) and not (path / MANIFEST).is_file():
            raise BadTarget(
                f"{path}: is not an artifact, and would be replaced by one",
                "move it away, or name another folder with --output",
            )


@contextmanager
def staged(goal: Path) -> Iterator[Path]:
    """An empty staging folder beside `goal`, removed afterwards."""
    stage = _stage(goal)
    try:
        stage.mkdir(parents=True)
        yield stage
    finally:
        with suppress(OSError):  # the next build tries again, and reports a failure
            _remove(stage)


def clean_up(goal: Path) -> None:
    """Remove what a killed build left, and restore the artifact that it may have moved away, see `_exchange`."""
    _remove(_stage(goal))
    if os.path.lexists(goal):
        _remove(_old(goal))
    elif _old(goal).exists():
        os.rename(_old(goal), goal)


def require_writable(output: Path) -> None:
    """Raise QABuildError where the output folder cannot be made, or nothing can be written into it."""
    files.require_writable(output, "the output folder", REMEDY)


def disk_explained(output: Path) -> AbstractContextManager[None]:
    """Inside the block, a full or read-only disk raises QABuildError that names the output folder."""
    return errors_explained(output, "the output folder", REMEDY)


def promote(stage: Path, goal: Path, *, passed: bool) -> Path:
    """Move the staged artifact to its final name, which is returned: NAME if it passed, else NAME.failed."""
    destination = goal if passed else failed_folder(goal)
    _copy_card(goal, stage)
    _remove(failed_folder(goal))
    if os.path.lexists(destination):
        _exchange(stage, destination)  # the replaced artifact is now at `stage`, and is removed with it
    else:
        os.rename(stage, destination)
    return destination


def _copy_card(goal: Path, stage: Path) -> None:
    """Copy the user content of the replaced artifact's model card."""
    try:
        text = files.read(goal / readme.FILE, follow=False).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, files.NotRegular):  # a link is no card
        return
    with suppress(BadTarget):  # a card that cannot be parsed is copied unchanged
        text = readme.without_generated(text)
    (stage / readme.FILE).write_text(text, encoding="utf-8")


def _stage(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.partial")


def _old(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.old")


def _remove(path: Path) -> None:
    """Remove a folder, or a symbolic link to one, if it exists."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders atomically (renameat2, Linux), so that a kill leaves either the old artifact or the new one."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        swapped = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0
    except AttributeError:
        swapped = False
    if not swapped:  # not supported by this system or file system: for a moment the name does not exist
        os.rename(other, _old(other))
        os.rename(one, other)
        os.rename(_old(other), one)
