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
from qabuild.system.version import VERSION
from qabuild.tuning.objective import Objective

if TYPE_CHECKING:
    from qabuild.tuning.job import Job

FOLDER = "comparisons"
"""Of what was measured when artifacts took turns; in the folder of the tuning."""
ADJECTIVE: dict[Objective, str] = {"throughput": "fast", "latency": "fast", "size": "small"}


@dataclass(frozen=True, kw_only=True)
class Timings:
    """What was measured of an artifact that took turns with others."""

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


def times(one: Timings, other: Timings, objective: Objective) -> str:
    """The same in words: "1.72 [1.60, 1.85] times as fast"."""
    ratio, (low, high) = times_better(one, other, objective)
    interval = "" if objective == "size" else f" [{low:.2f}, {high:.2f}]"
    return f"{ratio:.2f}{interval} times as {ADJECTIVE[objective]}"


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


def run(artifacts: Sequence[Path], samples: int | None, job: Job) -> Comparison:
    """Compare artifacts that were verified here, on `samples` questions or on all."""
    return compare(
        artifacts,
        samples=samples,
        latency=job.objective == "latency",
        dataset=job.start.file,
        offline=job.offline,
        allow_native=True,  # this user compiled it here
        reporter=job.reporter,
    )


def compared(
    artifacts: Sequence[Path], samples: int | None, job: Job, among: Sequence[Path] | None = None
) -> Comparison:
    """The same, or what an earlier run measured of the same artifacts: a comparison is a result like others.

    `artifacts` may be those that fit the memory, `among` all that were to be compared: an earlier run may have had more
    or less memory, and its result counts as well. What could not be compared to the end is not kept.
    """
    kept = job.folder / FOLDER / f"{_key(among or artifacts, samples, job.objective)}.json"
    wanted = {path.name for path in artifacts}
    if earlier := _read(kept):
        names = {measured.name for measured in earlier.measured}
        if names == wanted or (among and names <= {path.name for path in among}):
            return earlier
    comparison = run(artifacts, samples, job)
    if not comparison.failures:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, json.dumps(asdict(comparison), default=dict).encode())
    return comparison


def _key(artifacts: Sequence[Path], samples: int | None, objective: Objective) -> str:
    """What decides a comparison: the artifacts, the questions, the machine and the versions of what runs them."""
    opened = [open_artifact(path) for path in artifacts]
    versions = packages.versions({name for artifact in opened for name in artifact.manifest.versions})
    digests = sorted(artifact.digest for artifact in opened)
    decided: Any = [VERSION, digests, samples, objective, machine.describe(), versions]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()


def _read(path: Path) -> Comparison | None:
    try:
        return documents.typed(Comparison, documents.read_json(files.read(path)))
    except (OSError, ValueError):
        return None
