"""The table of a tuning: what is known of each candidate, told as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact
from qabuild.evaluation.compare.score import size
from qabuild.system.reporter import Reporter
from qabuild.tuning.budget import Budget, shown
from qabuild.tuning.candidates import Candidate
from qabuild.tuning.objective import Objective
from qabuild.tuning.result import Entry, columns

WIDTHS = {"candidate": 26, "speed": 20, "latency": 9, "F1 lost": 22, "questions": 9, "size": 9}
"""Of the columns of the table as it grows, in characters; the last one ends where it ends."""


class Table:
    """An entry for each candidate."""

    def __init__(self, budget: Budget, objective: Objective, reporter: Reporter) -> None:
        self.candidates: dict[str, Candidate] = {}
        self.entries: dict[str, Entry] = {}
        self.late: list[str] = []
        """What the budget did not suffice for."""
        self._budget, self._objective, self._reporter = budget, objective, reporter
        self._reporter.say(self._line(columns(objective)))

    def add(self, candidate: Candidate) -> None:
        self.candidates[candidate.name] = candidate
        rule = candidate.form.expected
        expected = rule.rate if rule and not rule.measured else None
        self.entries[candidate.name] = Entry(name=candidate.name, expected=expected)

    def measured(self, candidate: Candidate, artifact: Artifact, verification: Verification) -> None:
        """Enter what a verification measured."""
        measured, speed = verification.measurement, verification.measurement.speed
        difference = measured.original or measured
        low, high = difference.f1_difference_bounds or difference.f1_difference_interval
        self._change(
            candidate,
            speedup=speed and speed.speedup,
            speedup_interval=speed and speed.speedup_interval,
            f1_drop=0.0 - difference.f1_difference,  # not -0.0
            f1_drop_interval=(0.0 - high, 0.0 - low),
            questions=measured.questions,
            size=size(artifact),
        )

    def tell(self, candidate: Candidate, result: str, **changes: Any) -> None:
        """Enter what became of a candidate, and report its row."""
        entry = self.settle(candidate, result, **changes)
        self._reporter.say(f"{self._line(entry.row(self._objective))}  ({shown(max(self._budget.left, 0))} left)")

    def settle(self, candidate: Candidate, result: str | None = None, **changes: Any) -> Entry:
        """The same, unreported; without a `result`, it stays."""
        return self._change(candidate, **changes, **({} if result is None else {"result": result}))

    def too_late(self, candidate: Candidate, verb: str) -> None:
        """Enter that the budget did not suffice for it."""
        self.late.append(candidate.name)
        self.tell(candidate, f"not {verb} within {self._budget}")

    def _change(self, candidate: Candidate, **changes: Any) -> Entry:
        entry = self.entries[candidate.name] = replace(self.entries[candidate.name], **changes)
        return entry

    def _line(self, cells: Sequence[str]) -> str:
        """A row of the table as it grows."""
        widths = [WIDTHS.get(head, 0) for head in columns(self._objective)]
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
