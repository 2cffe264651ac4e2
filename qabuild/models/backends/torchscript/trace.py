"""Tracing a model and running the trace. Imports torch at once: import it inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qabuild.models.backends.logit_check import TOLERANCES, answers, probes, require_same
from qabuild.models.backends.torch_model import AUTOCAST, Positional, TorchModel, completed, device, inputs_of, named
from qabuild.models.backends.torchscript.archive import save
from qabuild.models.runtime import Runtime

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


def build(checkpoint: Checkpoint, runtime: Runtime, path: Path) -> dict[str, Any]:
    """Trace the checkpoint's model on the runtime's device and write it to `path`; return what is to be recorded."""
    from qabuild.models.checkpoint.load import load_model, load_tokenizer

    where = device(runtime)
    tokenizer = load_tokenizer(checkpoint.directory)
    model = load_model(checkpoint).to(where)
    inputs = inputs_of(model, tokenizer)
    batches = list(probes(tokenizer, inputs, model.config))
    eager = TorchModel(model, inputs, model.config, where, AUTOCAST[runtime.dtype])
    save(trace(eager, batches[0]), path)
    refused = [name for name in inputs_of(model) if name not in inputs]
    compiled = load(path, inputs, refused, model.config, runtime)
    expected = answers(eager, batches)
    difference = require_same(expected, compiled, batches, TOLERANCES[runtime.dtype], "the traced module")
    return {
        "inputs": list(inputs),
        "refused": refused,
        "device": runtime.device,
        "traced_shape": list(batches[0]["input_ids"].shape),
        "largest_difference": difference,
    }


def trace(eager: TorchModel, example: dict[str, Any]) -> Any:
    """Trace and freeze, with the casts of autocast as part of the graph.

    Autocast must not keep its casts from one operator to the next: the trace would refer to tensors of another graph.
    """
    arguments = tuple(example[name].to(eager.device) for name in eager.inputs)
    with torch.no_grad(), eager.autocast(cache_enabled=False):
        traced = torch.jit.trace(Positional(eager.answer, eager.inputs).eval(), arguments, check_trace=False)
        return torch.jit.freeze(traced)


def load(path: Path, inputs: Sequence[str], refused: Sequence[str], config: Any, runtime: Runtime) -> Any:
    """The traced module in `path`, ready on its device.

    `inputs` are those that were traced, `refused` those that the architecture would take besides.
    """
    where = device(runtime)
    module = torch.jit.load(path, map_location=where)

    def answer(**given: torch.Tensor) -> Any:
        with torch.jit.optimized_execution(False):
            return module(*completed(given, inputs).values())

    return named(TorchModel(answer, inputs, config, where, AUTOCAST[runtime.dtype], refused), config)
