"""Accuracy of the answers: their scores, and how they differ from the baseline's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qabuild.evaluation.bootstrap import mean_interval
from qabuild.evaluation.compare.result import Accuracy, Change, ChangedQuestion
from qabuild.evaluation.compare.rounds import Run
from qabuild.evaluation.compare.worker_pool import Turn
from qabuild.qa import squad_metric
from qabuild.qa.data import QuestionSet
from qabuild.qa.squad_metric import Scores

Gold = Mapping[str, Sequence[str]]
"""Gold answers by question id, in the order of the questions."""
Spans = Mapping[str, tuple[str, int, int]]
"""Text, begin and end (characters of the context) by question id."""


@dataclass(frozen=True, kw_only=True)
class ScoredAnswers:
    """One contestant's answers to all questions, with their scores."""

    spans: Spans
    texts: Mapping[str, str]
    scores: Mapping[str, Scores]
    """By question id."""
    total: Scores
    batch_size: int | None = None
    """Windows per batch, where answers depend on the batch."""


def score_run(run: Run, gold: Gold) -> ScoredAnswers:
    """Score the answers at the first batch size, at which all questions were run.

    Where answers depend on the batch: those of the worst F1 among the batch sizes that a verification judges.
    """
    if not run.judged:
        return _score(next(iter(run.throughput.values())), gold)
    return min((_score(turns, gold, size) for size, turns in run.judged.items()), key=lambda scored: scored.total.f1)


def _score(turns: Sequence[Turn], gold: Gold, batch_size: int | None = None) -> ScoredAnswers:
    spans = answers_by_id(turns, gold)
    texts = {name: text for name, (text, _, _) in spans.items()}
    return ScoredAnswers(
        spans=spans,
        texts=texts,
        scores=squad_metric.score_each(texts, gold),
        total=squad_metric.score(texts, gold),
        batch_size=batch_size,
    )


def answers_by_id(turns: Sequence[Turn], gold: Gold) -> Spans:
    """Answers by question id; the turns may cover only the first questions of `gold`."""
    answers = [answer for turn in turns for answer in turn.answers]
    return dict(zip(gold, answers, strict=False))


def accuracy(answers: ScoredAnswers, baseline: ScoredAnswers | None) -> Accuracy:
    """Scores; with a baseline, also the interval of F1 and F1 retention."""
    exact_match, f1 = answers.total.exact_match, answers.total.f1
    if baseline is None:
        return Accuracy(
            exact_match=exact_match, f1=f1, f1_interval=None, f1_retention=None, batch_size=answers.batch_size
        )
    low, high = mean_interval([score.f1 - baseline.scores[name].f1 for name, score in answers.scores.items()])
    return Accuracy(
        exact_match=exact_match,
        f1=f1,
        f1_interval=(max(baseline.total.f1 + low, 0.0), min(baseline.total.f1 + high, 100.0)),
        f1_retention=f1 / baseline.total.f1 if baseline.total.f1 else 0.0,
        batch_size=answers.batch_size,
    )


def changes(answers: ScoredAnswers, baseline: ScoredAnswers | None) -> list[Change]:
    """The answers that differ from the baseline's, by F1 difference, largest loss first; empty without a baseline."""
    if baseline is None:
        return []
    unsorted = [
        Change(
            id=name,
            answer=text,
            begin=begin,
            end=end,
            f1_difference=answers.scores[name].f1 - baseline.scores[name].f1,
        )
        for name, (text, begin, end) in answers.spans.items()
        if text != baseline.spans[name][0]
    ]
    return sorted(unsorted, key=lambda change: change.f1_difference)


def changed_questions(
    questions: QuestionSet, baseline: ScoredAnswers | None, ids: Collection[str]
) -> dict[str, ChangedQuestion]:
    """The questions with these ids, with the baseline's answers; empty without a baseline."""
    if baseline is None:
        return {}
    changed = {}
    for question in questions.questions:
        if question.id in ids:
            text, begin, end = baseline.spans[question.id]
            changed[question.id] = ChangedQuestion(
                question=question.question,
                context=question.context,
                gold=list(zip(question.answers, question.answer_starts, strict=True)),
                answer=text,
                begin=begin,
                end=end,
                f1=baseline.scores[question.id].f1,
            )
    return changed
