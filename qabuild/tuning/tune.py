"""Tunes a checkpoint: screen all candidates on few questions, verify the best on all, and let those take turns.

Every build goes through the ordinary engine, so that what was built once is never built again: a tuning that was killed
goes on where it stopped, and the winner's artifact is the one that was verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from qabuild.artifact.evidence import evidence_of
from qabuild.artifact.manifest import open_artifact
from qabuild.builder import locking
from qabuild.errors import VerificationFailed
from qabuild.evaluation import report
from qabuild.evaluation.compare import Comparison
from qabuild.evaluation.compare.rebase import rebased
from qabuild.models import measured_speed
from qabuild.models.measured_speed import MeasuredSpeed
from qabuild.system import packages
from qabuild.system.hub import SAMPLE
from qabuild.tuning import child, ranking, selection
from qabuild.tuning.arguments import PRUNE, Arguments
from qabuild.tuning.budget import Budget
from qabuild.tuning.candidates import Candidate, candidates, pruned, write
from qabuild.tuning.job import Job
from qabuild.tuning.outputs import ARTIFACTS, FOLDER, PAGE, TARGET
from qabuild.tuning.result import Entry, Tuned
from qabuild.tuning.rounds import VERIFIED, Rounds
from qabuild.tuning.table import Table


def carry_out(job: Job, arguments: Arguments) -> Tuned:
    """Tune, see `request.tune`."""
    began = _now()
    budget, samples = Budget(arguments.budget), arguments.samples
    prune = PRUNE in arguments.allow and not job.start.is_pruned
    tried, left_out = candidates(job.start, job.folder / "candidates", arguments.backends)
    if (unused := job.start.train_dataset) and not prune and not any(each.calibrates for each in tried):
        job.reporter.say(f"{unused} is not used: no candidate is calibrated, and none is pruned")
    table = Table(budget, job.objective, job.reporter)
    rounds = Rounds(job, budget, table)
    screened = rounds.screen(tried)
    if prune:
        narrower = [each for wide in screened[:2] for each in pruned(wide, job.start)]
        screened = rounds.in_order([*screened, *rounds.screen(narrower)])
    finalists = rounds.verify(rounds.compare(screened))
    _learn(tried, table, job)
    comparison = _compared(finalists, samples, job)
    winner, remarks = selection.choose(comparison, job.objective, table) if comparison else (None, [])
    if winner and comparison:
        selection.level(winner, comparison, rounds.timings, table)
    if comparison and comparison.compared_at < began:
        remarks = [
            f"nothing changed since the finalists were compared, {comparison.compared_at}, so that is not done again: "
            f"delete {job.folder / ranking.FOLDER} to measure anew",
            *remarks,
        ]
    absent = [Entry(name=name, result=f"left out: {why}") for name, why in left_out.items()]
    tuned = Tuned(
        winner=winner.name if winner else None,
        why=selection.why(winner, comparison, job, table),
        objective=job.objective,
        max_f1_drop=job.start.max_f1_drop,
        entries=sorted(
            [*table.entries.values(), *absent], key=lambda entry: selection.place(entry, winner, job.objective)
        ),
        remarks=[*selection.late(table, budget), *selection.surprises(tried, table), *remarks],
        finished=not table.late,
        seconds=budget.spent,
        comparison=comparison,
    )
    if winner is None or comparison is None:
        return replace(tuned, remarks=[*tuned.remarks, *_earlier(job.folder)])
    comparison = rebased(comparison, winner.name)
    return _with_files(replace(tuned, comparison=comparison), winner, comparison, job)


def _compared(finalists: Sequence[Candidate], samples: int, job: Job) -> Comparison | None:
    """The final comparison; None where there are no finalists."""
    if not finalists:
        return None
    asked = samples if samples < job.start.questions else None
    return ranking.compared([job.folder / VERIFIED / each.name for each in finalists], asked, job)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _earlier(output: Path) -> list[str]:
    """What must be said of files that an earlier tuning left, where this one writes none."""
    target = output / TARGET
    return [f"{target} and its artifact are from an earlier tuning"] if target.exists() else []


# --- what is learnt of this machine -----------------------------------------------------------------------------------


def _learn(tried: Sequence[Candidate], table: Table, job: Job) -> None:
    """Remember the speeds for this machine; the embedded sample is too small to tell any."""
    if job.start.checkpoint.name == SAMPLE:
        return
    now = _now()
    speeds = [
        MeasuredSpeed(
            backend=candidate.form.backend,
            dtype=candidate.form.runtime.dtype,
            variant=dict(candidate.form.variant),
            device=candidate.form.runtime.device,
            speedup=round(entry.speedup, 3),
            checkpoint=job.start.checkpoint.name,
            measured_at=now,
        )
        for candidate in tried
        if (entry := table.entries[candidate.name]).speedup
    ]
    try:
        measured_speed.remember(speeds)
    except OSError as error:
        job.reporter.say(f"the speeds could not be kept for `qabuild doctor`: {error.strerror}")


# --- files ------------------------------------------------------------------------------------------------------------


def _with_files(tuned: Tuned, winner: Candidate, comparison: Comparison, job: Job) -> Tuned:
    """Write the winner's target, lock and artifact, and the page."""
    target, page = job.folder / TARGET, job.folder / PAGE
    write(winner, job.start, target, description=tuned.why)
    locking.lock(target, offline=job.offline)
    made = child.build(target, [], job.folder / ARTIFACTS, offline=job.offline, seconds=None, reporter=job.reporter)
    if made.directory.name != FOLDER:
        raise VerificationFailed(
            f"{target}: {winner.name} passed, and failed when it was built again: {made.directory}",
            "run it again on a quiet machine; what was built is cached",
        )
    artifact = job.folder / ARTIFACTS / made.directory.name
    if lacking := packages.missing(dict.fromkeys(report.PACKAGES, ("report",)), "cpu"):
        job.reporter.say(f"no page is written: {'; '.join(lacking)}")
        return replace(tuned, target=target, artifact=artifact)
    title, sentences = f"Tuned for {tuned.objective}: {tuned.winner}", (tuned.why, *tuned.remarks)
    evidence = evidence_of(open_artifact(artifact))
    assert evidence is not None
    tried = report.Candidates(title, sentences, *tuned.table(), evidence.measurement)
    report.write_page(comparison, page, tried)
    return replace(tuned, target=target, artifact=artifact, page=page)
