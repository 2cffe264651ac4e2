"""Lineage of a checkpoint: it exists at its source, or a stage of a target derives it from another checkpoint.

Values only: `builder` turns them into steps, and `models` does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.target.model import Target


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A checkpoint that a stage of a target, such as its training, derives from another one."""

    target: Target
    """The target whose tables configure the stage."""
    stage: str
    """Name of the table, and of the step that produces the checkpoint."""
    start: Origin
    teacher: Origin | None = None
    """Origin of the teacher of a distillation or, of the stage `recover`, of what was pruned."""

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def table(self) -> Frozen:
        """The table of the stage."""
        return self.target.stage_table(self.stage)


Origin = CheckpointSource | Derived


def derivations(origin: Origin) -> Iterator[Derived]:
    """All stages that lead to a checkpoint, each once, dependencies first."""
    stages: list[Derived] = []
    _collect(origin, stages)
    yield from stages


def sources(origin: Origin) -> Iterator[CheckpointSource]:
    """The existing checkpoints that all derived ones start from."""
    for parent in (origin.start, origin.teacher) if isinstance(origin, Derived) else ():
        if parent is not None:
            yield from sources(parent)
    if isinstance(origin, CheckpointSource):
        yield origin


def original(origin: Origin) -> Origin | None:
    """The checkpoint that a derived one is to answer like; None for one that is not derived.

    The teacher of its last distillation. Without one, what its first pruning starts from; without pruning, what its
    first training does.
    """
    first = pruned = None
    while isinstance(origin, Derived):
        if origin.teacher and origin.stage == "train":
            return origin.teacher
        stage, first = origin.stage, origin.start
        pruned = first if stage == "prune" else pruned
        origin = first
    return pruned or first


def training_data(target: Target) -> dict[tuple[str, str], DatasetRef]:
    """The data sets that training or calibration reads, by target name and key."""
    calibration = target.datasets.get("backend.calibration")
    own = {(target.name, "backend.calibration"): calibration} if calibration else {}
    stages = {
        (derived.name, key): ref
        for derived in derivations(target.origin)
        for key, ref in derived.target.stage_datasets(derived.stage).items()
    }
    return {**stages, **own}


def pinned(
    origin: Origin,
    checkpoints: Mapping[CheckpointSource, CheckpointSource],
    pin: Callable[[Target], Target],
) -> Origin:
    """The same origin, with the sources that the targets name replaced by pinned ones, and the targets by `pin`."""
    if isinstance(origin, CheckpointSource):
        return checkpoints.get(origin, origin)
    return replace(
        origin,
        target=pin(origin.target),
        start=pinned(origin.start, checkpoints, pin),
        teacher=pinned(origin.teacher, checkpoints, pin) if origin.teacher else None,
    )


def _collect(origin: Origin | None, stages: list[Derived]) -> None:
    if isinstance(origin, Derived) and origin not in stages:
        _collect(origin.teacher, stages)
        _collect(origin.start, stages)
        stages.append(origin)
