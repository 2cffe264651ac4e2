"""A component of Haystack that extracts answers with an artifact, where Haystack's own reader would stand.

Importing this module imports Haystack; nothing else of qabuild does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qabuild.artifact.load import load

try:
    from haystack import Document, ExtractedAnswer, component, default_from_dict, default_to_dict
except ImportError as error:
    raise ImportError(f"{error}: pip install 'qabuild[haystack]'", name=error.name) from error

if TYPE_CHECKING:
    from qabuild.qa.pipeline import QuestionAnsweringPipeline


CALIBRATION = 0.1
"""The default of Haystack's reader."""


@component
class QABuildExtractiveReader:
    """Extracts answers to a query from documents, with a verified artifact.

    It takes and returns what Haystack's extractive reader does: after a retriever, connect `documents`. A score does
    not depend on what else the document holds, so that the answers of several can be compared: it is the sigmoid of a
    tenth of the span's two logits, as Haystack's reader computes it by default. Spans with the same text count
    together, as in the stock pipeline; a larger `top_k` finds more of them, and can raise a score.
    """

    def __init__(
        self,
        artifact: str,
        *,
        revision: str | None = None,
        digest: str | None = None,
        allow_native: bool = False,
        allow_unverified: bool = False,
        top_k: int = 20,
        score_threshold: float | None = None,
        no_answer: bool | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        """`artifact` to `allow_unverified` are those of `qabuild.load`, which `warm_up` calls.

        `top_k` is the number of answers from all documents together, of which those below `score_threshold` are left
        out. With `no_answer`, an answer without text competes: that no document has one, with the model's least score
        for it; the default is as the artifact was verified. `parameters` are further ones of a call of the pipeline,
        such as `doc_stride`; with `normalize`, scores are those of the pipeline.
        """
        self.artifact = str(artifact)
        self.revision = revision
        self.digest = digest
        self.allow_native = allow_native
        self.allow_unverified = allow_unverified
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.no_answer = no_answer
        self.parameters = parameters
        self._pipeline: QuestionAnsweringPipeline | None = None
        component.set_output_types(self, answers=list[ExtractedAnswer])

    def warm_up(self) -> None:
        """Load the artifact, unless it is loaded. Raises as `qabuild.load` does."""
        if self._pipeline is None:
            self._pipeline = load(
                self.artifact,
                revision=self.revision,
                digest=self.digest,
                allow_native=self.allow_native,
                allow_unverified=self.allow_unverified,
            )

    def to_dict(self) -> dict[str, Any]:
        """The component as Haystack stores it in a pipeline's file."""
        stored: dict[str, Any] = default_to_dict(
            self,
            artifact=self.artifact,
            revision=self.revision,
            digest=self.digest,
            allow_native=self.allow_native,
            allow_unverified=self.allow_unverified,
            top_k=self.top_k,
            score_threshold=self.score_threshold,
            no_answer=self.no_answer,
            parameters=self.parameters,
        )
        return stored

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QABuildExtractiveReader:
        """The component that `to_dict` stored."""
        restored: QABuildExtractiveReader = default_from_dict(cls, data)
        return restored

    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
        no_answer: bool | None = None,
    ) -> dict[str, list[ExtractedAnswer]]:
        """The answers in the documents, best first; what is given here overrides what the component was made with.

        Documents without a text are passed over.
        """
        self.warm_up()
        assert self._pipeline is not None
        count = self.top_k if top_k is None else top_k
        threshold = self.score_threshold if score_threshold is None else score_threshold
        given = dict(self.parameters or {})
        if (competes := self.no_answer if no_answer is None else no_answer) is not None:
            given["handle_impossible_answer"] = competes
        calibrated = given.setdefault("normalize", "none") == "none"
        read = [document for document in documents if (document.content or "").strip()]
        asked = ({"question": query, "context": document.content} for document in read)
        results = self._pipeline(asked, **{**given, "top_k": count})
        answers: list[ExtractedAnswer] = []
        empty_scores: list[float] = []
        for document, result in zip(read, results, strict=True):
            for found in result if isinstance(result, list) else [result]:
                score = _calibrated(found["score"]) if calibrated else found["score"]
                if found["answer"]:
                    answers.append(_extracted(query, document, found, score))
                else:
                    empty_scores.append(score)
        # Where a document lacks it, `count` answers have a higher score.
        if read and len(empty_scores) == len(read):
            answers.append(ExtractedAnswer(query=query, score=min(empty_scores)))
        best = sorted(answers, key=lambda answer: -answer.score)[:count]
        return {"answers": [answer for answer in best if threshold is None or answer.score >= threshold]}


def _calibrated(score: float) -> float:
    """The sigmoid of `CALIBRATION` times the sum of two logits, of which `score` is the exponential."""
    odds: float = score**CALIBRATION
    return odds / (1 + odds)


def _extracted(query: str, document: Document, found: dict[str, Any], score: float) -> ExtractedAnswer:
    place = ExtractedAnswer.Span(found["start"], found["end"])
    meta = {"question_truncated": True} if "question_truncated" in found else {}
    return ExtractedAnswer(
        query=query, score=score, data=found["answer"], document=document, document_offset=place, meta=meta
    )
