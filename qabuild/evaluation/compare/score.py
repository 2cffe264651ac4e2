"""From turns to a comparison: what the runs show, beside the run of the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from qabuild.artifact import sealed_reference
from qabuild.evaluation.compare import accuracy, audit, speed
from qabuild.evaluation.compare.accuracy import Answered, Gold
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.result import Comparison, Measured
from qabuild.evaluation.compare.rounds import Run, Runs
from qabuild.models.backends import backend
from qabuild.qa import ask
from qabuild.qa.data import QuestionSet
from qabuild.system import machine, packages


def score(found: Runs, questions: QuestionSet, baseline: str | None) -> Comparison:
    """What the runs show; `baseline` is a contestant's name, None leaves the choice to what they are."""
    gold = {question.id: question.answers for question in questions.questions}
    answered = {run.contestant.name: accuracy.timed(run, gold) for run in found.runs}
    standard = _baseline(found.runs, baseline)
    base = answered[standard.contestant.name] if standard else None
    measured = [_measured(run, answered[run.contestant.name], gold, standard, base) for run in found.runs]
    return Comparison(
        baseline=standard.contestant.name if standard else None,
        data=found.runs[0].contestant.reference.data,
        measured=measured,
        failures=found.failures,
        asked=accuracy.asked(questions, base, {change.id for each in measured for change in each.changes}),
        machine=machine.describe(),
        versions=packages.versions(_packages(found.runs)),
        time=found.time,
        compared_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _baseline(runs: Sequence[Run], name: str | None) -> Run | None:
    """The one of that name; without one the first that is eager fp32, or else the first."""
    if name is not None:
        return next((run for run in runs if run.contestant.name == name), None)
    return next((run for run in runs if run.contestant.is_eager_fp32), runs[0])


def _measured(run: Run, own: Answered, gold: Gold, standard: Run | None, base: Answered | None) -> Measured:
    artifact = run.contestant.artifact
    turns = [*run.audit, *(turn for each in run.throughput.values() for turn in each), *run.latency]
    return Measured(
        name=run.contestant.name,
        artifact=str(artifact.directory),
        manifest=_origin(run.contestant),
        size=sum(
            file.size
            for name, file in artifact.manifest.files.items()
            if not name.startswith(f"{sealed_reference.FOLDER}/")
        ),
        load_seconds=run.load_seconds,
        peak_memory=max(turn.peak_memory for turn in turns),
        accuracy=accuracy.accuracy(own, base),
        throughput=[speed.throughput(size, run, standard) for size in run.throughput],
        latency=speed.latency(run.latency) if run.latency else None,
        gates=audit.judge(run, own, gold),
        changes=accuracy.changes(own, base),
    )


def _origin(contestant: Contestant) -> Mapping[str, Any]:
    document = contestant.artifact.manifest.to_dict()
    kept = ("name", "qabuild", "checkpoint", "backend", "runtime", "record", "versions", "training")
    return {**{key: document[key] for key in kept}, "digest": contestant.artifact.digest}


def _packages(runs: Sequence[Run]) -> set[str]:
    backends = {run.contestant.artifact.manifest.backend["name"] for run in runs}
    return {*ask.PACKAGES, *(package for name in backends for package in backend(name).PACKAGES)}
