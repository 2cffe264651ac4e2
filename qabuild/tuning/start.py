"""What is tuned: the tables of a target without a backend, its checkpoint and its questions."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, MissingEnvironment
from qabuild.models.backends import BASELINE
from qabuild.models.calibration import Calibrated
from qabuild.models.runtime import Device
from qabuild.qa import data
from qabuild.qa.data.dataset_ref import DatasetRef, DatasetTable, require_source
from qabuild.system import machine
from qabuild.system.hub import SAMPLE, is_path
from qabuild.target import lock
from qabuild.target.lineage import Derived
from qabuild.target.model import Target
from qabuild.target.read import absolute_source, is_relative, relative_sources

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.system.reporter import Reporter

MAX_F1_DROP = 0.5
"""Points of F1 that may be lost where neither the user nor the target says."""
FROM_ORIGINAL = "max_f1_drop_from_original"
"""The gate on the loss of a checkpoint that was distilled or pruned."""
CONFIDENCE = 0.95
"""Of the interval whose end must keep the answers."""
CALIBRATION = "calibration"
"""What the names of a backend's options begin with that say on which questions it calibrates."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What all candidates have in common."""

    tables: Mapping[str, Any]
    """The tables of their targets, without backend and runtime."""
    calibration: Mapping[str, Any]
    """Options of backends that calibrate."""
    train: Mapping[str, Any]
    """The keys that name the questions to prune on."""
    relative: Collection[str]
    """The files and folders that were named by relative paths: absolute, and normalised."""
    train_dataset: str | None
    """The questions to calibrate and to prune on that the user named."""
    device: Device
    checkpoint: Checkpoint
    questions: int
    """Of the full verification."""
    file: str | None
    """Their file, if they come from one: artifacts do not hold its path."""
    max_f1_drop: float
    """Points of F1 that may be lost."""
    drop_gate: str
    """The gate that limits the points of F1 that may be lost."""
    is_pruned: bool


def read(
    source: str | os.PathLike[str],
    *,
    dataset: str | None,
    train_dataset: str | None,
    device: Device | None,
    max_f1_drop: float | None,
    offline: bool,
    reporter: Reporter,
) -> Start:
    """What `source` names: a target (.toml), or a checkpoint (a folder, a Hub id or "sample").

    A target's trainings are carried out. Without a `max_f1_drop`, it is the target's own, or else `MAX_F1_DROP`. Raises
    what reading a target, a checkpoint or questions raises, BadTarget where no question has an answer, and
    MissingEnvironment where the `device` is not here.
    """
    if device == "cuda" and not machine.gpus():
        raise MissingEnvironment("device cuda: there is no CUDA device here", "tune for the CPU, or on another machine")
    target = _target(source, dataset)
    calibration, train = _calibration(target, train_dataset), _train(target, train_dataset)
    for name in (target.verify.dataset, calibration.get(CALIBRATION), train.get("dataset")):
        if name is not None:  # before a target's trainings are carried out
            require_source(name)
    checkpoint = _checkpoint(target, offline, reporter)
    questions = data.load(target.verify.data, offline=offline)
    if not any(question.answers for question in questions.questions):
        raise BadTarget(
            f"{questions.name}: none of the questions has an answer, so no F1 can be measured",
            "name questions with gold answers (--data)",
        )
    gate = FROM_ORIGINAL if target.has_original else "max_f1_drop"
    if max_f1_drop is None:
        own: float | None = getattr(target.verify.gates, gate)
        max_f1_drop = MAX_F1_DROP if own is None else own
    return Start(
        tables=_tables(target, checkpoint, gate, max_f1_drop),
        calibration=calibration,
        train=train,
        relative=_relative(source, dataset, train_dataset),
        train_dataset=train_dataset,
        device=device or (target.runtime.device if _is_target(source) else "cuda" if machine.gpus() else "cpu"),
        checkpoint=checkpoint,
        questions=len(questions),
        file=target.verify.dataset if is_path(target.verify.dataset) else None,
        max_f1_drop=max_f1_drop,
        drop_gate=gate,
        is_pruned=target.prune is not None,
    )


def _is_target(source: str | os.PathLike[str]) -> bool:
    return str(source).endswith(".toml")


