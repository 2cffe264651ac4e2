"""Parameters of a pipeline and of its calls."""

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
"""Integer parameters and their minimum values."""
MAX_SPANS_AT_ONCE = 1 << 18
"""Spans held for questions answered together, counted as if every question had one window."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of a pipeline or a call; see `QuestionAnsweringPipeline`."""

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
        for name, minimum in COUNTS.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool):
                raise TypeError(f"{name} parameter should be a whole number (got {value!r})")
            if value < minimum:
                raise ValueError(f"{name} parameter should be >= {minimum} (got {value})")
        for name in ("handle_impossible_answer", "align_to_words"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} parameter should be True or False (got {getattr(self, name)!r})")
        for name, choices in (
            ("normalize", ("window", "context")),
            ("padding", (False, True, "do_not_pad", "longest", "max_length")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices} (got {getattr(self, name)!r})")

    def updated(self, named: Mapping[str, Any]) -> Parameters:
        """These parameters updated with `named`; None changes nothing, and `topk` is the old name of `top_k`."""
        changes = {name: value for name, value in named.items() if value is not None}
        changes.pop("num_workers", None)  # the stock pipeline's; this one has no worker processes
        if "topk" in changes:
            warnings.warn("topk parameter is deprecated, use top_k instead", UserWarning, stacklevel=3)
            changes.setdefault("top_k", changes["topk"])
            del changes["topk"]
        unknown = changes.keys() - {field.name for field in fields(self)}
        if unknown:
            raise TypeError(f"unexpected parameters: {', '.join(sorted(unknown))}")
        return replace(self, **changes)

    def cut(self, tokenizer: Any) -> Cut:
        """How windows are cut, within the tokenizer's limits.

        Raises ValueError if `doc_stride` is larger than `max_seq_len`.
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
        """Spans searched in each window: more than `top_k`, because alignment to words merges some."""
        return self.top_k * 2 + 10 if self.align_to_words else self.top_k

    def questions_at_once(self, most: int) -> int:
        """How many questions, at most `most`, are answered together, so that memory holds their spans."""
        return max(1, min(most, MAX_SPANS_AT_ONCE // self.n_best))
