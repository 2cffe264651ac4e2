"""The table [answer]: how questions are answered, sealed into the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from qabuild.system.frozen import Frozen

EARLIER: Mapping[str, Any] = {"max_question_len": 64, "align_to_words": True}
"""Parameters with which artifacts answer whose manifests, of earlier versions, have no such table."""


class Answer(Frozen):
    """How questions are answered, alike where the artifact is verified and wherever it is served."""

    max_seq_len: int | None = Field(
        None,
        ge=16,
        description="tokens of a window: question, context and special tokens; by default what the model reads, 384 at "
        "most",
    )
    max_question_len: int | None = Field(
        None,
        ge=1,
        description="tokens of a question that are read; by default all if question and context fit one window, else "
        "7/8 of `max_seq_len` less special tokens and `doc_stride`",
    )
    doc_stride: int | None = Field(
        None,
        ge=0,
        description="tokens of the context that two neighbouring windows share; by default half of `max_seq_len`, 128 "
        "at most",
    )
    max_answer_len: int = Field(15, ge=1, description="tokens of an answer, at most")
    align_to_words: bool | Literal["auto"] = Field(
        "auto",
        description='let answers begin and end with a word; with "auto", a token of a script that is written without '
        "spaces, such as Chinese, Japanese or Thai, is a word by itself",
    )
    handle_impossible_answer: bool | None = Field(
        None,
        description="let the empty answer compete; by default if the questions of [verify] include some without an "
        "answer",
    )

    @field_validator("doc_stride")
    @classmethod
    def _require_room(cls, stride: int | None, info: ValidationInfo) -> int | None:
        longest = info.data.get("max_seq_len")
        if stride is not None and longest is not None and stride >= longest:
            raise ValueError(f"`doc_stride` must be less than `max_seq_len`, and is {stride} to {longest}")
        return stride

    def parameters(self, *, unanswerable: bool) -> dict[str, Any]:
        """Parameters of the pipeline, for questions of which some are `unanswerable` or none; None is its default."""
        allowed = self.handle_impossible_answer
        return {**self.model_dump(), "handle_impossible_answer": unanswerable if allowed is None else allowed}
