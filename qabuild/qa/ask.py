"""Questions to answers by our pipeline, with the time that took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qabuild.qa.data import Question


PACKAGES = ("transformers", "tokenizers", "torch")
"""Distributions that decide what a pipeline answers, beside the model."""


CHUNK = 32  # questions between two reports of progress, and between two turns where several answer


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a pipeline made of some questions."""

    answers: Mapping[str, str]
    """Text by question id; the empty string says that there is no answer."""
    seconds: float


Ask = Callable[["Sequence[Question]"], Answered]


def asking(model: Any, tokenizer: Any, *, squad_v2: bool) -> Ask:
    """Questions to answers, by `qabuild.QuestionAnsweringPipeline` with its defaults.

    `squad_v2` lets it say that a question has no answer; set it where the data hold such questions.
    """
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    pipeline = QuestionAnsweringPipeline(model, tokenizer, handle_impossible_answer=squad_v2)

    def ask(questions: Sequence[Question]) -> Answered:
        # A stream, since the answer to a list of one question is no list.
        examples = ({"question": question.question, "context": question.context} for question in questions)
        started = time.perf_counter()
        results = list(pipeline(examples))
        seconds = time.perf_counter() - started
        # Where no span is left, as with logits that are not numbers, the result is an empty list.
        answers = {q.id: result["answer"] if result else "" for q, result in zip(questions, results, strict=True)}
        return Answered(answers=answers, seconds=seconds)

    return ask


def chunks(questions: Sequence[Question]) -> list[Sequence[Question]]:
    """The questions in order, some at a time."""
    return [questions[start : start + CHUNK] for start in range(0, len(questions), CHUNK)]
