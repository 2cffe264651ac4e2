"""The outcome of each target or artifact of a command: its table row, JSON document and exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import error_document, print_error, require_uninterrupted, to_qabuild_error
from qabuild.errors import QABuildError, VerificationFailed
from qabuild.system.units import count_of, size_of

if TYPE_CHECKING:
    from qabuild.artifact.evidence import Verification
    from qabuild.publishing.publish import Published

T = TypeVar("T")


COLUMNS = ["artifact", "EM", "F1", "F1 retention", "agreement", "samples/s", "speedup"]
OF_GATES = {
    "max_f1_drop": "F1 lost",
    "max_f1_drop_from_original": "F1 lost from original",
    "min_teacher_f1_retention": "of teacher's F1",
}
"""The columns of gates that no dtype sets, each before the result where a target sets it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome for one target or artifact."""

    label: str
    """Its name in the table."""
    document: dict[str, Any]
    error: QABuildError | None
    verification: Verification | None = None
    published: Published | None = None


def attempt_to(work: Callable[[], T], console: Console) -> T | QABuildError:
    """The result of `work`, or the error that it raised, which is printed at once."""
    require_uninterrupted()
    try:
        return work()
    except (QABuildError, OSError, MemoryError) as error:
        require_uninterrupted(error)
        reported = to_qabuild_error(error)
        print_error(reported, verbose=console.verbose)
        return reported


def failure(verification: Verification | None, directory: Path) -> VerificationFailed | None:
    from qabuild.artifact.judge import explain_failure

    if verification is None or verification.passed:
        return None
    return VerificationFailed(*explain_failure(verification, directory))


def conclude(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the outcomes and the failed verifications, and exit with the status of the first failure."""

    def show() -> None:
        error_only = len(outcomes) == 1 and outcomes[0].error and not outcomes[0].verification
        if not error_only:
            gates = {gate.name for each in outcomes if each.verification for gate in each.verification.gates}
            extra = [name for name in OF_GATES if name in gates]
            columns = [*COLUMNS, *(OF_GATES[name] for name in extra), "result"]
            table(columns, [_row(outcome, extra) for outcome in outcomes])
        for outcome in outcomes:
            if outcome.published:
                emit(describe_published(outcome.published))

    console.result([_with_status(outcome) for outcome in outcomes], show)
    failed = [(outcome, outcome.error) for outcome in outcomes if outcome.error]
    for outcome, error in failed:
        if outcome.verification:  # any other error was printed when it occurred
            print_error(error)
    for _, error in failed:
        sys.exit(error.exit_status)


def _row(outcome: Outcome, extra: Sequence[str]) -> list[str]:
    """Its cells in `COLUMNS`, those of the gates named `extra`, and its result."""
    verification = outcome.verification
    if verification is None:
        result = f"error: {outcome.error.message.splitlines()[0]}" if outcome.error else "compiled, unverified"
        return [outcome.label, *["-"] * (len(COLUMNS) - 1 + len(extra)), result]
    from qabuild.artifact.evidence import at_batch

    m, speed = verification.measurement, verification.measurement.speed
    return [
        outcome.label,
        f"{m.exact_match:.2f}",
        f"{m.f1:.2f}",
        f"{100 * m.f1_retention:.2f} %{_limit(verification, 'min_f1_retention')}{at_batch(m.batch_size)}",
        f"{100 * m.agreement:.2f} %{_limit(verification, 'min_agreement')}",
        f"{speed.artifact if speed else m.samples_per_second:.1f}",
        f"{speed.speedup:.2f}x{_limit(verification, 'min_speedup')}" if speed else "-",
        *(_gate(verification, name) for name in extra),
        _result(verification),
    ]


def _result(verification: Verification) -> str:
    if failed := ", ".join(gate.name for gate in verification.failed_gates):
        return f"FAILED: {failed}"
    truncated = verification.measurement.truncated_questions
    remarks = ["under other versions"] if verification.other_versions else []
    remarks += [f"{count_of(truncated, 'question')} truncated"] if truncated else []
    return ", ".join(["passed", *remarks])


def _limit(verification: Verification, name: str) -> str:
    """The least value as the table shows it beside the figure; empty if the target sets none, or one of 0."""
    from qabuild.target.gates import GATES_BY_DTYPE

    limit = next((gate.limit for gate in verification.gates if gate.name == name), None)
    if not limit or (name == "min_agreement" and limit in (agreement for agreement, _ in GATES_BY_DTYPE.values())):
        return ""
    return f" (>= {limit:g})" if name == "min_speedup" else f" (>= {100 * limit:g})"


def _gate(verification: Verification, name: str) -> str:
    """The figure that a gate of `OF_GATES` judges, and its limit; "-" where the target sets no such gate."""
    gate = next((gate for gate in verification.gates if gate.name == name), None)
    if gate is None or gate.value is None:
        return "-"
    if name == "min_teacher_f1_retention":
        return f"{100 * gate.value:.2f} % (>= {100 * gate.limit:g})"
    m = verification.measurement
    difference = m if name == "max_f1_drop" or m.original is None else m.original
    worst = "" if gate.confidence is None else f", at worst {gate.value:.2f}"
    return f"{0.0 - difference.f1_difference:.2f}{worst} (<= {gate.limit:g})"  # not -0.0


def _with_status(outcome: Outcome) -> dict[str, Any]:
    if outcome.error is None:
        return {**outcome.document, "status": 0}
    return {**outcome.document, **error_document(outcome.error)}


def describe_published(published: Published) -> str:
    """One line: which commit is published where."""
    if published.commit is None:
        sent = [change for change in published.changes if change.does in ("add", "replace")]
        return f"{published.repo}: {count_of(len(sent), 'file')}, {size_of(sum(c.size for c in sent))} would be sent"
    location = published.pull_request or f"{published.repo} ({published.revision})"
    tag = f", tag {published.tag}" if published.tag else ""
    done = "published" if published.changed else "nothing to do, it is there already"
    verified = ", verified from there" if published.verification else ""
    return f"{location}: {done}: commit {published.commit}{tag}{verified}"
