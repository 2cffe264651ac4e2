"""Where a checkpoint comes from: it is found, or a stage of a target makes it from another one.

Values only: `builder` makes steps of them, and `models` does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.target.model import Target


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A checkpoint that a stage of a target, such as its training, makes from another one."""

    target: Target
    """Whose tables say how."""
    stage: str
    """Name of the table, and of the step that makes the checkpoint."""
    start: Origin
    teacher: Origin | None = None
    """Where the teacher of a distillation comes from."""

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def table(self) -> Frozen:
        """The table of the stage."""
        return self.target.stage_table(self.stage)


Origin = CheckpointSource | Derived


def derivations(origin: Origin) -> Iterator[Derived]:
    """All stages that lead to a checkpoint, each once and after those it needs."""
    seen: list[Derived] = []
    _collect(origin, seen)
    yield from seen


def sources(origin: Origin) -> Iterator[CheckpointSource]:
    """The checkpoints that are found, not made, and that all others start from."""
    for needed in (origin.start, origin.teacher) if isinstance(origin, Derived) else ():
        if needed is not None:
            yield from sources(needed)
    if isinstance(origin, CheckpointSource):
        yield origin


def training_data(target: Target) -> dict[tuple[str, str], DatasetRef]:
    """The questions that training, or compiling, reads, by the name of the target and the key that name them."""
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
    datasets: Mapping[DatasetRef, DatasetRef],
) -> Origin:
    """The same origin, with pinned sources in the place of those that the targets name."""
    if isinstance(origin, CheckpointSource):
        return checkpoints.get(origin, origin)
    return replace(
        origin,
        target=origin.target.with_datasets(datasets),
        start=pinned(origin.start, checkpoints, datasets),
        teacher=pinned(origin.teacher, checkpoints, datasets) if origin.teacher else None,
    )


def _collect(origin: Origin | None, seen: list[Derived]) -> None:
    if isinstance(origin, Derived) and origin not in seen:
        _collect(origin.teacher, seen)
        _collect(origin.start, seen)
        seen.append(origin)
