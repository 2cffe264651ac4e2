"""Parameters of a pipeline and of its calls."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, Literal

from qabuild.qa.parameter_values import CHOICES, COUNTS
from qabuild.qa.pipeline.windows import Cut

FLAGS = ("align_to_words", "handle_impossible_answer")
"""Parameters in which numbers count as flags."""
MAX_SPANS_AT_ONCE = 1 << 18
"""Spans held for questions answered together, counted as if every question had one window."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of a pipeline or a call; see `QuestionAnsweringPipeline`.

    Numbers may be those of numpy or torch, or flags; the fields hold Python's.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool | Literal["auto"] = True
    padding: bool | str = "do_not_pad"
    batch_size: int | None = None
    batch_tokens: int | None = None
    normalize: Literal["window", "context", "none"] = "window"

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _count(name, getattr(self, name)))
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if name in FLAGS:
                object.__setattr__(self, name, _flag(name, value))
            elif not isinstance(value, bool | str) or value not in choices:
                raise ValueError(f"{name} must be one of {choices} (got {value!r})")

    def updated(self, named: Mapping[str, Any], others: Iterable[str] = ()) -> Parameters:
        """These parameters updated with `named`; None changes nothing, and `topk` is the old name of `top_k`.

        Raises TypeError for an unknown name; it suggests a similar one of these or of the `others` that a caller takes.
        """
        changes = {name: value for name, value in named.items() if value is not None}
        changes.pop("num_workers", None)  # the stock pipeline's; this one has no worker processes
        if "topk" in changes:
            warnings.warn("topk parameter is deprecated, use top_k instead", UserWarning, stacklevel=3)
            changes.setdefault("top_k", changes["topk"])
            del changes["topk"]
        names = [field.name for field in fields(self)]
        if unknown := sorted(changes.keys() - set(names)):
            raise TypeError(
                f"unexpected parameters: {', '.join(_with_suggestion(name, [*names, *others]) for name in unknown)}"
            )
        return replace(self, **changes)

    def cut(self, tokenizer: Any) -> Cut:
        """How windows are cut, within the tokenizer's limits.

        Raises ValueError if `doc_stride` is larger than `max_seq_len`.
        """
        longest, stride = self._window(tokenizer.model_max_length)
        return Cut(
            max_seq_len=longest,
            doc_stride=stride,
            max_question_len=self.max_question_len,
            from_the_end=tokenizer.truncation_side == "left",
        )

    def check(self, limit: int) -> None:
        """Raise ValueError for windows that no model takes which reads `limit` tokens at once."""
        longest, stride = self._window(limit)
        if longest > limit:
            raise ValueError(f"`max_seq_len` ({longest}) is more than the model reads ({limit})")
        if stride == longest:
            raise ValueError(f"`doc_stride` ({stride}) leaves no tokens for text in `max_seq_len` ({longest})")

    def _window(self, limit: int) -> tuple[int, int]:
        """Tokens of a window, and of the overlap of two. Raises ValueError if there are more of the latter."""
        longest = self.max_seq_len or min(limit, 384)
        stride = min(longest // 2, 128) if self.doc_stride is None else self.doc_stride
        if stride > longest:
            raise ValueError(f"`doc_stride` ({stride}) is larger than `max_seq_len` ({longest})")
        return longest, stride

    @property
    def n_best(self) -> int:
        """Spans searched in each window: more than `top_k`, because alignment to words merges some."""
        return self.top_k * 2 + 10 if self.align_to_words else self.top_k

    def questions_at_once(self, most: int) -> int:
        """How many questions, at most `most`, are answered together, so that memory holds their spans."""
        return max(1, min(most, MAX_SPANS_AT_ONCE // self.n_best))


def _count(name: str, value: Any) -> int:
    number = _number(value)
    if number is None or number != number // 1:
        # torch's DataLoader, to which the stock pipeline gives the batch size, raises ValueError.
        error = ValueError if name == "batch_size" else TypeError
        raise error(f"{name} parameter should be a whole number (got {value!r})")
    if number < COUNTS[name]:
        raise ValueError(f"{name} parameter should be >= {COUNTS[name]} (got {value})")
    return int(number)


def _flag(name: str, value: Any) -> bool | str:
    if isinstance(value, str) and value in CHOICES[name]:
        return value
    number = _number(value)
    if number is None:
        others = "".join(f" or {each!r}" for each in CHOICES[name] if isinstance(each, str))
        raise TypeError(f"{name} parameter should be True or False{others} (got {value!r})")
    return bool(number)


def _number(value: Any) -> Any:
    """`value` as a Python number, or None if it is none; scalars of numpy and torch, and booleans, are numbers."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    return value if isinstance(value, Real) else None


def _with_suggestion(name: str, names: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name, names, n=1)
    return f"{name} (did you mean {similar[0]}?)" if similar else name
