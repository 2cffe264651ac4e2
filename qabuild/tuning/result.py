"""What a tuning found: values, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qabuild.evaluation.compare.result import Comparison, Interval
from qabuild.tuning.objective import Objective


def columns(objective: Objective) -> list[str]:
    """The heads of the columns of a table of entries."""
    latency = ["latency"] if objective == "latency" else []
    return ["candidate", "speed", *latency, "F1 lost", "questions", "size", "result"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A candidate, and what is known of it."""

    name: str
    expected: float | None = None
    """Speed that was expected of this processor, relative to eager fp32; None where nothing was, or it was measured."""
    speedup: float | None = None
    """Questions/s over those of the checkpoint in eager fp32, as verified.

    Of what took turns with the winner: the winner's, times the ratio of the two in those turns, as is the interval."""
    speedup_interval: Interval | None = None
    f1_drop: float | None = None
    """Points of F1 lost from the original checkpoint; negative for a gain."""
    f1_drop_interval: Interval | None = None
    questions: int | None = None
    """Of its last verification."""
    size: int | None = None
    """Bytes of the artifact without its reference answers."""
    latency: float | None = None
    """Median of single questions in milliseconds, where it was measured."""
    verified: bool = False
    """Whether it was verified on all questions, and passed."""
    result: str = ""
    """What became of it."""

    def row(self, objective: Objective) -> list[str]:
        """Its cells in those `columns`."""
        latency = "-" if self.latency is None else f"{self.latency:.1f} ms"
        return [
            self.name,
            _with_interval(self.speedup, self.speedup_interval, "x"),
            *([latency] if objective == "latency" else []),
            _with_interval(self.f1_drop, self.f1_drop_interval, ""),
            "-" if self.questions is None else str(self.questions),
            "-" if self.size is None else f"{self.size / 1e6:.1f} MB",
            self.result,
        ]


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The outcome of a tuning."""

    winner: str | None
    """Name of the candidate; None where none keeps the answers."""
    why: str
    """Why it won, or why none did."""
    target: Path | None = None
    """The winner's target, which has a lock."""
    artifact: Path | None = None
    page: Path | None = None
    """The report; None where the packages that draw it are missing."""
    objective: Objective
    max_f1_drop: float
    entries: Sequence[Entry]
    """Of all candidates: the winner first, those left out last."""
    remarks: Sequence[str]
    finished: bool
    """Whether the budget sufficed."""
    seconds: float
    comparison: Comparison | None
    """Of the candidates that were verified in full and passed; its baseline is the winner."""

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows of the table of candidates."""
        return columns(self.objective), [entry.row(self.objective) for entry in self.entries]

    def to_dict(self) -> Mapping[str, Any]:
        """As JSON values."""
        paths = {name: value and str(value) for name, value in self.__dict__.items() if name in PATHS}
        return {**asdict(self), **paths, "comparison": self.comparison and self.comparison.to_dict()}


PATHS = ("target", "artifact", "page")


def _with_interval(value: float | None, interval: Interval | None, unit: str) -> str:
    if value is None:
        return "-"
    bounds = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    return f"{value:.2f}{unit}{bounds}"
