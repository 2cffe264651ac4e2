"""The stock round trip: transformers' question-answering pipeline through evaluate's evaluator.

The only room that imports either, since later releases of transformers have no such pipeline.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qabuild.qa import ask, squad_metric
from qabuild.qa.ask import Answered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qabuild.qa.data import Question

PACKAGES = ("evaluate", *ask.PACKAGES)

MAX_QUESTION_LEN = 64
"""Tokens of a question that are read, by default."""


def is_available() -> bool:
    """Whether the installed transformers has the stock pipeline."""
    import transformers

    return hasattr(transformers, "QuestionAnsweringPipeline")


class RoundTrip:
    """A loaded model in the stock pipeline, asked through the evaluator.

    `squad_v2` lets the pipeline say that a question has no answer; set it where the data hold such questions.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, squad_v2: bool) -> None:
        self._squad_v2 = squad_v2
        self._tokenizer = tokenizer
        with _quiet():
            self._pipeline = _stock_pipeline()(
                model=model, tokenizer=tokenizer, device=model.device, batch_size=batch_size, task="question-answering"
            )

    def __call__(self, questions: Sequence[Question]) -> Answered:
        """Put the questions through the pipeline, in order."""
        import datasets
        from evaluate.evaluator import QuestionAnsweringEvaluator

        class Evaluator(QuestionAnsweringEvaluator):  # type: ignore[misc]
            PIPELINE_KWARGS: dict[str, Any] = {}  # noqa: RUF012 - compute() writes into the class's own dictionary

        with _quiet(), tempfile.TemporaryDirectory() as folder:
            metric = _metric(folder)
            result = Evaluator().compute(
                model_or_pipeline=self._pipeline,
                data=datasets.Dataset.from_list([self._row(question) for question in questions]),
                metric=metric,
                squad_v2_format=self._squad_v2,
            )
        return Answered(answers=metric.answers, seconds=float(result["total_time_in_seconds"]))

    def _row(self, question: Question) -> dict[str, Any]:
        answers = {"text": list(question.answers), "answer_start": list(question.answer_starts)}
        asked = self._cut(question.question)
        return {"id": question.id, "question": asked, "context": question.context, "answers": answers}

    def _cut(self, question: str) -> str:
        """What the stock pipeline says that it reads of a question; with a fast tokenizer it reads all."""
        offsets = self._tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return question[: offsets[MAX_QUESTION_LEN - 1][1]] if len(offsets) > MAX_QUESTION_LEN else question


def _stock_pipeline() -> Any:
    """transformers' pipeline, with results that the evaluator can read."""
    from transformers import QuestionAnsweringPipeline

    class Stock(QuestionAnsweringPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """The stock result to a list of one question is no list."""
            found = super().__call__(*args, **kwargs)
            return found if isinstance(found, list) else [found]

        def postprocess(self, *args: Any, **kwargs: Any) -> Any:
            """Where no span is left, as with logits that are not numbers, the stock result is an empty list."""
            return super().postprocess(*args, **kwargs) or {"score": 0.0, "start": 0, "end": 0, "answer": ""}

    return Stock


def _metric(folder: str) -> Any:
    """A metric module that scores as `squad_metric` does and keeps the predictions, which the evaluator drops.

    It wants a `folder`, and would make one in the user's home, which a service may lack.
    """
    import datasets
    import evaluate

    class Squad(evaluate.Metric):  # type: ignore[misc]
        answers: dict[str, str]

        def _info(self) -> Any:
            answers = {
                "text": datasets.Sequence(datasets.Value("string")),
                "answer_start": datasets.Sequence(datasets.Value("int32")),
            }
            return evaluate.MetricInfo(
                description="EM and F1 as the official SQuAD scripts compute them",
                citation="",
                features=datasets.Features(
                    {
                        "predictions": {"id": datasets.Value("string"), "prediction_text": datasets.Value("string")},
                        "references": {"id": datasets.Value("string"), "answers": answers},
                    }
                ),
            )

        def compute(self, *, predictions: Iterable[Any], references: Iterable[Any]) -> dict[str, float]:
            """Score at once: the base class would first write every row to a file in the user's cache."""
            self.answers = {row["id"]: row["prediction_text"] for row in predictions}
            scores = squad_metric.score(self.answers, {row["id"]: row["answers"]["text"] for row in references})
            return {"exact_match": scores.exact_match, "f1": scores.f1}

    return Squad(cache_dir=folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of wrapped models, deprecations, devices and metrics: no user can mend those."""
    from transformers.utils import logging as of_transformers

    verbosity = of_transformers.get_verbosity()
    of_transformers.set_verbosity(of_transformers.CRITICAL)
    evaluator = logging.getLogger("evaluate.evaluator.question_answering")
    evaluator.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_transformers.set_verbosity(verbosity)
        evaluator.disabled = False
