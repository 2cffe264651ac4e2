"""A model is given what its forward takes, whatever its tokenizer names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForQuestionAnswering

import qabuild
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.training import fit, teacher_logits
from qabuild.models.training.options import Distill, Train
from qabuild.models.training.request import Request
from qabuild.qa.model_inputs import input_names
from qabuild.qa.pipeline import QuestionAnsweringPipeline

ALL = SimpleNamespace(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
TWO = SimpleNamespace(model_input_names=["input_ids", "attention_mask"])


class Named(torch.nn.Module):
    def forward(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> None: ...


class Wrapping(torch.nn.Module):
    def forward(self, *args: Any, **named: Any) -> None: ...


class Maskless(torch.nn.Module):
    def forward(self, input_ids: Any, token_type_ids: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("model", "tokenizer", "expected"),
    [
        (Named(), ALL, ("input_ids", "attention_mask")),
        (torch.compile(Named()), ALL, ("input_ids", "attention_mask")),
        (Wrapping(), ALL, ("input_ids", "attention_mask", "token_type_ids")),
        (Wrapping(), TWO, ("input_ids", "attention_mask")),
        (Maskless(), ALL, ("input_ids", "token_type_ids")),
        (Maskless(), None, ("input_ids", "token_type_ids")),
        (print, TWO, ("input_ids", "attention_mask")),
    ],
)
def test_names(model: Any, tokenizer: Any, expected: tuple[str, ...]) -> None:
    assert input_names(model, tokenizer) == expected


@pytest.mark.parametrize("model_type", sorted(tiny.ARCHITECTURES))
def test_every_architecture_tells_its_inputs(model_type: str, tiny_checkpoint: Callable[..., Path]) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(tiny_checkpoint(model_type))
    names = input_names(model, ALL)
    assert names[:2] == ("input_ids", "attention_mask")
    assert ("token_type_ids" in names) == (model_type not in ("distilbert", "modernbert", "mpnet"))


@pytest.fixture
def distilbert(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A DistilBERT whose tokenizer names token types."""
    directory = tmp_path / "distilbert"
    shutil.copytree(tiny_checkpoint("distilbert"), directory)
    path = directory / "tokenizer_config.json"
    names = {"model_input_names": ALL.model_input_names, "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    assert load_tokenizer(directory).model_input_names == ALL.model_input_names
    return directory


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
def test_it_is_built_and_verified(distilbert: Path, backend: str, tmp_path: Path) -> None:
    target = tmp_path / "target.toml"
    target.write_text(
        f"""
        checkpoint = {{ model = "{distilbert}" }}
        backend = {{ name = "{backend}" }}
        verify = {{ dataset = "sample", samples = 20 }}
        """
    )
    assert qabuild.build(target).verification.passed


def test_it_is_trained_with_a_teacher_of_its_kind(distilbert: Path, tmp_path: Path) -> None:
    train = Train(dataset="sample", samples=40, epochs=1, batch_size=8, max_seq_len=96, doc_stride=24, dtype="fp32")
    common = {"start": resolve(distilbert), "teacher": resolve(distilbert), "train": train, "device": "cpu"}
    common |= {"dtype": "fp32", "work": tmp_path / "work", "offline": True}
    logits, result = tmp_path / "logits", tmp_path / "result"
    for folder in (tmp_path / "work", logits, result):
        folder.mkdir()
    teacher_logits.run(Request(step="logits", distill=None, logits=None, directory=logits, **common), lambda _: None)
    distill = Distill(teacher=CheckpointSource(model=str(distilbert)))
    request = Request(step="train", distill=distill, logits=logits, directory=result, **common)
    assert fit.run(request, lambda _: None)["steps"] > 1


def test_a_distilbert_whose_tokenizer_names_token_types_answers(tiny_checkpoint: Callable[..., Path]) -> None:
    directory = tiny_checkpoint("distilbert")
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    tokenizer, other = load_tokenizer(directory), load_tokenizer(directory)
    other.model_input_names = ALL.model_input_names
    example = {"question": tiny.QUESTION, "context": tiny.CONTEXT}
    expected = QuestionAnsweringPipeline(model, tokenizer)(**example)
    assert QuestionAnsweringPipeline(model, other)(**example) == expected
