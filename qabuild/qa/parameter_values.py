"""The parameters of a pipeline and their values, for all that checks or describes them."""

from __future__ import annotations

from collections.abc import Mapping

COUNTS: Mapping[str, int] = {
    "top_k": 1,
    "doc_stride": 0,
    "max_answer_len": 1,
    "max_seq_len": 1,
    "max_question_len": 1,
    "batch_size": 1,
    "batch_tokens": 1,
}
"""Integer parameters and their minimum values."""
CHOICES: Mapping[str, tuple[bool | str, ...]] = {
    "align_to_words": (False, True, "auto"),
    "handle_impossible_answer": (False, True),
    "normalize": ("window", "context", "none"),
    "padding": (False, True, "do_not_pad", "longest", "max_length"),
}
"""The other parameters and all of their values."""
BATCHING = ("batch_size", "batch_tokens", "padding")
"""Parameters that do not change what is answered."""
