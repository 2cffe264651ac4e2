"""What became of each target or artifact of a command: the table at its end, and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import as_told, complain, error_document, require_uninterrupted
from qabuild.cli.units import size_of
from qabuild.errors import QABuildError, VerificationFailed

if TYPE_CHECKING:
    from qabuild.artifact.evidence import Verification
    from qabuild.publishing.publish import Published

T = TypeVar("T")


COLUMNS = ["artifact", "EM", "F1", "F1 kept", "same answers", "samples/s", "speedup", "result"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one target or artifact."""

    shown: str
    """What the table calls it."""
    document: dict[str, Any]
    error: QABuildError | None
    verification: Verification | None = None
    published: Published | None = None


def attempt_to(work: Callable[[], T], console: Console) -> T | QABuildError:
    """What `work` gives, or what kept it from giving anything, which is told at once."""
    require_uninterrupted()
    try:
        return work()
    except (QABuildError, OSError, MemoryError) as error:
        require_uninterrupted(error)
        told = as_told(error)
        complain(told, verbose=console.verbose)
        return told


def failure(found: Verification | None, directory: Path) -> VerificationFailed | None:
    from qabuild.evaluation.judge import explain_failure

    return VerificationFailed(*explain_failure(found, directory)) if found and not found.passed else None


def conclude(outcomes: Sequence[Outcome], console: Console) -> None:
    """Show what became of each, tell which verifications failed, and leave with the status of the first failure."""

    def show() -> None:
        told = len(outcomes) == 1 and outcomes[0].error and not outcomes[0].verification
        if not told:
            table(COLUMNS, [_row(outcome) for outcome in outcomes])
        for outcome in outcomes:
            if outcome.published:
                emit(describe_published(outcome.published))

    console.result([_with_status(outcome) for outcome in outcomes], show)
    failed = [(outcome, outcome.error) for outcome in outcomes if outcome.error]
    for outcome, error in failed:
        if outcome.verification:  # any other error was told when it came
            complain(error)
    for _, error in failed:
        sys.exit(error.exit_status)


def _row(outcome: Outcome) -> list[str]:
    found = outcome.verification
    if found is None:
        result = f"error: {outcome.error.message.splitlines()[0]}" if outcome.error else "compiled, unverified"
        return [outcome.shown, *["-"] * 6, result]
    m, speed = found.measurement, found.measurement.speed
    failed = ", ".join(gate.name for gate in found.failed_gates)
    return [
        outcome.shown,
        f"{m.exact_match:.2f}",
        f"{m.f1:.2f}",
        f"{100 * m.f1_retention:.2f} %{_least(found, 'min_f1_retention')}",
        f"{100 * m.agreement:.2f} %",
        f"{speed.artifact if speed else m.samples_per_second:.1f}",
        f"{speed.speedup:.2f}x" if speed else "-",
        f"FAILED: {failed}" if failed else "passed, under other versions" if found.other_versions else "passed",
    ]


def _least(found: Verification, name: str) -> str:
    """The gate, where one is set, as the table shows it beside the figure."""
    limits = [gate.limit for gate in found.gates if gate.name == name]
    return f" (>= {100 * limits[0]:g})" if limits else ""


def _with_status(outcome: Outcome) -> dict[str, Any]:
    if outcome.error is None:
        return {**outcome.document, "status": 0}
    return {**outcome.document, **error_document(outcome.error)}


def describe_published(published: Published) -> str:
    """In one line, what is where now."""
    if published.commit is None:
        sent = [change for change in published.changes if change.does in ("add", "replace")]
        return f"{published.repo}: {len(sent)} files, {size_of(sum(c.size for c in sent))} would be sent"
    where = published.pull_request or f"{published.repo} ({published.revision})"
    tag = f", tag {published.tag}" if published.tag else ""
    done = "published" if published.changed else "nothing to do, it is there already"
    verified = ", verified from there" if published.verification else ""
    return f"{where}: {done}: commit {published.commit}{tag}{verified}"
