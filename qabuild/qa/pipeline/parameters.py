"""What a pipeline or one of its calls can set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any, Literal

from qabuild.qa.pipeline.windows import Cut

COUNTS = {
    "top_k": 1,
    "doc_stride": 0,
    "max_answer_len": 1,
    "max_seq_len": 1,
    "max_question_len": 1,
    "batch_size": 1,
    "batch_tokens": 1,
}
"""Parameters that are whole numbers, and the least that each can be."""
AT_ONCE_SPANS = 1 << 18
"""Spans kept of windows answered together, counted as if every question had one window."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What a pipeline or a call can set; see `QuestionAnsweringPipeline`."""

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    padding: bool | str = "do_not_pad"
    batch_size: int | None = None
    batch_tokens: int | None = None
    normalize: Literal["window", "context"] = "window"

    def __post_init__(self) -> None:
        for name, least in COUNTS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name} parameter should be a whole number (got {value!r})")
            if value < least:
                raise ValueError(f"{name} parameter should be >= {least} (got {value})")
        for name in ("handle_impossible_answer", "align_to_words"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} parameter should be True or False (got {getattr(self, name)!r})")
        for name, choices in (
            ("normalize", ("window", "context")),
            ("padding", (False, True, "do_not_pad", "longest", "max_length")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices} (got {getattr(self, name)!r})")

    def given(self, named: Mapping[str, Any]) -> Parameters:
        """These, with what `named` gives; None gives nothing, and `topk` is the old name of `top_k`."""
        given = {name: value for name, value in named.items() if value is not None}
        given.pop("num_workers", None)  # the stock pipeline's; there are no worker processes here
        if "topk" in given:
            warnings.warn("topk parameter is deprecated, use top_k instead", UserWarning, stacklevel=3)
            given.setdefault("top_k", given["topk"])
            del given["topk"]
        unknown = given.keys() - {field.name for field in fields(self)}
        if unknown:
            raise TypeError(f"unexpected parameters: {', '.join(sorted(unknown))}")
        return replace(self, **given)

    def cut(self, tokenizer: Any) -> Cut:
        """How windows are cut, where need be by the tokenizer's limits.

        Raises ValueError where windows would overlap by more than their length.
        """
        longest = self.max_seq_len or min(tokenizer.model_max_length, 384)
        stride = min(longest // 2, 128) if self.doc_stride is None else self.doc_stride
        if stride > longest:
            raise ValueError(f"`doc_stride` ({stride}) is larger than `max_seq_len` ({longest})")
        return Cut(
            max_seq_len=longest,
            doc_stride=stride,
            max_question_len=self.max_question_len,
            from_the_end=tokenizer.truncation_side == "left",
        )

    @property
    def n_best(self) -> int:
        """Spans kept of each window: more than asked for, because alignment to words makes one of several."""
        return self.top_k * 2 + 10 if self.align_to_words else self.top_k

    def questions_at_once(self, most: int) -> int:
        """How many questions, at most `most`, are few enough for their spans to be kept."""
        return max(1, min(most, AT_ONCE_SPANS // self.n_best))
