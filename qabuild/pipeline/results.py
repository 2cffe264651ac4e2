"""From the spans of windows to results: what the caller gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qabuild.pipeline.decode import Floats, Integers, Spans
    from qabuild.pipeline.inputs import Pair
    from qabuild.pipeline.parameters import Parameters
    from qabuild.pipeline.windows import Windows

Result = dict[str, Any]
"""`score`, `start` and `end` (characters of the context), `answer`."""


Found = tuple[int, int, int, float]
"""A span's window, begin and end (characters), and score."""
Answer = list[Any]
"""The values of a Result."""
NO_ANSWER: Answer = [0.0, 0, 0, ""]


def results(
    pairs: Sequence[Pair], windows: Windows, spans: Spans, parameters: Parameters
) -> Iterator[Result | list[Result]]:
    """The result of each pair: a dictionary where there is one answer, a list, best first, where there are several.

    A context without a token has the empty answer, with score 0.
    """
    import numpy as np

    rows, columns = np.nonzero(~(spans.score < 0))  # a score that is not a number is shown, not hidden
    begins, ends = windows.characters(
        rows, spans.first[rows, columns], spans.last[rows, columns], parameters.align_to_words
    )
    scores, nulls = spans.score[rows, columns], spans.null
    merge = _sum_over_windows
    if parameters.normalize == "context":
        share = _shares(windows, spans.mass)
        scores, nulls = scores * share[rows], nulls * share
        merge = _best_of_windows
    stops = np.searchsorted(windows.pair[rows], np.arange(len(pairs)), side="right").tolist()
    null = np.minimum.reduceat(nulls, _first_rows(windows)).tolist()
    found = list(zip(rows.tolist(), begins.tolist(), ends.tolist(), scores.tolist(), strict=True))
    at = 0
    for index, (_, context) in enumerate(pairs):
        answers = merge(context, found[at : stops[index]])
        at = stops[index]
        if parameters.handle_impossible_answer:
            answers.append([null[index], 0, 0, ""])
        answers.sort(key=itemgetter(0), reverse=True)
        ranked = [
            {"score": score, "start": start, "end": end, "answer": answer}
            for score, start, end, answer in answers[: parameters.top_k] or [NO_ANSWER]
        ]
        yield ranked[0] if len(ranked) == 1 else ranked


def _sum_over_windows(context: str, found: Iterable[Found]) -> list[Answer]:
    """The answers of one context; those that differ in case at most are one, the first, with all their scores."""
    answers: dict[str, Answer] = {}
    for _, begin, end, score in found:
        text = context[begin:end]
        answer = answers.setdefault(text.lower(), [0.0, begin, end, text])
        answer[0] += score
    return list(answers.values())


def _best_of_windows(context: str, found: Iterable[Found]) -> list[Answer]:
    """The same, but an answer of several windows has the score of the window where it is highest.

    Windows overlap: what lies in two of them is not twice as likely.
    """
    best: dict[str, Answer] = {}
    for _, group in groupby(found, key=itemgetter(0)):
        for answer in _sum_over_windows(context, group):
            same = answer[3].lower()
            if same not in best or answer[0] > best[same][0]:
                best[same] = answer
    return list(best.values())


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
