"""The stock round trip: transformers' question-answering pipeline through evaluate's evaluator.

The only room that imports either, since later releases of transformers have no such pipeline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qabuild import reference, squad
from qabuild.reference import Answered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qabuild.data import Question

PACKAGES = ("evaluate", *reference.PACKAGES)


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

        metric = _metric()
        with _quiet():
            result = Evaluator().compute(
                model_or_pipeline=self._pipeline,
                data=datasets.Dataset.from_list([_row(question) for question in questions]),
                metric=metric,
                squad_v2_format=self._squad_v2,
            )
        return Answered(answers=metric.answers, seconds=float(result["total_time_in_seconds"]))


def _stock_pipeline() -> Any:
    """transformers' pipeline, made to say that it found nothing in a way that the evaluator can read."""
    from transformers import QuestionAnsweringPipeline

    class Stock(QuestionAnsweringPipeline):  # type: ignore[misc]
        def postprocess(self, *args: Any, **kwargs: Any) -> Any:
            """Where no span is left, as with logits that are not numbers, the stock result is an empty list."""
            return super().postprocess(*args, **kwargs) or {"score": 0.0, "start": 0, "end": 0, "answer": ""}

    return Stock


def _row(question: Question) -> dict[str, Any]:
    answers = {"text": list(question.answers), "answer_start": list(question.answer_starts)}
    return {"id": question.id, "question": question.question, "context": question.context, "answers": answers}


def _metric() -> Any:
    """A metric module that scores as `qabuild.squad` does and keeps the predictions, which the evaluator drops."""
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
            scores = squad.score(self.answers, {row["id"]: row["answers"]["text"] for row in references})
            return {"exact_match": scores.exact_match, "f1": scores.f1}

    return Squad()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and torch say of wrapped models, deprecations and devices: no user can mend those."""
    import warnings

    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
