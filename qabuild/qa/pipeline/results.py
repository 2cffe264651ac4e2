"""Turns the best spans of windows into results for the caller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qabuild.qa.pipeline.decode import Floats, Integers, Spans
    from qabuild.qa.pipeline.inputs import Pair
    from qabuild.qa.pipeline.parameters import Parameters
    from qabuild.qa.pipeline.windows import Windows

Result = dict[str, Any]
"""`score`, `start` and `end` (characters of the context), `answer`; `question_truncated`, true, where it was."""

Span = tuple[int, int, float]
"""Begin and end in characters, and score."""

Candidate = list[Any]
"""Score, and begin and end in characters: a list, since few candidates become results."""

_score = itemgetter(0)


def results(
    pairs: Sequence[Pair], windows: Windows, spans: Spans, parameters: Parameters
) -> Iterator[Result | list[Result]]:
    """The result of each pair: a dictionary where there is one answer, a list, best first, where there are several.

    A context without tokens has the empty answer, with score 0.
    """
    import numpy as np

    by_window = parameters.normalize == "window"
    weight = _weights(windows, spans.mass, parameters.normalize)
    rows, columns = np.nonzero(~(spans.score < 0))  # keeps NaN scores, so that they show
    first, last = spans.first[rows, columns], spans.last[rows, columns]
    begins, ends = windows.characters(rows, first, last, parameters.align_to_words)
    scores = spans.score[rows, columns] * weight[rows]
    candidates = zip(begins.tolist(), ends.tolist(), scores.tolist(), strict=True)
    nulls = np.minimum.reduceat(spans.null * weight, _first_rows(windows)).tolist()
    stops = np.searchsorted(windows.pair[rows], np.arange(len(pairs)), side="right").tolist()
    start = 0
    for (_, context), stop, null, truncated in zip(pairs, stops, nulls, windows.truncated.tolist(), strict=True):
        own = islice(candidates, stop - start)
        merged = _merge(context, own) if by_window else _best_of_windows(context, own, rows[start:stop].tolist())
        answers = [*merged.values(), [null, 0, 0]] if parameters.handle_impossible_answer else merged.values()
        best = _best(answers, parameters.top_k) or [[0.0, 0, 0]]
        found = [_result(context, answer, truncated) for answer in best]
        yield found[0] if len(found) == 1 else found
        start = stop


def _result(context: str, candidate: Candidate, truncated: bool) -> Result:
    score, start, end = candidate
    result = {"score": score, "start": start, "end": end, "answer": context[start:end]}
    return {**result, "question_truncated": True} if truncated else result


def _merge(context: str, spans: Iterable[Span]) -> dict[str, Candidate]:
    """The distinct answers, by their text in lower case.

    Spans whose texts differ at most in case are one answer: the first span, with the sum of their scores.
    """
    answers: dict[str, Candidate] = {}
    for begin, end, score in spans:
        text = context[begin:end].lower()
        if text in answers:
            answers[text][0] += score
        else:
            answers[text] = [score, begin, end]
    return answers


def _best_of_windows(context: str, spans: Iterable[Span], rows: Sequence[int]) -> dict[str, Candidate]:
    """The distinct answers, each from the window where it scores best; `rows` are the spans' windows.

    Windows overlap: an answer in two of them is not twice as likely.
    """
    best: dict[str, Candidate] = {}
    for _, group in groupby(zip(rows, spans, strict=True), key=itemgetter(0)):
        for key, answer in _merge(context, (span for _, span in group)).items():
            if key not in best or _score(answer) > _score(best[key]):
                best[key] = answer
    return best


def _best(answers: Iterable[Candidate], count: int) -> list[Candidate]:
    """The `count` answers with the highest scores, best first; ties keep their order."""
    if count == 1:
        best = max(answers, key=_score, default=None)
        return [] if best is None else [best]
    return sorted(answers, key=_score, reverse=True)[:count]


def _first_rows(windows: Windows) -> Integers:
    """[pairs]: each pair's first window."""
    import numpy as np

    return np.flatnonzero(np.diff(windows.pair, prepend=-1))


def _weights(windows: Windows, mass: Floats, normalize: str) -> Floats:
    """[windows]: factors from scores within a window to those that `normalize` names."""
    import numpy as np

    if normalize == "context":
        return _shares(windows, mass)
    return np.exp(mass.sum(axis=1)) if normalize == "none" else np.ones(len(windows))


def _shares(windows: Windows, mass: Floats) -> Floats:
    """[windows]: factors from scores within a window to scores over all windows of its pair.

    The softmax over all windows has the sum of their denominators: for first tokens and for last tokens, a window's
    share of it is exp(mass) over the sum of exp(mass), and a span's score has one factor of each.
    """
    import numpy as np

    firsts = _first_rows(windows)
    weight = np.exp(mass - np.maximum.reduceat(mass, firsts)[windows.pair])
    shares: Floats = (weight / np.add.reduceat(weight, firsts)[windows.pair]).prod(axis=1)
    return shares
