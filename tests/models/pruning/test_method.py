"""The method: importance is the squared gradient of masks, the least important go, and a refit makes up for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from qabuild.models.backends import backend
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.pruning import importance, refit
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.prune import prune
from qabuild.models.pruning.structure import PARTS, layers
from qabuild.models.runtime import Runtime
from qabuild.models.training.loss import answer_losses
from qabuild.qa.model_inputs import input_names

QUESTIONS = [tiny.QUESTION, "Who was it?", tiny.QUESTION]
CONTEXTS = [tiny.CONTEXT, tiny.CONTEXT[:60], tiny.CONTEXT[:120]]


def batch_of(checkpoint: Checkpoint, model: Any) -> dict[str, torch.Tensor]:
    tokenizer = load_tokenizer(checkpoint.directory)
    encoded = tokenizer(QUESTIONS, CONTEXTS, return_tensors="pt", padding=True)
    return {name: encoded[name] for name in {*input_names(model, tokenizer), "attention_mask"}}


def losses_of(model: Any) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    starts, ends = torch.tensor([3, 5, 4]), torch.tensor([4, 6, 7])

    def losses(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        output = model(**batch)
        return answer_losses(output.start_logits, output.end_logits, starts, ends, batch["attention_mask"])

    return losses


@pytest.mark.parametrize("model_type", ["bert", "albert", "distilbert"])
def test_importance_is_the_sum_of_squared_gradients_of_masks(tiny_checkpoint, model_type):
    """Compared with masks that are there: of a layer that is used several times, one."""
    checkpoint = resolve(tiny_checkpoint(model_type))
    model = load_model(checkpoint)
    batch, losses = batch_of(checkpoint, model), losses_of(model)
    (scores, *_), (layer, *_) = importance.fisher(model, [batch], losses, PARTS), layers(model)
    for part in PARTS:
        mask = torch.ones(layer.count(part), requires_grad=True)
        spread = mask.repeat_interleave(layer.unit_size(part))
        hook = layer.output(part).register_forward_pre_hook(lambda _, arguments, s=spread: (arguments[0] * s,))
        expected = torch.zeros(layer.count(part))
        for loss in losses(batch):
            expected += torch.autograd.grad(loss, mask, retain_graph=True)[0].square()
        hook.remove()
        torch.testing.assert_close(scores[part].float(), expected, rtol=1e-3, atol=1e-9)


def test_a_refit_brings_the_output_nearer_to_what_it_was(tiny_checkpoint):
    checkpoint = resolve(tiny_checkpoint("bert"))
    model = load_model(checkpoint)
    batch, layer = batch_of(checkpoint, model), layers(model)[0]
    inputs: list[torch.Tensor] = []
    watch = layer.output("ffn").register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    moments = refit.Moments(layer, "ffn")
    refit.collect(model, [batch], [moments], list(batch))
    watch.remove()
    moments.remove()
    kept = list(range(0, layer.count("ffn"), 2))
    values = inputs[0][batch["attention_mask"].bool()]
    with torch.no_grad():
        before = layer.output("ffn")(values)
        masked = torch.zeros_like(values).index_copy_(1, torch.tensor(kept), values[:, kept])
        without = (layer.output("ffn")(masked) - before).square().sum()
        moments.refit(kept)
        fitted = (layer.output("ffn")(masked) - before).square().sum()
    assert fitted < 0.5 * without


def test_the_least_important_units_go(tiny_checkpoint, tmp_path, monkeypatch):
    """Of all layers together: the first layer is said to be of no importance, and keeps one block."""
    checkpoint = resolve(tiny_checkpoint("bert"))
    every = layers(load_model(checkpoint))
    count = every[0].count("ffn")
    ranks = [torch.arange(count).double() * (number > 0) + number for number in range(len(every))]
    monkeypatch.setattr(importance, "fisher", lambda *_: [{"ffn": ranks[number]} for number in range(len(every))])
    prune(checkpoint, Prune(ffn=0.5, round_to=4, dataset="sample", samples=32), tmp_path)
    first, *others = layers(load_model(resolve(tmp_path)))
    assert len(first.live("ffn")) == 4
    for layer in others:
        live = layer.live("ffn")
        assert live == list(range(count - len(live), count))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch_export", "torchscript"])
def test_what_was_pruned_is_not_in_the_artifact(tiny_checkpoint, tmp_path: Path, name):
    """Its files are smaller by what was cut, give or take 2 KiB of graph."""
    checkpoint, module = resolve(tiny_checkpoint("bert")), backend(name)
    for folder in ("pruned", "whole", "small"):
        (tmp_path / folder).mkdir()
    prune(checkpoint, Prune(ffn=0.25, round_to=8, dataset="sample", samples=32), tmp_path / "pruned")
    pruned = resolve(tmp_path / "pruned")
    for source, folder in ((checkpoint, "whole"), (pruned, "small")):
        module.compile(source, module.Options(), Runtime(), tmp_path / folder)
    whole, small = (
        sum(path.stat().st_size for path in (tmp_path / folder).glob("*model*")) for folder in ("whole", "small")
    )
    cut = sum(
        4 * (layer.count("ffn") - len(layer.live("ffn"))) * (layer.ffn[0].in_features + 1 + layer.ffn[1].out_features)
        for layer in layers(load_model(pruned))
    )
    assert whole - small == pytest.approx(cut, abs=2048)
