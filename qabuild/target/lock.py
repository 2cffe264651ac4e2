"""Lock files: pin the exact bytes of a target's Hub ids and files.

`targets/x.lock` records what `targets/x.toml` names and what it resolved to: the commit sha and digest of the
checkpoint, the commit sha and fingerprint of each data set, and the widths that a build chose for a speedup. A target
with a lock is read through it, so it means the same bytes on every machine and every day.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from qabuild.errors import BadTarget
from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.pruning.options import Pair
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.system import arguments, documents, files, hub
from qabuild.system.files import errors_explained
from qabuild.system.frozen import Frozen
from qabuild.target.lineage import Derived, derivations, pinned, sources, training_data
from qabuild.target.model import Target
from qabuild.target.paths import require_paths
from qabuild.target.read import applicable
from qabuild.target.read import load as load_target


class CheckpointPin(Frozen):
    """A checkpoint as the target names it, and the commit and digest it resolved to."""

    model: str
    revision: str | None = None
    commit: str | None = None
    digest: str


class DataPin(Frozen):
    """A data set as the target names it, and the commit and fingerprint it resolved to."""

    dataset: str
    configuration: str | None = None
    revision: str | None = None
    split: str
    commit: str | None = None
    fingerprint: str


class WidthsPin(Frozen):
    """The widths that a build chose for the `prune.speedup` of a target."""

    target: str
    chosen_by: str
    """SHA-256 of the keys of the target that decide them, see `chosen_by`."""
    widths: tuple[Pair, ...] = Field(strict=False)


class Lock(Frozen):
    """The content of a lock file."""

    checkpoint: CheckpointPin
    verify: DataPin
    checkpoints: tuple[CheckpointPin, ...] = Field((), strict=False)
    """Other checkpoints that training reads: teachers, and those that the teachers are trained from."""
    datasets: tuple[DataPin, ...] = Field((), strict=False)
    """Data sets for training and calibration."""
    widths: tuple[WidthsPin, ...] = Field((), strict=False)
    """So that a build on another machine makes the same model, whatever is as fast there."""


def path_of(target: Path) -> Path:
    """The lock file of a target file."""
    return target.with_suffix(".lock")


def load_all(paths: Sequence[Path], overrides: Sequence[str] = (), *, locked: bool = False) -> list[Target]:
    """`load` for each path, with those of the overrides that apply to it, see `qabuild.target.read.applicable`."""
    return [load(path, chosen, locked=locked) for path, chosen in zip(paths, applicable(paths, overrides), strict=True)]


def load(path: str | Path, overrides: Sequence[str] = (), *, locked: bool = False) -> Target:
    """Read the target at `path` through its lock, if it has one.

    A pin that no longer matches the target is ignored. With `locked`, a mismatch or a missing lock raises BadTarget.
    Raises BadTarget for what `qabuild.target.read.load` refuses, and for a damaged lock.
    """
    path = Path(arguments.path("target", path))
    target = load_target(path, overrides)
    lock = read(path_of(path))
    pins_checkpoint = lock is not None and _pins(lock.checkpoint, _checkpoint_fields(target.checkpoint))
    pins_data = lock is not None and _pins(lock.verify, _data_fields(target.verify.data))
    pins = _training_pins(target, lock)
    if locked and not (pins_checkpoint and pins_data and not pins.missing):
        hint = f"run `qabuild lock {path}`{', and leave out --set: a lock does not cover it' * bool(overrides)}"
        raise BadTarget(_unlocked(target, path_of(path), lock, pins_checkpoint, pins), hint)
    if lock and pins_checkpoint:
        pin = {"revision": lock.checkpoint.commit, "digest": lock.checkpoint.digest}
        target = target.model_copy(update={"checkpoint": target.checkpoint.model_copy(update=pin)})
    if lock and pins_data:
        pinned_data = target.verify.data.pinned(lock.verify.commit, lock.verify.fingerprint)
        target = target.model_copy(update={"verify": target.verify.with_data(pinned_data)})
    if target.calibrated and target.calibrated.data in pins.datasets:
        pinned_options = target.calibrated.with_data(pins.datasets[target.calibrated.data])
        target = target.model_copy(update={"backend": pinned_options})
    if isinstance(target.origin, Derived):
        widths = lock.widths if lock else ()
        target = target.with_origin(
            pinned(
                target.origin, pins.checkpoints, lambda each: _with_widths(each.with_datasets(pins.datasets), widths)
            )
        )
    return target


def make(target: Target, *, offline: bool = False) -> Lock:
    """Resolve what `target`, read without a lock, names now. Downloads what is not cached yet.

    Raises UntrustedInput for what differs from the target's own pins.
    """
    from qabuild.models.checkpoint.resolve import resolve
    from qabuild.qa import data

    def checkpoint(source: CheckpointSource, head: bool) -> CheckpointPin:
        resolved = resolve(source.model, source.revision, digest=source.digest, head=head, offline=offline)
        fields = {**_checkpoint_fields(source), "commit": resolved.revision, "digest": resolved.digest}
        return CheckpointPin(**fields)

    def questions(ref: DatasetRef) -> DataPin:
        dataset = data.load(ref.whole().pinned(ref.revision, ref.fingerprint), offline=offline)
        fields = {**_data_fields(ref), "commit": dataset.revision, "fingerprint": dataset.fingerprint}
        return DataPin(**fields)

    require_paths(target)
    derived = isinstance(target.origin, Derived)
    others = [source for source in dict.fromkeys(sources(target.origin)) if source != target.checkpoint]
    return Lock(
        checkpoint=checkpoint(target.checkpoint, head=not derived),
        verify=questions(target.verify.data),
        checkpoints=tuple(checkpoint(source, head=False) for source in others),
        datasets=tuple(dict.fromkeys(map(questions, training_data(target).values()))),
    )


def write(lock: Lock, path: Path) -> bool:
    """Write the lock file to `path` atomically; returns whether its content changed."""
    _refuse_folder(path)
    lines = ["# Written by `qabuild lock`; keep it under version control beside its target."]
    for name, pins in lock.model_dump(exclude_none=True).items():
        header = f"[[{name}]]" if isinstance(pins, tuple) else f"[{name}]"
        for table in pins if isinstance(pins, tuple) else (pins,):
            lines += ["", header, *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    text = "\n".join(lines) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    file = path.resolve()  # write through a symbolic link, do not replace it
    with errors_explained(file.parent, "the lock's folder", "make room or make it writable"):
        files.write(file, text.encode())
    return True


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise BadTarget(
            f"{path}: a folder, but the lock file of {path.with_suffix('.toml')} is expected there", "move it away"
        )


def read(path: Path) -> Lock | None:
    """The lock file at `path`, or None where it does not exist."""
    _refuse_folder(path)
    try:
        return Lock.model_validate(tomllib.loads(files.read(path).decode()))
    except FileNotFoundError:
        return None
    except (files.NotRegular, ValueError, RecursionError) as error:
        why = documents.first_mistake(error) if isinstance(error, ValidationError) else error
        raise BadTarget(f"{path}: damaged: {why}", f"run `qabuild lock {path.with_suffix('.toml')}`") from None


@dataclass(frozen=True, kw_only=True)
class _TrainingPins:
    """What a lock pins of the training stages and of the calibration data."""

    checkpoints: Mapping[CheckpointSource, CheckpointSource]
    datasets: Mapping[DatasetRef, DatasetRef]
    missing: Sequence[str]
    """Names that the target uses and the lock does not pin."""


def _training_pins(target: Target, lock: Lock | None) -> _TrainingPins:
    checkpoints, datasets, missing = {}, {}, []
    pins = (lock.checkpoint, *lock.checkpoints) if lock else ()
    for source in dict.fromkeys(sources(target.origin)) if isinstance(target.origin, Derived) else ():
        fields = _checkpoint_fields(source)
        pin = next((pin for pin in pins if _pins(pin, fields)), None)
        if pin:
            checkpoints[source] = source.model_copy(update={"revision": pin.commit, "digest": pin.digest})
        else:
            missing.append(_name(source.model))
    for ref in training_data(target).values():
        if pinned_data := _pin_of(ref, lock):
            datasets[ref] = ref.pinned(pinned_data.commit, pinned_data.fingerprint)
        else:
            missing.append(ref.shown)
    for derived in derivations(target.origin):
        prune = _with_widths(derived.target, lock.widths if lock else ()).prune
        if derived.stage == "prune" and prune and prune.speedup:
            missing.append(f"prune.speedup = {prune.speedup:g} (its widths, once a build has chosen them)")
    return _TrainingPins(checkpoints=checkpoints, datasets=datasets, missing=missing)


def _with_widths(target: Target, pins: Sequence[WidthsPin]) -> Target:
    """The target, with the pinned widths in place of its speedup."""
    prune = target.prune
    if prune is None or prune.speedup is None:
        return target
    widths = widths_of(target, pins)
    if widths is None:
        return target
    return target.model_copy(update={"prune": prune.model_copy(update={"speedup": None, "widths": widths})})


def widths_of(target: Target, pins: Sequence[WidthsPin]) -> tuple[Pair, ...] | None:
    """The widths that are pinned for the target's `prune.speedup`, if they were chosen by what decides them now."""
    digest = chosen_by(target)
    return next((pin.widths for pin in pins if (pin.target, pin.chosen_by) == (target.name, digest)), None)


