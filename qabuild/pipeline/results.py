"""From the spans of windows to results: what the caller gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qabuild.pipeline.decode import Floats, Integers, Spans
    from qabuild.pipeline.inputs import Pair
    from qabuild.pipeline.parameters import Parameters
    from qabuild.pipeline.windows import Windows

Result = dict[str, Any]
"""`score`, `start` and `end` (characters of the context), `answer`."""


Scores = dict[str, float]
"""The scores of different answers, in lower case."""


def results(
    pairs: Sequence[Pair], windows: Windows, spans: Spans, parameters: Parameters
) -> Iterator[Result | list[Result]]:
    """The result of each pair: a dictionary where there is one answer, a list, best first, where there are several.

    A context without a token has the empty answer, with score 0.
    """
    import numpy as np

    over_context = parameters.normalize == "context"
    weight = _shares(windows, spans.mass) if over_context else np.ones(len(windows))
    rows, columns = np.nonzero(~(spans.score < 0))  # a score that is not a number is shown, not hidden
    first, last = spans.first[rows, columns], spans.last[rows, columns]
    begins, ends = (each.tolist() for each in windows.characters(rows, first, last, parameters.align_to_words))
    scores = (spans.score[rows, columns] * weight[rows]).tolist()
    nulls = np.minimum.reduceat(spans.null * weight, _first_rows(windows)).tolist()
    stops = np.searchsorted(windows.pair[rows], np.arange(len(pairs)), side="right").tolist()
    at = 0
    for (_, context), stop, null in zip(pairs, stops, nulls, strict=True):
        windows_of = rows[at:stop].tolist() if over_context else None
        answers = _answers(context, begins[at:stop], ends[at:stop], scores[at:stop], windows_of, parameters.top_k)
        if parameters.handle_impossible_answer:
            answers = sorted([*answers, _empty(null)], key=_score, reverse=True)[: parameters.top_k]
        answers = answers or [_empty(0.0)]
        yield answers[0] if len(answers) == 1 else answers
        at = stop


def _answers(
    context: str, begins: list[int], ends: list[int], scores: list[float], windows: list[int] | None, top_k: int
) -> list[Result]:
    """The best different answers of one context; with `windows`, the spans' windows, those of the best window."""
    texts = [context[begin:end] for begin, end in zip(begins, ends, strict=True)]
    same = [text.lower() for text in texts]
    totals, since = (_sum(same, scores), {}) if windows is None else _best_of_windows(same, scores, windows)
    answers = []
    for answer in _best(totals, top_k):
        place = same.index(answer, since.get(answer, 0))
        span = {"score": totals[answer], "start": begins[place], "end": ends[place], "answer": texts[place]}
        answers.append(span)
    return answers


def _sum(same: list[str], scores: list[float]) -> Scores:
    """Texts that differ in case at most are one answer, with the scores of all its spans together."""
    totals: Scores = {}
    for answer, score in zip(same, scores, strict=True):
        totals[answer] = totals.get(answer, 0.0) + score
    return totals


def _best_of_windows(same: list[str], scores: list[float], rows: list[int]) -> tuple[Scores, dict[str, int]]:
    """The same, of the window where an answer does best; and the index of that window's first span.

    Windows overlap: what lies in two of them is not twice as likely.
    """
    best: Scores = {}
    since: dict[str, int] = {}
    at = 0
    for _, group in groupby(rows):
        stop = at + len(list(group))
        for answer, score in _sum(same[at:stop], scores[at:stop]).items():
            if score > best.get(answer, -1.0):
                best[answer], since[answer] = score, at
        at = stop
    return best, since


def _best(totals: Scores, count: int) -> list[str]:
    """The answers of the highest scores, best first; of equal ones the first."""
    if count == 1:
        return [max(totals, key=totals.__getitem__)] if totals else []
    return sorted(totals, key=totals.__getitem__, reverse=True)[:count]


def _empty(score: float) -> Result:
    return {"score": score, "start": 0, "end": 0, "answer": ""}


def _score(result: Result) -> float:
    score: float = result["score"]
    return score


def _first_rows(windows: Windows) -> Integers:
    """[pairs]: each pair's first window."""
    import numpy as np

    return np.flatnonzero(np.diff(windows.pair, prepend=-1))


def _shares(windows: Windows, mass: Floats) -> Floats:
    """[windows]: what turns scores within a window into scores over all windows of its pair.

    The softmax over all windows has the sum of their denominators: for first tokens and for last tokens, a window's
    share of it is exp(mass) over the sum of exp(mass), and a span's score has one factor of each.
    """
    import numpy as np

    firsts = _first_rows(windows)
    weight = np.exp(mass - np.maximum.reduceat(mass, firsts)[windows.pair])
    shares: Floats = (weight / np.add.reduceat(weight, firsts)[windows.pair]).prod(axis=1)
    return shares
