"""Traces a model and loads the trace. Imports torch on import: import it inside functions only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qabuild.models.backends import vet
from qabuild.models.backends.logit_check import TOLERANCES, outputs_of, probes, require_same
from qabuild.models.backends.torch_model import AUTOCAST, Positional, TorchModel, completed, device, named
from qabuild.models.backends.torchscript.archive import problems, save
from qabuild.models.runtime import Runtime
from qabuild.qa.model_inputs import input_names
from qabuild.system import files

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


def build(checkpoint: Checkpoint, runtime: Runtime, path: Path) -> dict[str, Any]:
    """Trace the checkpoint's model on the runtime's device and write it to `path`; return the manifest's record."""
    from qabuild.models.checkpoint.load import load_tokenizer
    from qabuild.models.pruning.compact import load_compact

    target = device(runtime)
    tokenizer = load_tokenizer(checkpoint.directory)
    model = load_compact(checkpoint).to(target)
    inputs = input_names(model, tokenizer)
    batches = list(probes(tokenizer, inputs, model.config))
    eager = TorchModel(model, inputs, model.config, target, AUTOCAST[runtime.dtype])
    save(trace(eager, batches[0]), path)
    refused = [name for name in input_names(model) if name not in inputs]
    compiled = load(path, inputs, refused, model.config, runtime)
    expected = outputs_of(eager, batches)
    difference = require_same(expected, compiled, batches, TOLERANCES[runtime.dtype], "the traced module")
    return {
        "inputs": list(inputs),
        "refused": refused,
        "device": runtime.device,
        "traced_shape": list(batches[0]["input_ids"].shape),
        "largest_difference": difference,
    }


def trace(eager: TorchModel, example: dict[str, Any]) -> Any:
    """Trace and freeze the model, with autocast's casts in the graph.

    Autocast's cache of casts is off: a cached cast would refer to a tensor of another graph.
    """
    arguments = tuple(example[name].to(eager.device) for name in eager.inputs)
    with torch.no_grad(), eager.autocast(cache_enabled=False):
        traced = torch.jit.trace(Positional(eager.compute, eager.inputs).eval(), arguments, check_trace=False)
        return torch.jit.freeze(traced)


def load(path: Path, inputs: Sequence[str], refused: Sequence[str], config: Any, runtime: Runtime) -> Any:
    """Load the traced module in `path` on its device.

    `inputs`: those that were traced; `refused`: others that the architecture takes and the trace does not.
    Raises UntrustedInput for an archive that holds more than a traced module.
    """
    target = device(runtime)
    files.require_native(path)
    vet.vet(path, problems)
    module = torch.jit.load(path, map_location=target)

    def compute(**tensors: torch.Tensor) -> Any:
        with torch.jit.optimized_execution(False):
            return module(*completed(tensors, inputs).values())

    return named(TorchModel(compute, inputs, config, target, AUTOCAST[runtime.dtype], refused), config)
