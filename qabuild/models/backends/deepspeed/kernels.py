"""Models whose layers are DeepSpeed's CUDA kernels. It imports torch and DeepSpeed at once: import it inside functions
only, once DeepSpeed's output is dealt with."""

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
    """The GPU's, as `TORCH_CUDA_ARCH_LIST` names it: 9.0."""
    return ".".join(map(str, torch.cuda.get_device_capability(device)))


def restart_layers() -> None:
    """Let the layers of the model that is made next be counted from 0, whatever was made before it.

    DeepSpeed counts the layers of all models of a process, and the number decides where a layer writes.
    """
    DeepSpeedTransformerInference.layer_id = DeepSpeedSelfAttention.num_layers = 0


def layers_of(engine: Any) -> list[Any]:
    """The layers that DeepSpeed put in the place of the model's own."""
    return [module for module in engine.module.modules() if isinstance(module, DeepSpeedTransformerInference)]


class Kernels:
    """An engine with DeepSpeed's kernels, for batches of any size.

    The kernels of a process share one workspace. The first batch that a model gets sizes it, for its own rows and
    `max_out_tokens` tokens of each; with a larger one they write beyond its end. So each model sizes it for `ROWS`
    rows before its first batch, again where another model did so since, and gets no more than that at once.
    """

    _sized_for: ClassVar[Kernels | None] = None

    def __init__(self, engine: Any, layers: Sequence[Any], inputs: Sequence[str], device: torch.device) -> None:
        self._engine, self._layers = engine, layers
        ones = torch.ones(ROWS, 2, dtype=torch.int64, device=device)
        self._largest = {name: ones if name == "attention_mask" else torch.zeros_like(ones) for name in inputs}
        self._size_workspace()

    def __call__(self, **given: torch.Tensor) -> list[torch.Tensor]:
        if Kernels._sized_for is not self:
            self._size_workspace()
        parts = zip(*(tensor.split(ROWS) for tensor in given.values()), strict=True)
        answered = [self._engine(**dict(zip(given, part, strict=True)))[:2] for part in parts]
        return [torch.cat(logits) for logits in zip(*answered, strict=True)]

    def _size_workspace(self) -> None:
        """Let the first layer allocate the workspace, as it does at its first batch. Raises RuntimeError where the GPU
        has no room for it."""
        first = self._layers[0]
        DeepSpeedTransformerInference.layer_id = DeepSpeedSelfAttention.num_layers = len(self._layers)
        DeepSpeedTransformerInference.workspace = WorkspaceOp(first.config)
        first._should_allocate_workspace = True
        with torch.inference_mode(), captured(1):
            self._engine(**self._largest)
        Kernels._sized_for = self
