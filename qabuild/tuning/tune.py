"""Tunes a checkpoint: screen all candidates on few questions, verify the best on all, and let those take turns.

Every build goes through the ordinary engine, so that what was built once is never built again: a tuning that was killed
goes on where it stopped, and the winner's artifact is the one that was verified.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from qabuild.builder import locking
from qabuild.errors import BadTarget
from qabuild.evaluation import report
from qabuild.evaluation.compare import Comparison
from qabuild.models import measured_speed
from qabuild.models.measured_speed import MeasuredSpeed
from qabuild.models.runtime import Device
from qabuild.system import packages
from qabuild.system.reporter import SILENT, Reporter
from qabuild.tuning import child, heats, verdict
from qabuild.tuning import start as starts
from qabuild.tuning.budget import Budget
from qabuild.tuning.candidates import Candidate, candidates, pruned, write
from qabuild.tuning.heats import OBJECTIVES, Objective
from qabuild.tuning.ledger import Ledger
from qabuild.tuning.result import COLUMNS, Entry, Tuned
from qabuild.tuning.rounds import Rounds
from qabuild.tuning.start import Start

FOLDER = "tuned"
BUDGET = 1800.0
"""Seconds."""
ALLOWED = (PRUNE,) = ("prune",)
"""What changes the checkpoint, and must be allowed."""
FINAL = 1024
"""Questions of the final comparison."""


def tune(
    checkpoint: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    train_dataset: str | None = None,
    max_f1_drop: float = 0.5,
    objective: Objective = "throughput",
    device: Device | None = None,
    budget: float = BUDGET,
    samples: int = FINAL,
    backends: Collection[str] = (),
    allow: Collection[str] = (),
    output: str | Path = FOLDER,
    offline: bool = False,
    reporter: Reporter = SILENT,
) -> Tuned:
    """Find the best artifact of `checkpoint` that loses at most `max_f1_drop` points of F1 on this machine.

    `checkpoint` is a folder, a Hub id, "sample" or a target (.toml). `dataset` names the questions that verify
    (SQuAD's development set by default), `train_dataset` those that int8 is calibrated and pruning is done on.
    `objective` is what is best: "throughput" (questions/s at the target's batch size), "latency" (median of single
    questions) or "size" (bytes). `device` is a GPU by default where there is one. `budget` is in seconds. `samples`
    questions decide between the finalists. `backends` are those that are tried, all by default. `allow` = {"prune"}
    also tries narrower models.

    Writes into `output`: `tuned.toml` and its lock, the artifact, `report.html`, and what it built on the way. Where
    no candidate keeps the answers, `winner` of the result is None.

    Raises BadTarget for what cannot be tuned, and for a `budget` that is too short to verify a single candidate.
    """
    _require("objective", [objective], OBJECTIVES)
    _require("allow", allow, ALLOWED)
    time, output = Budget(budget), Path(output)
    start = starts.read(
        checkpoint,
        dataset=dataset,
        train_dataset=train_dataset,
        device=device,
        max_f1_drop=max_f1_drop,
        offline=offline,
        reporter=reporter,
    )
    tried, left_out = candidates(start, output / "candidates", backends)
    ledger = Ledger(time, reporter)
    rounds = Rounds(
        start,
        output,
        objective=objective,
        max_f1_drop=max_f1_drop,
        offline=offline,
        budget=time,
        ledger=ledger,
        reporter=reporter,
    )
    screened = rounds.screen(tried)
    if PRUNE in allow and not start.is_pruned:
        narrower = [each for wide in screened[:2] for each in pruned(wide, start, output / "candidates")]
        screened = rounds.in_order([*screened, *rounds.screen(narrower)])
    finalists = rounds.verify(rounds.heat(screened))
    _learn(tried, ledger, start)
    comparison = None
    if finalists:
        artifacts = [output / "verified" / each.name for each in finalists]
        comparison = heats.run(artifacts, samples, objective, offline=offline, reporter=reporter)
    winner, remarks = verdict.choose(comparison, objective, ledger) if comparison else (None, [])
    absent = [Entry(name=name, result=f"left out: {why}") for name, why in left_out.items()]
    tuned = Tuned(
        winner=winner.name if winner else None,
        why=verdict.why(winner, comparison, objective, max_f1_drop, ledger),
        objective=objective,
        max_f1_drop=max_f1_drop,
        entries=sorted([*ledger.entries.values(), *absent], key=lambda entry: verdict.place(entry, winner)),
        remarks=[*verdict.late(ledger, time), *verdict.surprises(tried, ledger), *remarks],
        finished=not ledger.late,
        seconds=time.spent,
        comparison=comparison,
    )
    if winner is None or comparison is None:
        return tuned
    return _with_files(tuned, winner, start, comparison, output, offline=offline, reporter=reporter)


def _require(name: str, given: Collection[str], known: Collection[str]) -> None:
    if unknown := [word for word in given if word not in known]:
        raise BadTarget(f"{name}: {unknown[0]!r} is not known", f"choose from {', '.join(known)}")


# --- what is learnt of this machine -----------------------------------------------------------------------------------


def _learn(tried: Sequence[Candidate], ledger: Ledger, start: Start) -> None:
    """Remember the speeds for this machine."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    speeds = [
        MeasuredSpeed(
            backend=candidate.backend,
            dtype=candidate.dtype,
            variant=dict(candidate.variant),
            device=candidate.device,
            speedup=round(entry.speedup, 3),
            checkpoint=start.checkpoint.name,
            measured_at=now,
        )
        for candidate in tried
        if (entry := ledger.entries[candidate.name]).speedup
    ]
    measured_speed.remember(speeds)


# --- files ------------------------------------------------------------------------------------------------------------


def _with_files(
    tuned: Tuned,
    winner: Candidate,
    start: Start,
    comparison: Comparison,
    output: Path,
    *,
    offline: bool,
    reporter: Reporter,
) -> Tuned:
    """Write the winner's target, lock and artifact, and the page."""
    target = output / f"{FOLDER}.toml"
    write(winner, start, target, description=tuned.why)
    locking.lock(target, offline=offline)
    made = child.build(target, [], output / "artifacts", offline=offline, seconds=None, reporter=reporter)
    page = output / "report.html"
    if lacking := packages.missing(dict.fromkeys(report.PACKAGES, ("report",)), "cpu"):
        reporter.say(f"no page is written: {'; '.join(lacking)}")
        return replace(tuned, target=target, artifact=made.directory)
    rows = [entry.row() for entry in tuned.entries]
    title, sentences = f"Tuned for {tuned.objective}: {tuned.winner}", (tuned.why, *tuned.remarks)
    report.write_page(comparison, page, report.Candidates(title, sentences, COLUMNS, rows))
    return replace(tuned, target=target, artifact=made.directory, page=page)
