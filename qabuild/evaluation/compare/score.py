"""Score runs: turn answers and times into a comparison with the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from qabuild.artifact import sealed_reference
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.stages import described
from qabuild.evaluation.compare import accuracy, audit, speed
from qabuild.evaluation.compare.accuracy import Gold, ScoredAnswers
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.result import Comparison, Measured
from qabuild.evaluation.compare.rounds import Run, Runs
from qabuild.models.backends import backend
from qabuild.qa import ask
from qabuild.qa.data import QuestionSet
from qabuild.system import machine, packages


def score(runs: Runs, questions: QuestionSet, baseline: str | None) -> Comparison:
    """Compare the runs with that of the contestant named `baseline`; None selects the default baseline."""
    gold = {question.id: question.answers for question in questions.questions}
    answers = {run.contestant.name: accuracy.score_run(run, gold) for run in runs.runs}
    baseline_run = _baseline(runs.runs, baseline)
    baseline_answers = answers[baseline_run.contestant.name] if baseline_run else None
    measured = [_measured(run, answers[run.contestant.name], gold, baseline_run, baseline_answers) for run in runs.runs]
    return Comparison(
        baseline=baseline_run.contestant.name if baseline_run else None,
        data=runs.runs[0].contestant.reference.data,
        measured=measured,
        failures=runs.failures,
        asked=accuracy.changed_questions(
            questions, baseline_answers, {change.id for entry in measured for change in entry.changes}
        ),
        machine=machine.describe(),
        versions=packages.versions(_packages(runs.runs)),
        time=runs.time,
        compared_at=datetime.now(UTC).isoformat(timespec="seconds"),
        interrupted=runs.interrupted,
    )


def _baseline(runs: Sequence[Run], name: str | None) -> Run | None:
    """The run named `name`; the default is the first that is eager fp32, or else the first."""
    if name is not None:
        return next((run for run in runs if run.contestant.name == name), None)
    return next((run for run in runs if run.contestant.is_eager_fp32), runs[0])


def _measured(
    run: Run, answers: ScoredAnswers, gold: Gold, baseline_run: Run | None, baseline_answers: ScoredAnswers | None
) -> Measured:
    artifact = run.contestant.artifact
    series = [run.audit, *run.throughput.values(), *run.judged.values(), run.latency]
    all_turns = [turn for turns in series for turn in turns]
    return Measured(
        name=run.contestant.name,
        artifact=str(artifact.directory),
        manifest=_provenance(run.contestant),
        size=size(artifact),
        load_seconds=run.load_seconds,
        peak_memory=max(turn.peak_memory for turn in all_turns),
        accuracy=accuracy.accuracy(answers, baseline_answers),
        throughput=[speed.throughput(size, run, baseline_run) for size in run.throughput],
        latency=speed.latency(run.latency) if run.latency else None,
        gates=audit.audit(run, answers, gold),
        changes=accuracy.changes(answers, baseline_answers),
    )


def size(artifact: Artifact) -> int:
    """Bytes of all sealed files except the reference."""
    files = artifact.manifest.files.items()
    return sum(file.size for name, file in files if not name.startswith(f"{sealed_reference.FOLDER}/"))


def _provenance(contestant: Contestant) -> Mapping[str, Any]:
    document = contestant.artifact.manifest.to_dict()
    keys = ("name", "qabuild", "checkpoint", "backend", "runtime", "record", "versions", "training")
    stages = described(contestant.artifact.manifest.stages)
    return {**{key: document[key] for key in keys}, "stages": stages, "digest": contestant.artifact.digest}


def _packages(runs: Sequence[Run]) -> set[str]:
    backends = {run.contestant.artifact.manifest.backend["name"] for run in runs}
    return {*ask.PACKAGES, *(package for name in backends for package in backend(name).PACKAGES)}
