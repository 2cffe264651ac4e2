"""Pins: which bytes a target's Hub ids and files stand for, in a lock file beside it.

`targets/x.lock` states what `targets/x.toml` asked for and what that was: the commit sha and digest of the checkpoint,
the commit sha and fingerprint of each data set. A target is read through its lock where there is one, so that it means
the same bytes on every machine and every day.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from qabuild.errors import BadTarget
from qabuild.models.calibration import Source
from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.training.options import Train
from qabuild.system import files, hub
from qabuild.system.files import explained
from qabuild.system.frozen import Frozen
from qabuild.target.lineage import Trained, pinned, sources, trainings
from qabuild.target.model import Target, Verify
from qabuild.target.paths import require_paths
from qabuild.target.read import load as load_target


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
    checkpoints: tuple[CheckpointPin, ...] = Field((), strict=False)
    """Others that its checkpoint is trained from: teachers, and what those are trained from."""
    datasets: tuple[DataPin, ...] = Field((), strict=False)
    """What is learnt from or calibrated on."""


def path_of(target: Path) -> Path:
    """The lock file of a target file."""
    return target.with_suffix(".lock")


def load(path: str | Path, overrides: Sequence[str] = (), *, locked: bool = False) -> Target:
    """Read the target at `path` through its lock, if it has one.

    What the target no longer asks for, the lock does not pin. With `locked` that is BadTarget, and so is no lock.
    Raises BadTarget for what `qabuild.target.read.load` refuses, and for a damaged lock.
    """
    path = Path(path)
    target = load_target(path, overrides)
    lock = read(path_of(path))
    pins_checkpoint = lock is not None and _asked_checkpoint(lock) == _asked_of(target.checkpoint)
    pins_data = lock is not None and _asked_data(lock.verify) == _data_of(target.verify)
    pins = _learning_pins(target, lock)
    if locked and not (pins_checkpoint and pins_data and not pins.missing):
        raise BadTarget(_unlocked(target, path_of(path), lock, pins_checkpoint, pins), f"run `qabuild lock {path}`")
    if lock and pins_checkpoint:
        pins_to = {"revision": lock.checkpoint.commit, "digest": lock.checkpoint.digest}
        target = target.model_copy(update={"checkpoint": target.checkpoint.model_copy(update=pins_to)})
    if lock and pins_data:
        pins_to = {"revision": lock.verify.commit, "fingerprint": lock.verify.fingerprint}
        target = target.model_copy(update={"verify": target.verify.model_copy(update=pins_to)})
    if found := pins.calibration:
        pins_to = {"calibration_revision": found.commit, "calibration_fingerprint": found.fingerprint}
        target = target.model_copy(update={"backend": target.backend.model_copy(update=pins_to)})
    if isinstance(target.origin, Trained):
        target = target.with_origin(pinned(target.origin, pins.checkpoints, pins.trains))
    return target


def make(target: Target, *, offline: bool = False) -> Lock:
    """Look up what `target`, read without a lock, stands for now. Downloads what is not in the cache yet."""
    from qabuild.models.checkpoint.resolve import resolve
    from qabuild.qa import data

    def checkpoint(source: CheckpointSource, head: bool) -> CheckpointPin:
        found = resolve(source.model, source.revision, head=head, offline=offline)
        return CheckpointPin(**_asked_of(source), commit=found.revision, digest=found.digest)

    def questions(asked: Train | Verify | Source) -> DataPin:
        share = asked.max_misplaced if isinstance(asked, Train) else 0.0
        found = data.load(
            asked.dataset, revision=asked.revision, split=asked.split, max_misplaced=share, offline=offline
        )
        return DataPin(**_data_of(asked), commit=found.revision, fingerprint=found.fingerprint)

    require_paths(target)
    trained = list(trainings(target.origin))
    others = [source for source in dict.fromkeys(sources(target.origin)) if source != target.checkpoint]
    calibrated = _calibration(target)
    learnt: list[Train | Source] = [each.train for each in trained] + ([calibrated] if calibrated else [])
    return Lock(
        checkpoint=checkpoint(target.checkpoint, head=not trained),
        verify=questions(target.verify),
        checkpoints=tuple(checkpoint(source, head=False) for source in others),
        datasets=tuple(dict.fromkeys(map(questions, learnt))),
    )


def write(lock: Lock, path: Path) -> bool:
    """Put the lock file at `path`, whole or not at all; returns whether that changed anything."""
    _refuse_folder(path)
    lines = ["# Written by `qabuild lock`; keep it under version control beside its target."]
    for name, pins in lock.model_dump(exclude_none=True).items():
        header = f"[[{name}]]" if isinstance(pins, tuple) else f"[{name}]"
        for table in pins if isinstance(pins, tuple) else (pins,):
            lines += ["", header, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    text = "\n".join(lines) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    place = path.resolve()  # a symbolic link stays one
    with explained(place.parent, "the lock's folder", "make room or make it writable"):
        files.write(place, text.encode())
    return True


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise BadTarget(
            f"{path}: a folder, where the lock of {path.with_suffix('.toml')} is looked for", "move it away"
        )


def read(path: Path) -> Lock | None:
    """The lock file at `path`, or None where there is none."""
    _refuse_folder(path)
    try:
        return Lock.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        why = str(error).splitlines()[0]
        raise BadTarget(f"{path}: damaged: {why}", f"run `qabuild lock {path.with_suffix('.toml')}`") from None


@dataclass(frozen=True, kw_only=True)
class _LearningPins:
    """What a lock pins of the trainings that lead to a checkpoint, and of what is calibrated on."""

    checkpoints: Mapping[CheckpointSource, CheckpointSource]
    trains: Mapping[Train, Train]
    calibration: DataPin | None
    missing: Sequence[str]
    """What they ask for and the lock does not pin."""


def _learning_pins(target: Target, lock: Lock | None) -> _LearningPins:
    checkpoints, trains, missing = {}, {}, []
    pins = (lock.checkpoint, *lock.checkpoints) if lock else ()
    trained = list(trainings(target.origin))
    for source in sources(target.origin) if trained else ():
        pin = next((pin for pin in pins if pin.model_dump(include={"model", "revision"}) == _asked_of(source)), None)
        if pin:
            checkpoints[source] = source.model_copy(update={"revision": pin.commit, "digest": pin.digest})
        else:
            missing.append(_name(source.model))
    for each in trained:
        if found := _pin_of(each.train, lock):
            pinned_to = {"revision": found.commit, "fingerprint": found.fingerprint}
            trains[each.train] = each.train.model_copy(update=pinned_to)
        else:
            missing.append(_name(each.train.dataset))
    calibrated = _calibration(target)
    calibration = _pin_of(calibrated, lock) if calibrated else None
    if calibrated and not calibration:
        missing.append(_name(calibrated.dataset))
    return _LearningPins(checkpoints=checkpoints, trains=trains, calibration=calibration, missing=missing)


def _calibration(target: Target) -> Source | None:
    """The data set that compiling `target` is calibrated on."""
    return target.calibrated.source if target.calibrated else None


def _pin_of(asked: Train | Source, lock: Lock | None) -> DataPin | None:
    return next((pin for pin in lock.datasets if _asked_data(pin) == _data_of(asked)), None) if lock else None


def _asked_of(source: CheckpointSource) -> dict[str, Any]:
    """What is asked for, without paths, which differ between machines."""
    return {"model": _name(source.model), "revision": source.revision}


def _data_of(asked: Train | Verify | Source) -> dict[str, Any]:
    return {"dataset": _name(asked.dataset), "revision": asked.revision, "split": asked.split}


def _asked_checkpoint(lock: Lock) -> dict[str, Any]:
    return lock.checkpoint.model_dump(include={"model", "revision"})


def _asked_data(pin: DataPin) -> dict[str, Any]:
    return pin.model_dump(include={"dataset", "revision", "split"})


def _name(source: str) -> str:
    return Path(source).name if hub.is_path(source) else source


def _unlocked(target: Target, path: Path, lock: Lock | None, pins_checkpoint: bool, pins: _LearningPins) -> str:
    if lock is None:
        return f"{path}: there is no lock, and --locked builds nothing without one"
    asked, locked = (
        (_data_of(target.verify), _asked_data(lock.verify))
        if pins_checkpoint
        else (_asked_of(target.checkpoint), _asked_checkpoint(lock))
    )
    changes = [f"{key} {locked[key]} became {asked[key]}" for key in asked if asked[key] != locked[key]]
    changes += [f"{name} is not pinned" for name in pins.missing]
    return f"{path}: the target changed after it was locked: {', '.join(changes)}"
