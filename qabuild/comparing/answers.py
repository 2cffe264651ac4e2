"""What was answered: scores, and what became of the baseline's answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from qabuild import squad
from qabuild.comparing.comparison import Accuracy, Asked, Change
from qabuild.comparing.measuring import Run
from qabuild.comparing.workers import Turn
from qabuild.data import QuestionSet
from qabuild.squad import Scores
from qabuild.statistics import mean_interval

Gold = Mapping[str, Sequence[str]]
"""Gold answers by question id, in the order asked."""
Spans = Mapping[str, tuple[str, int, int]]
"""Text, begin and end (characters of the context) by question id."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers of one contestant to all questions, with their scores."""

    spans: Spans
    gold: Gold
    scores: Mapping[str, Scores]

    @property
    def texts(self) -> dict[str, str]:
        return {name: text for name, (text, _, _) in self.spans.items()}

    @property
    def exact_match(self) -> float:
        return sum(each.exact_match for each in self.scores.values()) / len(self.scores)

    @property
    def f1(self) -> float:
        return sum(each.f1 for each in self.scores.values()) / len(self.scores)


def timed(run: Run, gold: Gold) -> Answered:
    """The answers of the run over all questions, that of the first batch size."""
    spans = in_order(next(iter(run.throughput.values())), gold)
    return Answered(spans=spans, gold=gold, scores=squad.score_each({name: s[0] for name, s in spans.items()}, gold))


def in_order(turns: Sequence[Turn], gold: Gold) -> Spans:
    """The answers to the first questions, as many as were asked."""
    answers = [answer for turn in turns for answer in turn.answers]
    return dict(zip(gold, answers, strict=False))


def accuracy(own: Answered, base: Answered | None) -> Accuracy:
    """Scores, and where a baseline was measured the interval of F1 and its share of the baseline's."""
    if base is None:
        return Accuracy(exact_match=own.exact_match, f1=own.f1, f1_interval=None, f1_retention=None)
    low, high = mean_interval([own.scores[name].f1 - base.scores[name].f1 for name in own.gold])
    return Accuracy(
        exact_match=own.exact_match,
        f1=own.f1,
        f1_interval=(base.f1 + low, base.f1 + high),
        f1_retention=own.f1 / base.f1 if base.f1 else 0.0,
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
