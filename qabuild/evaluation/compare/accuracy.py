"""What was answered: scores, and what became of the baseline's answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qabuild.evaluation.bootstrap import mean_interval
from qabuild.evaluation.compare.result import Accuracy, Asked, Change
from qabuild.evaluation.compare.rounds import Run
from qabuild.evaluation.compare.worker_pool import Turn
from qabuild.qa import squad_metric
from qabuild.qa.data import QuestionSet
from qabuild.qa.squad_metric import Scores

Gold = Mapping[str, Sequence[str]]
"""Gold answers by question id, in the order asked."""
Spans = Mapping[str, tuple[str, int, int]]
"""Text, begin and end (characters of the context) by question id."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers of one contestant to all questions, with their scores."""

    spans: Spans
    texts: Mapping[str, str]
    scores: Mapping[str, Scores]
    """Of each question."""
    total: Scores


def timed(run: Run, gold: Gold) -> Answered:
    """The answers of the run over all questions, that of the first batch size."""
    spans = in_order(next(iter(run.throughput.values())), gold)
    texts = {name: text for name, (text, _, _) in spans.items()}
    return Answered(
        spans=spans, texts=texts, scores=squad_metric.score_each(texts, gold), total=squad_metric.score(texts, gold)
    )


def in_order(turns: Sequence[Turn], gold: Gold) -> Spans:
    """The answers to the first questions, as many as were asked."""
    answers = [answer for turn in turns for answer in turn.answers]
    return dict(zip(gold, answers, strict=False))


def accuracy(own: Answered, base: Answered | None) -> Accuracy:
    """Scores, and where a baseline was measured the interval of F1 and its share of the baseline's."""
    exact_match, f1 = own.total.exact_match, own.total.f1
    if base is None:
        return Accuracy(exact_match=exact_match, f1=f1, f1_interval=None, f1_retention=None)
    low, high = mean_interval([each.f1 - base.scores[name].f1 for name, each in own.scores.items()])
    return Accuracy(
        exact_match=exact_match,
        f1=f1,
        f1_interval=(max(base.total.f1 + low, 0.0), min(base.total.f1 + high, 100.0)),
        f1_retention=f1 / base.total.f1 if base.total.f1 else 0.0,
    )


def changes(own: Answered, base: Answered | None) -> list[Change]:
    """What is answered otherwise than by the baseline, the worst losses first."""
    if base is None:
        return []
    found = [
        Change(id=name, answer=text, begin=begin, end=end, f1_difference=own.scores[name].f1 - base.scores[name].f1)
        for name, (text, begin, end) in own.spans.items()
        if text != base.spans[name][0]
    ]
    return sorted(found, key=lambda change: change.f1_difference)


def asked(questions: QuestionSet, base: Answered | None, ids: Collection[str]) -> dict[str, Asked]:
    """The questions with these ids, and what the baseline answers."""
    if base is None:
        return {}
    found = {}
    for each in questions.questions:
        if each.id in ids:
            text, begin, end = base.spans[each.id]
            found[each.id] = Asked(
                question=each.question,
                context=each.context,
                gold=list(zip(each.answers, each.answer_starts, strict=True)),
                answer=text,
                begin=begin,
                end=end,
                f1=base.scores[each.id].f1,
            )
    return found
