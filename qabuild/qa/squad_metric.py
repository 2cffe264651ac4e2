"""Exact match and F1, as the official SQuAD scripts compute them.

Both scripts normalise an answer the same way, compare it with each gold answer and take the best. They differ
where an answer is empty after normalisation ('The', '!'):

- `evaluate-v1.1.py` keeps such a gold answer. A prediction that is empty too matches it exactly, with an F1 of 0,
  since no token is shared. It knows no unanswerable questions.
- `evaluate-v2.0.py` drops such gold answers; a question without any other counts as unanswerable, and its gold
  answer is then the empty string. Where either side has no tokens, F1 is 1 if both have none, else 0.

Here a question without gold answers is unanswerable and always scored by the rules of v2.0, without the search for a
no-answer threshold. For the others the caller names the version, or `score` chooses: v2.0 if any question of the set
is unanswerable, else v1.1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Version = Literal["1.1", "2.0"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scores:
    """Exact match and F1 in per cent, of one question or the mean over many."""

    exact_match: float
    f1: float


def normalise(text: str) -> str:
    """Lower-case `text`, then remove ASCII punctuation, the words a, an and the, and extra whitespace."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str], version: Version = "1.1") -> float:
    """1.0 if the prediction equals a gold answer after normalisation, else 0.0.

    `answers` empty: an unanswerable question, right if the prediction is empty after normalisation.
    """
    predicted = normalise(prediction)
    return float(any(predicted == gold for gold in _golds(answers, version)))


def f1(prediction: str, answers: Sequence[str], version: Version = "1.1") -> float:
    """The best token F1 against any gold answer, between 0 and 1.

    `answers` empty: an unanswerable question, 1.0 if the prediction is empty after normalisation, else 0.0.
    """
    predicted = normalise(prediction).split()
    unanswerable = not answers
    return max(
        _overlap(predicted, gold.split(), "2.0" if unanswerable else version) for gold in _golds(answers, version)
    )


def score(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], version: Version | None = None
) -> Scores:
    """The means over all questions of `answers`, in per cent. Both mappings are keyed by question id.

    `version` None: v2.0 if a question is unanswerable, else v1.1. Predictions for other questions are ignored, as
    the official scripts do. Unlike them, which print a line and score 0, a missing prediction is an error.

    Raises ValueError if there are no questions, or naming those without a prediction.
    """
    scores = _question_scores(predictions, answers, version)
    return Scores(
        exact_match=100.0 * sum(exact for exact, _ in scores.values()) / len(scores),
        f1=100.0 * sum(overlap for _, overlap in scores.values()) / len(scores),
    )


def score_each(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], version: Version | None = None
) -> dict[str, Scores]:
    """The scores of each question, in per cent, in the order of `answers`; `score` is their mean.

    Raises ValueError as `score` does.
    """
    return {
        name: Scores(exact_match=100.0 * exact, f1=100.0 * overlap)
        for name, (exact, overlap) in _question_scores(predictions, answers, version).items()
    }


def version_of(answers: Mapping[str, Sequence[str]]) -> Version:
    """The version whose rules apply to a set of questions: 2.0 if any of them is unanswerable."""
    return "1.1" if all(answers.values()) else "2.0"


def _question_scores(
    predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]], version: Version | None
) -> dict[str, tuple[float, float]]:
    if not answers:
        raise ValueError("no questions to score")
    if missing := [name for name in answers if name not in predictions]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ValueError(f"no prediction for {len(missing)} of {len(answers)} questions: {shown}")
    version = version or version_of(answers)
    return {
        name: (exact_match(predictions[name], golds, version), f1(predictions[name], golds, version))
        for name, golds in answers.items()
    }


def _golds(answers: Sequence[str], version: Version) -> list[str]:
    """The normalised gold answers to compare with; the empty string alone for an unanswerable question."""
    golds = [normalise(answer) for answer in answers]
    if version == "2.0":
        golds = [gold for gold in golds if gold]
    return golds or [""]


def _overlap(predicted: list[str], gold: list[str], version: Version) -> float:
    """F1 of two bags of tokens: the harmonic mean of precision and recall, in the scripts' order of operations."""
    if version == "2.0" and not (predicted and gold):
        return float(predicted == gold)
    shared = sum((Counter(predicted) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(gold)
    return (2 * precision * recall) / (precision + recall)