def chosen_by(target: Target) -> str:
    """SHA-256, in hex, of what decides the widths of a `prune.speedup`, beside the machine and the bytes of its inputs.

    Without paths and pins, which differ between machines and between a target and its lock.
    """
    from qabuild.models.pruning.latency import briefly

    assert target.prune
    elsewhere = {"dataset", "revision", "fingerprint", "recover"}
    decided = {
        "pruned": _made_of(target, elsewhere),
        "prune": {**target.prune.model_dump(mode="json", exclude=elsewhere), "dataset": target.prune.data.shown},
        "backend": briefly(target.backend).model_dump(mode="json"),
        "runtime": target.runtime.model_dump(mode="json"),
        "answer": target.answer.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def _made_of(target: Target, elsewhere: set[str]) -> list[Any]:
    """The names of the checkpoints that what is pruned comes from, and the tables of the stages that made it."""
    made: list[Any] = [_name(source.model) for source in sources(target.origin)]
    for each in derivations(target.origin):
        if (each.name, each.stage) == (target.name, "prune"):
            break
        distill = each.target.distill if each.stage == "train" else None
        weights = [distill.alpha, distill.temperature] if distill else None
        made.append([each.stage, each.table.model_dump(mode="json", exclude=elsewhere), weights])
    return made


def _pin_of(ref: DatasetRef, lock: Lock | None) -> DataPin | None:
    return next((pin for pin in lock.datasets if _pins(pin, _data_fields(ref))), None) if lock else None


def _pins(pin: CheckpointPin | DataPin, fields: Mapping[str, Any]) -> bool:
    """Whether the pin is one of what the target names with these fields."""
    return _as_pinned(pin, fields) == fields


def _as_pinned(pin: CheckpointPin | DataPin, fields: Mapping[str, Any]) -> dict[str, Any]:
    return pin.model_dump(include=set(fields))


def _checkpoint_fields(source: CheckpointSource) -> dict[str, Any]:
    """The fields that the target names, without paths, which differ between machines; a digest where it pins one."""
    own = {"digest": source.digest} if source.digest else {}
    return {"model": _name(source.model), "revision": source.revision, **own}


def _data_fields(ref: DatasetRef) -> dict[str, Any]:
    """The fields that the target names, with a fingerprint where it pins one."""
    return {
        "dataset": ref.shown,
        "configuration": ref.configuration,
        "revision": ref.revision,
        "split": ref.split,
        **({"fingerprint": ref.fingerprint} if ref.fingerprint else {}),
    }


def _name(source: str) -> str:
    return Path(source).name if hub.is_path(source) else source


def _unlocked(target: Target, path: Path, lock: Lock | None, pins_checkpoint: bool, pins: _TrainingPins) -> str:
    if lock is None:
        return f"{path}: no such lock file, and --locked requires one"
    pin = lock.verify if pins_checkpoint else lock.checkpoint
    current = _data_fields(target.verify.data) if pins_checkpoint else _checkpoint_fields(target.checkpoint)
    locked = _as_pinned(pin, current)
    changes = [
        f"{key} {locked[key] or '(none)'} became {current[key] or '(none)'}"
        for key in current
        if current[key] != locked[key]
    ]
    changes += [f"{name} is not pinned" for name in pins.missing]
    return f"{path}: the target changed after it was locked: {', '.join(changes)}"
