"""Ranks artifacts that took turns at the same questions; any two are compared by the same rounds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qabuild.artifact.manifest import open_artifact
from qabuild.evaluation.bootstrap import median_ratio_interval, ratio_interval
from qabuild.evaluation.compare import Comparison, compare
from qabuild.evaluation.compare.result import Interval, Measured
from qabuild.system import documents, files, machine, packages
from qabuild.tuning.objective import Objective

if TYPE_CHECKING:
    from qabuild.tuning.job import Job


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What was measured of an artifact that took turns with others."""

    __pydantic_config__ = documents.CLOSED

    seconds: Sequence[float]
    """Of each round, in batches."""
    milliseconds: Sequence[float]
    """Of each question that was answered alone; empty unless latency was measured."""
    size: int
    """In bytes."""

    @classmethod
    def of(cls, measured: Measured) -> Timings:
        alone = measured.latency.milliseconds if measured.latency else ()
        return cls(seconds=measured.throughput[0].seconds, milliseconds=alone, size=measured.size)

    @property
    def latency(self) -> float | None:
        """Median of single questions, in milliseconds."""
        return median(self.milliseconds) if self.milliseconds else None


def times_better(one: Timings, other: Timings, objective: Objective) -> tuple[float, Interval]:
    """How many times better `one` is than `other`, and the 95 % interval: speed, or smallness."""
    if objective == "size":
        ratio = other.size / one.size
        return ratio, (ratio, ratio)
    if objective == "latency":
        ratio = median(other.milliseconds) / median(one.milliseconds)
        return ratio, median_ratio_interval(other.milliseconds, one.milliseconds)
    if len(one.seconds) < 2:  # one round says nothing about the variance
        return sum(other.seconds) / sum(one.seconds), (0.0, inf)
    return sum(other.seconds) / sum(one.seconds), ratio_interval(other.seconds, one.seconds)


def ranked(timings: Mapping[str, Timings], objective: Objective) -> list[str]:
    """The names, best first."""

    def cost(name: str) -> float:
        timing = timings[name]
        if objective == "latency":
            return median(timing.milliseconds)
        return timing.size if objective == "size" else sum(timing.seconds)

    return sorted(timings, key=cost)


def equals(best: str, timings: Mapping[str, Timings], objective: Objective) -> list[str]:
    """The names that cannot be told from `best`, which is among them."""
    return [
        name
        for name, timing in timings.items()
        if name == best or times_better(timings[best], timing, objective)[1][0] <= 1
    ]


def run(artifacts: Sequence[Path], samples: int | None, job: Job) -> Comparison | None:
    """Compare artifacts that were verified here; None if there are none."""
    if not artifacts:
        return None
    return compare(
        artifacts,
        samples=samples,
        latency=job.objective == "latency",
        dataset=job.start.file,
        offline=job.offline,
        allow_native=True,  # this user compiled it here
        reporter=job.reporter,
    )


def preliminary(artifacts: Sequence[Path], job: Job) -> dict[str, Timings]:
    """The timings of screened artifacts by their names; those of an earlier run are read again.

    An artifact that cannot be compared is missing, and is tried again by the next run.
    """
    kept = job.folder / "comparisons" / f"{_key(artifacts, job.objective)}.json"
    if (timings := _read(kept)) is not None:
        return timings
    comparison = run(artifacts, None, job)
    assert comparison is not None
    timings = {measured.name: Timings.of(measured) for measured in comparison.measured}
    if not comparison.failures:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, json.dumps({name: asdict(each) for name, each in timings.items()}).encode())
    return timings


def _key(artifacts: Sequence[Path], objective: Objective) -> str:
    """What decides the timings: the artifacts, the machine and the versions of what runs them."""
    opened = [open_artifact(path) for path in artifacts]
    versions = packages.versions({name for artifact in opened for name in artifact.manifest.versions})
    decided: Any = [[artifact.digest for artifact in opened], objective, machine.describe(), versions]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


def _read(path: Path) -> dict[str, Timings] | None:
    try:
        document = documents.read_json(files.read(path))
        return {name: documents.typed(Timings, each) for name, each in document.items()}
    except (OSError, ValueError, AttributeError):
        return None
