"""From turns to a comparison: scores, speedups, intervals, gates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from qabuild import machine, reference, squad
from qabuild.backends import backend
from qabuild.comparing.comparison import (
    Accuracy,
    Asked,
    Change,
    Comparison,
    Latency,
    LengthSpeed,
    Measured,
    Throughput,
)
from qabuild.comparing.contestants import Contestant
from qabuild.comparing.measuring import Run, Runs
from qabuild.comparing.workers import Turn
from qabuild.data import QuestionSet
from qabuild.evidence import Gate
from qabuild.statistics import mean_interval, ratio_interval
from qabuild.target import Gates

LENGTHS = 32
"""Windows of so many tokens, and multiples of it, are counted together."""

Gold = Mapping[str, Sequence[str]]
Answers = Mapping[str, tuple[str, int, int]]
"""Text, begin and end by question id."""


def score(found: Runs, questions: QuestionSet, baseline: str | None) -> Comparison:
    """What the runs show, held against the run of the baseline."""
    standard = _baseline(found.runs, baseline)
    gold = {question.id: question.answers for question in questions.questions}
    changes = {id(run): _changes(run, standard, gold) for run in found.runs}
    changed = {change.id for each in changes.values() for change in each}
    return Comparison(
        baseline=standard.contestant.name if standard else None,
        data=found.runs[0].contestant.reference.data,
        measured=[_measured(run, standard, gold, changes[id(run)]) for run in found.runs],
        failures=found.failures,
        asked=_asked(questions, changed, standard) if standard else {},
        machine=machine.describe(),
        versions=machine.versions(_packages(found.runs)),
        time=found.time,
        compared_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _baseline(runs: Sequence[Run], name: str | None) -> Run | None:
    """The one of that name; without one the first that is eager fp32, or else the first."""
    if name is not None:
        return next((run for run in runs if run.contestant.name == name), None)
    return next((run for run in runs if run.contestant.is_eager_fp32), runs[0])


def _measured(run: Run, standard: Run | None, gold: Gold, changes: Sequence[Change]) -> Measured:
    artifact = run.contestant.artifact
    sealed = artifact.manifest.files.items()
    turns = [*run.audit, *(turn for each in run.throughput.values() for turn in each), *run.latency]
    return Measured(
        name=run.contestant.name,
        artifact=str(artifact.directory),
        manifest=_origin(run.contestant),
        size=sum(file.size for name, file in sealed if not name.startswith(f"{reference.FOLDER}/")),
        load_seconds=run.load_seconds,
        peak_memory=max(turn.peak_memory for turn in turns),
        accuracy=_accuracy(run, standard, gold),
        throughput=[_throughput(size, run, standard) for size in run.throughput],
        latency=_latency(run.latency) if run.latency else None,
        gates=_audit(run, gold),
        changes=changes,
    )


def _origin(contestant: Contestant) -> dict[str, Any]:
    document = asdict(contestant.artifact.manifest)
    kept = ("name", "qabuild", "checkpoint", "backend", "runtime", "record", "versions")
    return {**{key: document[key] for key in kept}, "digest": contestant.artifact.digest}


def _packages(runs: Sequence[Run]) -> set[str]:
    backends = {run.contestant.artifact.manifest.backend["name"] for run in runs}
    return {*reference.PACKAGES, *(package for name in backends for package in backend(name).PACKAGES)}


# --- answers --------------------------------------------------------------------------------------------------------


def _answers(turns: Sequence[Turn], gold: Gold) -> Answers:
    """The answers to the first questions, as many as were asked."""
    answers = [answer for turn in turns for answer in turn.answers]
    return dict(zip(gold, answers, strict=False))


def _timed(run: Run, gold: Gold) -> Answers:
    """The answers that are scored: those of the first batch size, which was asked all questions."""
    return _answers(next(iter(run.throughput.values())), gold)


def _texts(answers: Answers) -> dict[str, str]:
    return {name: answer[0] for name, answer in answers.items()}


def _f1_of_each(run: Run, gold: Gold) -> dict[str, float]:
    return {name: each.f1 for name, each in squad.score_each(_texts(_timed(run, gold)), gold).items()}


def _accuracy(run: Run, standard: Run | None, gold: Gold) -> Accuracy:
    scores = squad.score(_texts(_timed(run, gold)), gold)
    if standard is None:
        return Accuracy(exact_match=scores.exact_match, f1=scores.f1, f1_interval=None, f1_retention=None)
    own, other = _f1_of_each(run, gold), _f1_of_each(standard, gold)
    base = sum(other.values()) / len(other)
    low, high = mean_interval([own[name] - other[name] for name in gold])
    return Accuracy(
        exact_match=scores.exact_match,
        f1=scores.f1,
        f1_interval=(base + low, base + high),
        f1_retention=scores.f1 / base if base else 0.0,
    )


def _changes(run: Run, standard: Run | None, gold: Gold) -> list[Change]:
    """What it answers otherwise than the baseline, the worst losses first."""
    if standard is None:
        return []
    own, other = _timed(run, gold), _timed(standard, gold)
    own_f1, other_f1 = _f1_of_each(run, gold), _f1_of_each(standard, gold)
    changes = [
        Change(
            id=name,
            answer=own[name][0],
            begin=own[name][1],
            end=own[name][2],
            f1_difference=own_f1[name] - other_f1[name],
        )
        for name in gold
        if own[name][0] != other[name][0]
    ]
    return sorted(changes, key=lambda change: change.f1_difference)


def _asked(questions: QuestionSet, ids: set[str], standard: Run) -> dict[str, Asked]:
    gold = {question.id: question.answers for question in questions.questions}
    answers, f1 = _timed(standard, gold), _f1_of_each(standard, gold)
    return {
        each.id: Asked(
            question=each.question,
            context=each.context,
            gold=list(zip(each.answers, each.answer_starts, strict=True)),
            answer=answers[each.id][0],
            begin=answers[each.id][1],
            end=answers[each.id][2],
            f1=f1[each.id],
        )
        for each in questions.questions
        if each.id in ids
    }


def _audit(run: Run, gold: Gold) -> list[Gate]:
    """Whether what was timed is what was verified.

    The first questions were asked in the batches of the verification, and must be answered as then, on the same
    machine and packages all of them. All others were asked in other batches, and must pass the gates on answers.
    """
    limits = Gates.model_validate(dict(run.contestant.artifact.manifest.verify["gates"])).by_dtype(
        run.contestant.artifact.manifest.runtime["dtype"]
    )
    sealed = run.contestant.reference.answers
    timed, audited = _texts(_timed(run, gold)), _texts(_answers(run.audit, gold))
    same = 1.0 if _is_where_it_was_verified(run.contestant) else limits.min_agreement
    before = squad.score(sealed, gold).f1
    found = [
        ("same_as_verified", same, _agreement(audited, run.contestant.verified_answers)),
        ("min_f1_retention", limits.min_f1_retention, squad.score(timed, gold).f1 / before if before else 0.0),
        ("min_agreement", limits.min_agreement, _agreement(timed, sealed)),
    ]
    return [
        Gate(name=name, limit=limit, value=value, passed=value >= limit)
        for name, limit, value in found
        if limit is not None
    ]


def _agreement(answers: Mapping[str, str], others: Mapping[str, str]) -> float:
    return sum(answer == others[name] for name, answer in answers.items()) / len(answers)


def _is_where_it_was_verified(contestant: Contestant) -> bool:
    then = contestant.verification.measurement
    return dict(then.machine) == machine.describe() and dict(then.versions) == machine.versions(then.versions)


# --- times ----------------------------------------------------------------------------------------------------------


def _throughput(size: int, run: Run, standard: Run | None) -> Throughput:
    turns = run.throughput[size]
    seconds = _seconds(turns)
    count = sum(len(turn.answers) for turn in turns)
    other = _seconds(standard.throughput[size]) if standard else None
    calls = [call for turn in turns for call in turn.calls]
    return Throughput(
        batch_size=size,
        questions=count,
        rounds=len(turns),
        samples_per_second=count / sum(seconds),
        model_samples_per_second=count / sum(spent for _, _, spent in calls),
        speedup=sum(other) / sum(seconds) if other else None,
        speedup_interval=ratio_interval(other, seconds) if other else None,
        by_length=_by_length([call for call in calls if call[0] == size]),
    )


def _seconds(turns: Sequence[Turn]) -> list[float]:
    return [sum(turn.seconds) for turn in turns]


def _by_length(calls: Sequence[tuple[int, int, float]]) -> list[LengthSpeed]:
    windows: dict[int, int] = defaultdict(int)
    seconds: dict[int, float] = defaultdict(float)
    for count, tokens, spent in calls:
        length = -(-tokens // LENGTHS) * LENGTHS
        windows[length] += count
        seconds[length] += spent
    return [
        LengthSpeed(tokens=length, windows_per_second=windows[length] / seconds[length], windows=windows[length])
        for length in sorted(windows)
    ]


def _latency(turns: Sequence[Turn]) -> Latency:
    import numpy as np

    milliseconds = [1000 * spent for turn in turns for spent in turn.seconds]
    median, p99 = np.percentile(milliseconds, (50, 99))
    return Latency(median=float(median), p99=float(p99), milliseconds=milliseconds)
