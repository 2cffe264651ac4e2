"""Pins: which bytes a target's Hub ids and files stand for, in a lock file beside it.

`targets/x.lock` states what `targets/x.toml` asked for and what that was: the commit sha and digest of the checkpoint,
the commit sha and fingerprint of the data set. A target is read through its lock where there is one, so that it means
the same bytes on every machine and every day.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qabuild import hub
from qabuild.backends import Frozen
from qabuild.errors import BadTarget
from qabuild.target import Target
from qabuild.target import load as load_target


class CheckpointPin(Frozen):
    """What was asked for, and what it was."""

    model: str
    revision: str | None = None
    commit: str | None = None
    digest: str


class DataPin(Frozen):
    """What was asked for, and what it was."""

    dataset: str
    revision: str | None = None
    split: str
    commit: str | None = None
    fingerprint: str


class Lock(Frozen):
    """The content of a lock file."""

    checkpoint: CheckpointPin
    verify: DataPin


def path_of(target: Path) -> Path:
    """The lock file of a target file."""
    return target.with_suffix(".lock")


def load(path: str | Path, overrides: Sequence[str] = (), *, locked: bool = False) -> Target:
    """Read the target at `path` through its lock, if it has one.

    What the target no longer asks for, the lock does not pin. With `locked` that is BadTarget, and so is no lock.
    Raises BadTarget for what `qabuild.target.load` refuses, and for a damaged lock.
    """
    path = Path(path)
    target = load_target(path, overrides)
    lock = read(path_of(path))
    pins_checkpoint = lock is not None and _asked_checkpoint(lock) == _checkpoint_of(target)
    pins_data = lock is not None and _asked_data(lock) == _data_of(target)
    if locked and not (pins_checkpoint and pins_data):
        raise BadTarget(_unlocked(target, path_of(path), lock, pins_checkpoint), f"run `qabuild lock {path}`")
    if lock and pins_checkpoint:
        pinned = {"revision": lock.checkpoint.commit, "digest": lock.checkpoint.digest}
        target = target.model_copy(update={"checkpoint": target.checkpoint.model_copy(update=pinned)})
    if lock and pins_data:
        pinned = {"revision": lock.verify.commit, "fingerprint": lock.verify.fingerprint}
        target = target.model_copy(update={"verify": target.verify.model_copy(update=pinned)})
    return target


def make(target: Target, *, offline: bool = False) -> Lock:
    """Look up what `target`, read without a lock, stands for now. Downloads what is not in the cache yet."""
    from qabuild import data
    from qabuild.checkpoint import resolve

    checkpoint = resolve(target.checkpoint.model, target.checkpoint.revision, offline=offline)
    questions = data.load(
        target.verify.dataset, revision=target.verify.revision, split=target.verify.split, offline=offline
    )
    return Lock(
        checkpoint=CheckpointPin(**_checkpoint_of(target), commit=checkpoint.revision, digest=checkpoint.digest),
        verify=DataPin(**_data_of(target), commit=questions.revision, fingerprint=questions.fingerprint),
    )


def write(lock: Lock, path: Path) -> bool:
    """Put the lock file at `path`, whole or not at all; returns whether that changed anything."""
    lines = ["# Written by `qabuild lock`; keep it under version control beside its target."]
    for table, pins in lock.model_dump(exclude_none=True).items():
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in pins.items())]
    text = "\n".join(lines) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return True


def read(path: Path) -> Lock | None:
    """The lock file at `path`, or None where there is none."""
    try:
        return Lock.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise BadTarget(f"{path}: damaged: {why}", f"run `qabuild lock {path.with_suffix('.toml')}`") from None


def _checkpoint_of(target: Target) -> dict[str, Any]:
    """What the target asks for, without paths, which differ between machines."""
    return {"model": _name(target.checkpoint.model), "revision": target.checkpoint.revision}


def _data_of(target: Target) -> dict[str, Any]:
    verify = target.verify
    return {"dataset": _name(verify.dataset), "revision": verify.revision, "split": verify.split}


def _asked_checkpoint(lock: Lock) -> dict[str, Any]:
    return lock.checkpoint.model_dump(include={"model", "revision"})


def _asked_data(lock: Lock) -> dict[str, Any]:
    return lock.verify.model_dump(include={"dataset", "revision", "split"})


def _name(source: str) -> str:
    return Path(source).name if hub.is_path(source) else source


def _unlocked(target: Target, path: Path, lock: Lock | None, pins_checkpoint: bool) -> str:
    if lock is None:
        return f"{path}: there is no lock, and --locked builds nothing without one"
    asked, pinned = (
        (_data_of(target), _asked_data(lock)) if pins_checkpoint else (_checkpoint_of(target), _asked_checkpoint(lock))
    )
    changed = ", ".join(f"{key} {pinned[key]} became {asked[key]}" for key in asked if asked[key] != pinned[key])
    return f"{path}: the target changed after it was locked: {changed}"
