"""The cross-check: a second pipeline answers the artifact's questions too, run by evaluate's evaluator.

That is transformers' own ("stock") pipeline on transformers 4.57, and the plain decoder on transformers 5, which has no
such pipeline. No other module depends on which it is.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qabuild.qa import ask, squad_metric
from qabuild.qa.ask import Answered
from qabuild.system.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qabuild.qa.data import Question

PACKAGES = ("evaluate", *ask.PACKAGES)

STOCK, PLAIN = "stock", "plain_decoder"

LABELS = {STOCK: "transformers' own pipeline", PLAIN: "the plain decoder"}


def pipeline_name() -> str:
    """The pipeline that checks here: `STOCK` if the installed transformers has it, else `PLAIN`."""
    import transformers

    return STOCK if hasattr(transformers, "QuestionAnsweringPipeline") else PLAIN


class SecondPipeline:
    """The second pipeline over a loaded model; a call answers questions through the evaluator.

    `batch_size` is that of the stock pipeline; the plain decoder answers one question at a time. `parameters` are those
    of either; None is their default.
    """

    def __init__(self, model: Any, tokenizer: Any, parameters: Mapping[str, Any], *, batch_size: int) -> None:
        self.name = pipeline_name()
        self.batch_size = batch_size if self.name == STOCK else 1
        self._parameters = {name: value for name, value in parameters.items() if value is not None}
        with _quiet():
            make = _stock_pipeline if self.name == STOCK else _PlainPipeline
            self._pipeline = make(model, tokenizer, self.batch_size, self._parameters)

    def __call__(self, questions: Sequence[Question]) -> Answered:
        """Answer the questions in order, timed by the evaluator."""
        import datasets
        from evaluate.evaluator import QuestionAnsweringEvaluator

        class Evaluator(QuestionAnsweringEvaluator):  # type: ignore[misc]
            PIPELINE_KWARGS: dict[str, Any] = {}  # noqa: RUF012 - own copy, since compute() modifies it

            def prepare_pipeline(self, model_or_pipeline: Any, *_: Any, **__: Any) -> Any:
                return model_or_pipeline  # the original looks for classes that transformers 5 has not

        with _quiet(), tempfile.TemporaryDirectory() as folder:
            metric = _metric(folder)
            result = Evaluator().compute(
                model_or_pipeline=self._pipeline,
                data=datasets.Dataset.from_list([_row(question) for question in questions]),
                metric=metric,
                squad_v2_format=self._parameters["handle_impossible_answer"],
            )
        return Answered(answers=metric.answers, seconds=float(result["total_time_in_seconds"]))


def _row(question: Question) -> dict[str, Any]:
    answers = {"text": list(question.answers), "answer_start": list(question.answer_starts)}
    return {"id": question.id, "question": question.question, "context": question.context, "answers": answers}


class _PlainPipeline:
    """The plain decoder, with the interface that the evaluator calls."""

    task = "question-answering"

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, parameters: Mapping[str, Any]) -> None:
        self._model, self._tokenizer, self._parameters = model, tokenizer, parameters

    def __call__(self, *, question: Sequence[str], context: Sequence[str], **_: Any) -> list[Any]:
        from qabuild.qa.plain_decoder import answer

        pairs = zip(question, context, strict=True)
        return [answer(self._model, self._tokenizer, *pair, **self._parameters) or NO_SPAN for pair in pairs]


def _stock_pipeline(model: Any, tokenizer: Any, batch_size: int, parameters: Mapping[str, Any]) -> Any:
    """transformers' pipeline, with results in the form that the evaluator reads.

    It knows neither how a question is cut, which it documents but does with slow tokenizers only, nor `align_to_words`
    "auto" of text in scripts without spaces; the plain decoder does that part.
    """
    from transformers import QuestionAnsweringPipeline

    from qabuild.qa import plain_decoder

    class Pipeline(QuestionAnsweringPipeline):  # type: ignore[misc]
        _context: str

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Always a list: for a list of one question, the stock pipeline returns the bare result."""
            result = super().__call__(*args, **kwargs)
            return result if isinstance(result, list) else [result]

        def preprocess(self, example: Any, max_question_len: int | None = None, **kwargs: Any) -> Any:
            context, named = example.context_text, {"max_seq_len": None, "doc_stride": None, **kwargs}
            limits = plain_decoder.window_limits(tokenizer, named["max_seq_len"], named["doc_stride"])
            question = plain_decoder.cut_question(tokenizer, example.question_text, context, *limits, max_question_len)
            return super().preprocess({"question": question, "context": context}, **kwargs)

        def postprocess(self, model_outputs: Any, **kwargs: Any) -> Any:
            outputs = list(model_outputs)
            self._context = outputs[0]["example"].context_text
            return super().postprocess(outputs, **kwargs) or NO_SPAN

        def get_indices(self, enc: Any, s: int, e: int, sequence_index: int, align_to_words: Any) -> tuple[int, int]:
            if align_to_words == "auto" and plain_decoder.UNSPACED.search(self._context):
                return plain_decoder.characters(enc, int(s), int(e), self._context, align_to_words)
            indices: tuple[int, int] = super().get_indices(enc, s, e, sequence_index, align_to_words)
            return indices

    return Pipeline(
        model=model,
        tokenizer=tokenizer,
        device=model.device,
        batch_size=batch_size,
        task="question-answering",
        **parameters,
    )


NO_SPAN = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
"""For the empty list that both pipelines return where no span is left, as with NaN logits."""


def _metric(folder: str) -> Any:
    """A metric that scores with `squad_metric` and stores the predictions, which the evaluator discards.

    `folder` is its cache: the default is in the user's home, which a service may not have.
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
            """Score in memory: the base class would first write every row to a file in the cache."""
            self.answers = {row["id"]: row["prediction_text"] for row in predictions}
            scores = squad_metric.score(self.answers, {row["id"]: row["answers"]["text"] for row in references})
            return {"exact_match": scores.exact_match, "f1": scores.f1}

    return Squad(cache_dir=folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' warnings on wrapped models, deprecations, devices and metrics, which users cannot fix."""
    evaluator = logging.getLogger("evaluate.evaluator.question_answering")
    evaluator.disabled = True
    try:
        with quiet_transformers():
            yield
    finally:
        evaluator.disabled = False
