"""Pruned checkpoints: they open with transformers alone, and backends compile them without what was pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from qabuild.models.backends import BACKENDS, backend
from qabuild.models.checkpoint.load import load_model
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.pruning import structure
from qabuild.models.pruning.compact import load_compact
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.prune import prune
from qabuild.models.runtime import Runtime

SHARES = Prune(dataset="sample", samples=32, ffn=0.5, heads=0.5, round_to=8)
FFN = Prune(dataset="sample", samples=32, ffn=0.5, round_to=8)
WITH_HEADS = [name for name, each in structure.ARCHITECTURES.items() if each.prunes_heads]


def logits(model: Any, checkpoint: Checkpoint) -> torch.Tensor:
    from transformers import AutoTokenizer

    from qabuild.qa.model_inputs import input_names

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.directory)
    batch = tokenizer([tiny.QUESTION] * 2, [tiny.CONTEXT, tiny.CONTEXT[:90]], return_tensors="pt", padding=True)
    names = input_names(model, tokenizer)
    with torch.inference_mode():
        output = model(**{name: batch[name] for name in names})
    return torch.stack([output.start_logits, output.end_logits])[:, batch["attention_mask"].bool()]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """`pruned(model_type)`: a tiny checkpoint with half of its neurons and, where that can be, heads."""
    made: dict[str, Checkpoint] = {}

    def make(model_type: str) -> Checkpoint:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type)
            options = SHARES if model_type in WITH_HEADS else FFN
            prune(resolve(tiny_checkpoint(model_type)), options, folder)
            made[model_type] = resolve(folder)
        return made[model_type]

    return make


@pytest.mark.both_lines
@pytest.mark.parametrize("model_type", structure.ARCHITECTURES)
def test_a_pruned_checkpoint_opens_with_transformers_and_computes_what_the_compact_model_does(
    pruned: Callable[..., Checkpoint], model_type: str
) -> None:
    from transformers import AutoModelForQuestionAnswering

    checkpoint = pruned(model_type)
    untouched = AutoModelForQuestionAnswering.from_pretrained(checkpoint.directory).eval()
    smaller = load_compact(checkpoint)
    torch.testing.assert_close(logits(smaller, checkpoint), logits(untouched, checkpoint), atol=2e-5, rtol=1e-4)
    for layer in structure.layers(smaller):
        assert layer.ffn[0].weight.shape[0] == layer.ffn[1].weight.shape[1] == layer.count("ffn")
        if model_type in WITH_HEADS:
            assert layer.attention_output.weight.shape[1] == layer.count("heads") * 8
    before = sum(tensor.numel() for tensor in load_model(checkpoint).state_dict().values())
    assert sum(tensor.numel() for tensor in smaller.state_dict().values()) < before


@pytest.mark.both_lines
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("model_type", structure.ARCHITECTURES)
def test_every_backend_answers_as_the_pruned_checkpoint(
    pruned: Callable[..., Checkpoint], tmp_path: Path, model_type: str, name: str
) -> None:
    checkpoint, module, runtime = pruned(model_type), backend(name), Runtime()
    options = module.Options()
    module.compile(checkpoint, options, runtime, tmp_path)
    loaded = module.load(tmp_path, options, runtime)
    torch.testing.assert_close(
        logits(loaded, checkpoint), logits(load_model(checkpoint), checkpoint), atol=1e-3, rtol=1e-3
    )
