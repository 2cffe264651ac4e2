"""Counts of answered rows, and the problems of bad ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from qabuild.qa.answer_formats import Record
from qabuild.qa.data.rows import SHOWN_PROBLEMS, summary

PROGRESS_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of the rows of a file, or of a data set."""

    rows: int
    answered: int
    bad: int
    """Rows without an answer."""
    resumed: int
    """Rows, answered or bad, that an earlier run had processed."""
    truncated: int = 0
    """Rows whose question has more tokens than are read; their answers have `question_truncated`."""


@dataclass
class Tally:
    """Counts of the rows processed so far."""

    rows: int = 0
    bad: int = 0
    resumed: int = 0
    truncated: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ones."""

    def add(self, record: Record, resumed: bool = False) -> None:
        self.rows += 1
        self.resumed += resumed
        self.truncated += any("question_truncated" in answer for answer in record.get("answers", [record]))
        if "error" in record:
            self.bad += 1
            self.problems = [*self.problems, record["error"]][:SHOWN_PROBLEMS]

    def merge(self, other: Tally) -> None:
        for name in ("rows", "bad", "resumed", "truncated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.problems = [*self.problems, *other.problems][:SHOWN_PROBLEMS]

    def complaint(self) -> str:
        """One message about the bad rows."""
        return summary(self.problems, self.bad, self.rows)

    def summary(self) -> Summary:
        counts = {name: getattr(self, name) for name in ("rows", "bad", "resumed", "truncated")}
        return Summary(answered=self.rows - self.bad, **counts)


def counted(records: Iterable[Record], tally: Tally, advance: Callable[[int], None]) -> Iterator[Record]:
    """The records, each added to the tally; `advance` learns, a few times a second, how many are new."""
    reported, reported_at = 0, 0.0
    for record in records:
        tally.add(record)
        if time.monotonic() - reported_at > PROGRESS_SECONDS:
            advance(tally.rows - reported)
            reported, reported_at = tally.rows, time.monotonic()
        yield record
    advance(tally.rows - reported)
