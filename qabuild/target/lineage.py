"""Where a checkpoint comes from: it is found, or it is trained from another one.

The tables of a target that say so, and `Trained`, which puts them together across targets. Values only; `plan` makes
steps of them and `qabuild.models.training` carries those out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.training.options import Distill, Train


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A checkpoint that comes about by training."""

    name: str
    """Of the target that trains it."""
    start: Origin
    train: Train
    distill: Distill | None
    teacher: Origin | None
    """Where the teacher of `distill` comes from."""


Origin = CheckpointSource | Trained


def trainings(origin: Origin) -> Iterator[Trained]:
    """All trainings that lead to a checkpoint, each once and after those it needs."""
    seen: list[Trained] = []
    _collect(origin, seen)
    yield from seen


def sources(origin: Origin) -> Iterator[CheckpointSource]:
    """The checkpoints that are found, not made, and that all others start from."""
    for needed in (origin.start, origin.teacher) if isinstance(origin, Trained) else ():
        if needed is not None:
            yield from sources(needed)
    if isinstance(origin, CheckpointSource):
        yield origin


def pinned(
    origin: Origin, checkpoints: Mapping[CheckpointSource, CheckpointSource], trains: Mapping[Train, Train]
) -> Origin:
    """The same origin, with pinned sources in the place of those that were asked for."""
    if isinstance(origin, CheckpointSource):
        return checkpoints.get(origin, origin)
    return replace(
        origin,
        start=pinned(origin.start, checkpoints, trains),
        teacher=pinned(origin.teacher, checkpoints, trains) if origin.teacher else None,
        train=trains.get(origin.train, origin.train),
    )


def _collect(origin: Origin | None, seen: list[Trained]) -> None:
    if isinstance(origin, Trained) and origin not in seen:
        _collect(origin.teacher, seen)
        _collect(origin.start, seen)
        seen.append(origin)
