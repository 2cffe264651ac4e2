"""Panics of libraries written in Rust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qabuild.errors import UntrustedInput
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.qa.pipeline.windows import Cut, WindowMaker
from qabuild.system import panic

BROKEN = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": ""},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
)


def fail(*_: object, **__: object) -> None:
    """Panic in the library tokenizers."""
    Tokenizer.from_str(BROKEN)


def test_a_panic_is_untrusted_input_and_interrupts_pass() -> None:
    with pytest.raises(UntrustedInput, match=r"^x: a library failed on it: .*charsmap"), panic.explained("x"):
        fail()
    with pytest.raises(KeyboardInterrupt), panic.explained("x"):
        raise KeyboardInterrupt


def test_a_text_on_which_the_tokenizer_panics_is_an_error(
    tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = WindowMaker(load_tokenizer(tiny_checkpoint()))
    cut = Cut(max_seq_len=64, doc_stride=16, max_question_len=16)
    windows([("Who?", "Ann.")], cut)

    class Backend:
        encode_batch = encode_batch_fast = fail

    monkeypatch.setattr(windows, "_backend", Backend())
    with pytest.raises(UntrustedInput, match="bert: a library failed on it"):
        windows([("Where?", "There.")], cut)
