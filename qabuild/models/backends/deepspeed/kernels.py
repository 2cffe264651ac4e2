"""Models with DeepSpeed's injected CUDA kernels.

Imports torch and DeepSpeed on import: import it inside functions only, with DeepSpeed's output captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference
from deepspeed.ops.transformer.inference.ds_attention import DeepSpeedSelfAttention
from deepspeed.ops.transformer.inference.op_binding.workspace import WorkspaceOp

from qabuild.models.backends.deepspeed.options import ROWS
from qabuild.system.quiet import captured


def architecture(device: torch.device) -> str:
    """The GPU's compute capability, as in `TORCH_CUDA_ARCH_LIST`: 9.0."""
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def restart_layers() -> None:
    """Number the layers of the next model from 0.

    DeepSpeed numbers the layers of all models of a process, and the number decides where a layer writes.
    """
    DeepSpeedTransformerInference.layer_id = DeepSpeedSelfAttention.num_layers = 0


def layers_return_tuples(model: Any) -> bool:
    """Whether layers of the plain model, on the CPU, return tuples, as in transformers 4.57; in 5 they return tensors.

    The encoder passes on what a layer returns, so an injected layer has to return the same.
    """
    with torch.inference_mode():
        output = model.base_model.encoder.layer[0](torch.zeros(1, 1, model.config.hidden_size))
    return isinstance(output, tuple)


def layers_of(engine: Any, *, tuples: bool) -> list[Any]:
    """The injected layers, which replace the model's own, set to return tuples or tensors."""
    layers = [module for module in engine.module.modules() if isinstance(module, DeepSpeedTransformerInference)]
    for layer in layers:
        layer.config.return_tuple = tuples
    return layers


class Kernels:
    """An engine with DeepSpeed's kernels, for batches of any size.

    The kernels of a process share one workspace. A model's first batch sizes it, for that batch's rows and
    `max_out_tokens` tokens each; with a larger batch the kernels write beyond its end. So each model sizes it for
    `ROWS` rows before its first batch, and again if another model has done so since; larger batches are split.
    """

    _sized_for: ClassVar[Kernels | None] = None

    def __init__(self, engine: Any, layers: Sequence[Any], inputs: Sequence[str], device: torch.device) -> None:
        self._engine, self._layers = engine, layers
        ones = torch.ones(ROWS, 2, dtype=torch.int64, device=device)
        self._largest = {name: ones if name == "attention_mask" else torch.zeros_like(ones) for name in inputs}
        self._size_workspace()

    def __call__(self, **tensors: torch.Tensor) -> list[torch.Tensor]:
        if Kernels._sized_for is not self:
            self._size_workspace()
        parts = zip(*(tensor.split(ROWS) for tensor in tensors.values()), strict=True)
        outputs = [self._engine(**dict(zip(tensors, part, strict=True)))[:2] for part in parts]
        return [torch.cat(logits) for logits in zip(*outputs, strict=True)]

    def _size_workspace(self) -> None:
        """Make the first layer allocate the workspace, as at its first batch. Raises RuntimeError if the GPU lacks the
        memory."""
        first = self._layers[0]
        DeepSpeedTransformerInference.layer_id = DeepSpeedSelfAttention.num_layers = len(self._layers)
        DeepSpeedTransformerInference.workspace = WorkspaceOp(first.config)
        first._should_allocate_workspace = True
        with torch.inference_mode(), captured(1):
            self._engine(**self._largest)
        Kernels._sized_for = self
