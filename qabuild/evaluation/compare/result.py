"""The result of a comparison: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qabuild.artifact.evidence import Gate
from qabuild.errors import QABuildError

Interval = tuple[float, float]
"""Bounds of a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Scores of the timed answers, in per cent."""

    exact_match: float
    f1: float
    f1_interval: Interval | None
    """The baseline's F1 plus the interval of the difference to it: paired bootstrap over the questions."""
    f1_retention: float | None
    """F1 over the baseline's F1; None if the baseline was not measured."""
    batch_size: int | None = None
    """Windows per batch, where answers depend on the batch: of the sizes that a verification judges, the worst F1's."""


@dataclass(frozen=True, kw_only=True)
class LengthSpeed:
    """Speed of the model alone on full batches of windows of about one length."""

    tokens: int
    """Padded length of the windows, rounded up to a multiple of 32."""
    windows_per_second: float
    windows: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Throughput at one batch size, measured in rounds of all contestants."""

    batch_size: int
    questions: int
    rounds: int
    samples_per_second: float
    """Of the pipeline from end to end: tokenisation, model, decoding of the answer."""
    model_samples_per_second: float
    """Questions over the seconds spent in the model."""
    speedup: float | None
    """Samples/s over the baseline's; None if the baseline was not measured."""
    speedup_interval: Interval | None
    """Paired bootstrap over the rounds; None if there is only one."""
    by_length: Sequence[LengthSpeed]
    seconds: Sequence[float] = ()
    """Of each round."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of single questions, answered one after another by the pipeline from end to end."""

    median: float
    """Milliseconds."""
    p99: float
    milliseconds: Sequence[float]
    """Of each question, in their order."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """An answer that differs from the baseline's."""

    id: str
    answer: str
    begin: int
    end: int
    """`begin` and `end` are characters of the context."""
    f1_difference: float
    """F1 of the answer minus F1 of the baseline's, in points; negative for a loss."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of one artifact."""

    name: str
    artifact: str
    manifest: Mapping[str, Any]
    """Its provenance: checkpoint, training, other stages in words, backend, runtime, record and versions, and the
    digest of the manifest."""
    size: int
    """Bytes of all sealed files except the reference."""
    load_seconds: float
    """Time to hash and load it in a new process, including imports."""
    peak_memory: int
    """Peak resident memory (RSS) of the process in bytes, including libraries."""
    accuracy: Accuracy
    throughput: Sequence[Throughput]
    """By batch size; the first ran all questions, and its answers were scored."""
    latency: Latency | None
    gates: Sequence[Gate]
    """Whether the timed answers agree with the verification."""
    changes: Sequence[Change]

    @property
    def failed_gates(self) -> list[Gate]:
        return [gate for gate in self.gates if not gate.passed]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An artifact that could not be measured, and its error."""

    name: str
    artifact: str
    error: str
    hint: str | None
    status: int

    @classmethod
    def of(cls, name: str, folder: Path, error: QABuildError) -> Failure:
        return cls(name=name, artifact=str(folder), error=error.message, hint=error.hint, status=error.exit_status)


@dataclass(frozen=True, kw_only=True)
class ChangedQuestion:
    """A question that some artifact answers differently from the baseline, and the baseline's answer."""

    question: str
    context: str
    gold: Sequence[tuple[str, int]]
    """Gold answers, each with its start in characters of the context."""
    answer: str
    begin: int
    end: int
    f1: float


@dataclass(frozen=True, kw_only=True)
class Time:
    """Duration of the comparison's phases, in seconds."""

    loading: float
    measuring: float
    """From the end of loading to the last answer."""
    answering: float
    """The part of `measuring` spent in the artifacts' pipelines."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Measurements of several artifacts from one run."""

    baseline: str | None
    """Name of the artifact that the others are compared with; None if the requested one could not be measured."""
    data: Mapping[str, Any]
    measured: Sequence[Measured]
    failures: Sequence[Failure]
    asked: Mapping[str, ChangedQuestion]
    """Every question in `changes` of some artifact, by id."""
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    time: Time
    compared_at: str
    """UTC, ISO 8601."""
    interrupted: bool = False
    """Whether the user interrupted it: these are the rounds and series that were complete by then."""

    @property
    def passed(self) -> bool:
        """Whether every artifact was measured to the end and its answers agree with its verification."""
        return (
            not self.interrupted and not self.failures and not any(measured.failed_gates for measured in self.measured)
        )

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values, including `passed`."""
        return {**asdict(self), "passed": self.passed}
