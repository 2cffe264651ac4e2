"""Answers of our pipeline to a set of questions, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from qabuild.qa.data import Question


T = TypeVar("T")

PACKAGES = ("transformers", "tokenizers", "torch")
"""Distributions that, beside the model, determine a pipeline's answers."""


CHUNK = 32  # questions between two progress reports, and a turn where several models take turns


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A pipeline's answers and their duration."""

    answers: Mapping[str, str]
    """Answer text by question id; empty for no answer."""
    seconds: float
    truncated: Collection[str] = ()
    """Ids of the questions that were truncated."""


Ask = Callable[["Sequence[Question]"], Answered]


def answerer(model: Any, tokenizer: Any, **parameters: Any) -> Ask:
    """A function that answers questions with `qabuild.QuestionAnsweringPipeline` and these parameters."""
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    pipeline = QuestionAnsweringPipeline(model, tokenizer, **parameters)

    def ask(questions: Sequence[Question]) -> Answered:
        # A stream, since a list of one question would not be answered with a list.
        examples = ({"question": question.question, "context": question.context} for question in questions)
        started = time.perf_counter()
        results = list(pipeline(examples))
        seconds = time.perf_counter() - started
        # Where no span is left, as with NaN logits, the result is an empty list.
        answers = {q.id: result["answer"] if result else "" for q, result in zip(questions, results, strict=True)}
        truncated = {q.id for q, result in zip(questions, results, strict=True) if "question_truncated" in result}
        return Answered(answers=answers, seconds=seconds, truncated=truncated)

    return ask


def chunks(questions: Sequence[T]) -> list[Sequence[T]]:
    """The questions, or their ids, in order, `CHUNK` at a time."""
    return [questions[start : start + CHUNK] for start in range(0, len(questions), CHUNK)]


def takes_part(number: int, share: float) -> bool:
    """Whether the chunk `number`, from 0, is one of a share of all chunks, 0 to 1, spread evenly over them."""
    return ceil((number + 1) * share) > ceil(number * share)