def _relative(source: str | os.PathLike[str], *datasets: str | None) -> frozenset[str]:
    names = [name for name in datasets if name is not None and is_relative(name)]
    stated: frozenset[str] = frozenset()
    if _is_target(source):
        stated = relative_sources(Path(source))
    elif is_relative(name := os.fspath(source)) or not isinstance(source, str):
        names += [] if os.path.isabs(name) else [name]
    return stated | {os.path.normpath(Path.cwd() / name) for name in names}


def _target(source: str | os.PathLike[str], dataset: str | None) -> Target:
    overrides: dict[str, Any] = {} if dataset is None else {"dataset": absolute_source(dataset, Path.cwd())}
    if _is_target(source):
        target = lock.load(Path(source))
        _require_one_file(target)
        if not overrides:
            return target
        others = dict.fromkeys(("configuration", "revision", "fingerprint", "columns"))
        return target.model_copy(update={"verify": target.verify.model_copy(update={**others, **overrides})})
    model = absolute_source(os.fspath(source), Path.cwd())
    if isinstance(source, os.PathLike):
        model = str(Path(model).absolute())
    if model == SAMPLE:
        overrides.setdefault("dataset", SAMPLE)
    tables = {"name": "tuned", "checkpoint": {"model": model}, "backend": {"name": BASELINE}, "verify": overrides}
    return Target.model_validate(tables)


def _require_one_file(target: Target) -> None:
    """Refuse a target whose stages are spread over several: its tables alone would lead to another checkpoint."""
    origin, count = target.origin, 0
    while isinstance(origin, Derived):
        origin, count = origin.start, count + 1
    if count > len(target.stages):
        raise BadTarget(
            f"{target.name}: trains or prunes the checkpoint of another target that is trained or pruned itself",
            "tune the checkpoint: `qabuild.train` returns its folder",
        )


def _checkpoint(target: Target, offline: bool, reporter: Reporter) -> Checkpoint:
    """The checkpoint that is compiled, trained if need be."""
    if isinstance(target.origin, Derived):
        from qabuild.builder.build import train

        return train(target, offline=offline, reporter=reporter)
    from qabuild.models.checkpoint.resolve import resolve

    source = target.origin
    return resolve(source.model, source.revision, digest=source.digest, offline=offline)


def _tables(target: Target, checkpoint: Checkpoint, gate: str, max_f1_drop: float) -> Mapping[str, Any]:
    """The target's tables with the gate; its other gates stay, but for a default that would refuse what is allowed."""
    excluded = {"name", "description", "backend", "runtime"}
    tables = target.model_dump(mode="json", exclude=excluded, exclude_defaults=True, exclude_none=True)
    if checkpoint.revision is not None and not target.stages:  # the commit, so that all candidates start from one
        tables["checkpoint"]["revision"] = checkpoint.revision
    gates = {"confidence": CONFIDENCE, **tables.get("verify", {}).get("gates", {}), gate: max_f1_drop}
    if "min_f1_retention" not in target.verify.gates.model_fields_set:
        gates["min_f1_retention"] = 0.0
    return {**tables, "verify": {**tables.get("verify", {}), "gates": gates}}


def _calibration(target: Target, train_dataset: str | None) -> Mapping[str, Any]:
    if train_dataset is not None:
        return {CALIBRATION: absolute_source(train_dataset, Path.cwd())}
    if isinstance(target.backend, Calibrated):
        options = target.backend.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        return {name: value for name, value in options.items() if name.startswith(CALIBRATION)}
    return {CALIBRATION: SAMPLE} if target.checkpoint.model == SAMPLE else {}


def _train(target: Target, train_dataset: str | None) -> Mapping[str, Any]:
    if train_dataset is not None:
        return {"dataset": absolute_source(train_dataset, Path.cwd())}
    refs = [ref for stage in target.stages for ref in target.stage_datasets(stage).values()]
    if isinstance(target.backend, Calibrated):
        refs.append(target.backend.data)
    if refs:
        return _keys(refs[0])
    return {"dataset": SAMPLE} if target.checkpoint.model == SAMPLE else {}


def _keys(ref: DatasetRef) -> Mapping[str, Any]:
    """The keys of a `DatasetTable` that name the same split."""
    table = DatasetTable(
        dataset=str(ref.dataset),
        configuration=ref.configuration,
        revision=ref.revision,
        fingerprint=ref.fingerprint,
        split=ref.split,
        max_misplaced=ref.max_misplaced,
        columns=ref.columns,
    )
    keys = table.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return {"dataset": table.dataset, **{key: value for key, value in keys.items() if value != {}}}
