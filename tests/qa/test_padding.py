"""Every supported model type that may be padded is one whose logits padding does not change, and only those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForQuestionAnswering

from qabuild.models import support
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.qa.model_inputs import input_names
from qabuild.qa.padding import PADDABLE, is_paddable
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.windows import Cut, WindowMaker, Windows

ROUNDING = 5e-5
LONG = {"max_position_embeddings": 1100}
"""BigBird's attention is sparse beyond 704 tokens."""
EXAMPLES = [
    {"question": question, "context": " ".join(tiny.CORPUS[:count]) + " and so on" * extra}
    for question in ("Who built the lighthouse?", "When?")
    for count, extra in ((1, 0), (1, 3), (2, 0), (3, 1), (3, 2), (5, 0))
]


def loaded(directory: Path) -> tuple[Any, Any]:
    """Model and tokenizer; the padding token has an embedding other than 0, as in checkpoints trained in TensorFlow."""
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.pad_token_id].fill_(0.3)
    return model, load_tokenizer(directory)


def logits(model: Any, windows: Windows, rows: list[int], length: int, names: Any) -> torch.Tensor:
    """[2, tokens]: start and end logits of the first of the windows `rows`, padded to `length` in one batch."""
    arrays = windows.arrays(torch.tensor(rows).numpy(), length, names)
    with torch.inference_mode():
        output = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    return torch.stack([output.start_logits, output.end_logits])[:, 0, : windows.length[rows[0]]]


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
def test_padding_changes_the_logits_of_the_other_models_only(
    model_type: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    directory = tiny_checkpoint(model_type, **(LONG if model_type == "big_bird" else {}))
    model, tokenizer = loaded(directory)
    size = 720 if model_type == "big_bird" else 60
    texts = [(tiny.QUESTION, tiny.CONTEXT * 20), ("When?", tiny.CONTEXT * 20)]
    windows = WindowMaker(tokenizer)(texts, Cut(max_seq_len=size, doc_stride=0, max_question_len=64))
    second = int((windows.pair == 0).sum())
    names = input_names(model, tokenizer)
    alone = logits(model, windows, [0], size, names)
    padded = [logits(model, windows, [0], size + more, names) for more in (1, 4, 16, 90)]
    with_another = logits(model, windows, [0, second], size, names)
    changes = [float((other - alone).abs().max()) for other in (*padded, with_another)]
    assert changes[-1] < ROUNDING  # a window beside it, of its length, changes no model
    assert (max(changes) < ROUNDING) == (model_type in PADDABLE), changes


def test_every_supported_model_type_is_measured() -> None:
    assert set(support.model_types()) == set(tiny.ARCHITECTURES)
    assert set(tiny.ARCHITECTURES) >= PADDABLE


def test_a_model_that_nobody_has_measured_is_not_padded() -> None:
    assert not is_paddable(object())
    assert not is_paddable(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
def test_answers_do_not_depend_on_the_batch(model_type: str, tiny_checkpoint: Callable[..., Path]) -> None:
    pipeline = QuestionAnsweringPipeline(*loaded(tiny_checkpoint(model_type)), max_seq_len=200, doc_stride=30)
    one_by_one = [pipeline(**example, batch_size=1) for example in EXAMPLES]
    for parameters in ({}, {"batch_size": 2}, {"batch_size": 5}, {"batch_tokens": 700}):
        for one, other in zip(pipeline(EXAMPLES, **parameters), one_by_one, strict=True):
            assert one["score"] == pytest.approx(other["score"], rel=1e-3)
            assert (one["answer"], one["start"]) == (other["answer"], other["start"])
