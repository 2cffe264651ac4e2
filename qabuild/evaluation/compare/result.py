"""What a comparison found, as values; no measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qabuild.artifact.evidence import Gate
from qabuild.errors import QABuildError

Interval = tuple[float, float]
"""95 %."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Scores of the answers that were timed, in per cent."""

    exact_match: float
    f1: float
    f1_interval: Interval | None
    """Paired bootstrap over the questions: the baseline's F1, plus where the difference to it lies."""
    f1_retention: float | None
    """F1 over that of the baseline; None where the baseline was not measured."""


@dataclass(frozen=True, kw_only=True)
class LengthSpeed:
    """Full batches of windows of about one length through the model alone."""

    tokens: int
    """Length that the windows were padded to, rounded up to a multiple of 32."""
    windows_per_second: float
    windows: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Questions a second at one batch size, all contestants taking turns."""

    batch_size: int
    questions: int
    rounds: int
    samples_per_second: float
    """Of the whole pipeline: tokenising, model, finding the answer."""
    model_samples_per_second: float
    """As if nothing but the model took time."""
    speedup: float | None
    """Samples/s over those of the baseline; None where the baseline was not measured."""
    speedup_interval: Interval | None
    """Bootstrap over the rounds."""
    by_length: Sequence[LengthSpeed]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Single questions, one after another, through the whole pipeline."""

    median: float
    """Milliseconds."""
    p99: float
    milliseconds: Sequence[float]
    """Of each question, in the order asked."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A question that an artifact answers otherwise than the baseline."""

    id: str
    answer: str
    begin: int
    end: int
    """Where in the context the answer stands, in characters."""
    f1_difference: float
    """F1 of the answer less that of the baseline's, in points; negative where it lost."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one artifact did."""

    name: str
    artifact: str
    manifest: Mapping[str, Any]
    """What it was built from, with what: checkpoint, backend, runtime, versions, record; and the manifest's digest."""
    size: int
    """Bytes of all sealed files but the reference."""
    load_seconds: float
    """Hashing and loading in a fresh process, imports included."""
    peak_memory: int
    """Bytes of main memory that the process held at most, libraries included."""
    accuracy: Accuracy
    throughput: Sequence[Throughput]
    """By batch size; the first is that of the run over all questions, whose answers were scored."""
    latency: Latency | None
    gates: Sequence[Gate]
    """Whether what was timed answers as what was verified."""
    changes: Sequence[Change]

    @property
    def failed_gates(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One that could not be measured, and why."""

    name: str
    artifact: str
    error: str
    hint: str | None
    status: int

    @classmethod
    def of(cls, name: str, folder: Path, error: QABuildError) -> Failure:
        return cls(name=name, artifact=str(folder), error=error.message, hint=error.hint, status=error.exit_status)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question that some artifact answers otherwise than the baseline, and what the baseline answers."""

    question: str
    context: str
    gold: Sequence[tuple[str, int]]
    """Each gold answer, and where it begins."""
    answer: str
    begin: int
    end: int
    f1: float


@dataclass(frozen=True, kw_only=True)
class Time:
    """Where the time went, in seconds."""

    loading: float
    measuring: float
    """From when all were loaded until the last answer."""
    answering: float
    """Of that, within the artifacts' own pipelines."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Artifacts side by side."""

    baseline: str | None
    """Name of the one that the others are compared with; None where the requested one could not be measured."""
    data: Mapping[str, Any]
    measured: Sequence[Measured]
    failures: Sequence[Failure]
    asked: Mapping[str, Asked]
    """Every question among the `changes`, by id."""
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    time: Time
    compared_at: str
    """UTC, ISO 8601."""

    @property
    def passed(self) -> bool:
        """Whether all were measured, and every one answered as it did when it was verified."""
        return not self.failures and not any(each.failed_gates for each in self.measured)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "passed": self.passed}
