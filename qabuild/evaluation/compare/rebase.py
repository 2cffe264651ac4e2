"""The same comparison with another of its artifacts as the baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qabuild.evaluation.bootstrap import mean_interval, ratio_interval
from qabuild.evaluation.compare.result import (
    Accuracy,
    Change,
    ChangedQuestion,
    Comparison,
    Measured,
    Throughput,
)

Answers = Mapping[str, Change]
"""To every question that some artifact answers differently; `f1_difference` is to the baseline that was."""


def rebased(comparison: Comparison, baseline: str) -> Comparison:
    """The comparison as if `baseline`, one of those measured, had been named as its baseline.

    Raises ValueError where the comparison has none, since it holds no answers then.
    """
    if comparison.baseline is None:
        raise ValueError("a comparison without a baseline holds no answers")
    base = next(measured for measured in comparison.measured if measured.name == baseline)
    answers = _answers(base, comparison.asked)
    measured = [_measured(each, base, answers, comparison.asked) for each in comparison.measured]
    changed = {change.id for each in measured for change in each.changes}
    return replace(
        comparison,
        baseline=baseline,
        measured=measured,
        asked={name: _asked(comparison.asked[name], answers[name]) for name in comparison.asked if name in changed},
    )


def _answers(measured: Measured, asked: Mapping[str, ChangedQuestion]) -> Answers:
    changes = {change.id: change for change in measured.changes}
    return {
        name: changes.get(name)
        or Change(id=name, answer=question.answer, begin=question.begin, end=question.end, f1_difference=0.0)
        for name, question in asked.items()
    }


def _measured(measured: Measured, base: Measured, expected: Answers, asked: Mapping[str, ChangedQuestion]) -> Measured:
    changes = [
        replace(answer, f1_difference=answer.f1_difference - expected[name].f1_difference)
        for name, answer in _answers(measured, asked).items()
    ]
    same = [0.0] * (base.throughput[0].questions - len(changes))
    return replace(
        measured,
        accuracy=_accuracy(measured.accuracy, base.accuracy, [*(change.f1_difference for change in changes), *same]),
        throughput=[_throughput(one, other) for one, other in zip(measured.throughput, base.throughput, strict=True)],
        changes=sorted(
            (change for change in changes if change.answer != expected[change.id].answer),
            key=lambda change: change.f1_difference,
        ),
    )


def _accuracy(accuracy: Accuracy, base: Accuracy, differences: list[float]) -> Accuracy:
    low, high = mean_interval(differences)
    return replace(
        accuracy,
        f1_interval=(max(base.f1 + low, 0.0), min(base.f1 + high, 100.0)),
        f1_retention=accuracy.f1 / base.f1 if base.f1 else 0.0,
    )


def _throughput(one: Throughput, base: Throughput) -> Throughput:
    return replace(
        one,
        speedup=sum(base.seconds) / sum(one.seconds),
        speedup_interval=ratio_interval(base.seconds, one.seconds) if len(one.seconds) > 1 else None,
    )


def _asked(question: ChangedQuestion, answer: Change) -> ChangedQuestion:
    return replace(
        question, answer=answer.answer, begin=answer.begin, end=answer.end, f1=question.f1 + answer.f1_difference
    )
