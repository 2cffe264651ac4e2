"""Shared by the backends that run in torch. Imports torch on import: import it inside functions only."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qabuild.errors import BadTarget, MissingEnvironment
from qabuild.models import sdpa_kernels
from qabuild.models.runtime import Runtime

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

ForwardFunction = Callable[..., Any]
"""Takes some of `INPUTS` by name; its first two outputs are start and end logits, [batch, sequence] each."""


class TorchModel(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A compiled model that behaves like an `AutoModelForQuestionAnswering`, for inference only.

    Device and dtype are fixed at build time: `to` refuses any other.
    """

    def __init__(
        self,
        compute: ForwardFunction,
        inputs: Sequence[str],
        config: Any,
        device: torch.device,
        autocast: torch.dtype | None = None,
        refused: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.compute = compute
        self.inputs = tuple(inputs)
        self.refused = tuple(refused)
        self.config = config
        self._device = device
        self._autocast_dtype = autocast
        self.eval()

    @property
    def device(self) -> torch.device:
        return self._device

    def can_generate(self) -> bool:
        return False

    def to(self, *args: Any, **kwargs: Any) -> Self:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None or (device is not None and _indexed(device) != self._device):
            raise BadTarget(
                f"this model was built for {self._device} and cannot be moved to {device or dtype}",
                f"give the pipeline device={str(self._device)!r}, or build a target with the device you want",
            )
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Compute start and end logits, float32 [batch, sequence], on the model's device.

        The inputs are int64 [batch, sequence], on any device; those that the architecture lacks are ignored. Raises
        ValueError for nonzero token types if the architecture takes them and the model was compiled without.
        """
        if "token_type_ids" in self.refused and token_type_ids is not None and bool(token_type_ids.any()):
            raise ValueError("this model was compiled without token_type_ids: its own tokenizer gives none")
        arguments = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: arguments[name].to(self._device) for name in self.inputs if arguments[name] is not None}
        with torch.inference_mode(), self.autocast(), sdpa_kernels.of_any_shape(self._device.type):
            start, end = self.compute(**inputs)[:2]
            return QuestionAnsweringModelOutput(start_logits=start.float(), end_logits=end.float())

    def autocast(self, cache_enabled: bool = True) -> torch.autocast:
        """The autocast context of this model's dtype; disabled for fp32."""
        dtype = self._autocast_dtype
        return torch.autocast(
            self._device.type, dtype=dtype or torch.float16, enabled=dtype is not None, cache_enabled=cache_enabled
        )


def completed(tensors: Mapping[str, torch.Tensor], inputs: Sequence[str]) -> dict[str, torch.Tensor]:
    """All `inputs` of a graph, which has no defaults: a missing mask becomes all 1, missing token types all 0."""
    ids = tensors["input_ids"]
    defaults = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
    return {name: tensors[name] if name in tensors else defaults[name](ids) for name in inputs}


def named(model: Any, config: Any) -> Any:
    """Name the model's class after its architecture, since the stock pipeline checks class names."""
    names = getattr(config, "architectures", None) or [type(model).__name__]
    model.__class__ = type(names[0], (type(model),), {"__module__": type(model).__module__})
    return model


def device(runtime: Runtime) -> torch.device:
    """The runtime's torch device. Raises MissingEnvironment if torch finds none of that kind."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise MissingEnvironment(
            "runtime.device is cuda, and torch finds no CUDA device here",
            "run it on a machine with a GPU and a CUDA build of torch, or set runtime.device to cpu",
        )
    return _indexed(torch.device(runtime.device))


def _indexed(device: torch.device) -> torch.device:
    """Replace `cuda` by the current device, such as `cuda:0`: the two do not compare equal."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device.type) if device.type == "cpu" else device


def stored_model(directory: Path, attention: Literal["eager", "sdpa"] | None = None, *, compact: bool = True) -> Any:
    """Load the eager fp32 model in `directory`, on the CPU; with `compact`, without its pruned places."""
    from qabuild.models.checkpoint.inspect import read_object
    from qabuild.models.checkpoint.load import load_model
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.models.pruning.compact import load_compact

    config = read_object(directory, "config.json")
    checkpoint = Checkpoint(directory=directory, name=directory.name, revision=None, digest="", config=config)
    return (load_compact if compact else load_model)(checkpoint, attention=attention)


def copy_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy config, weights and tokenizer: `directory` becomes a checkpoint."""
    from qabuild.models.checkpoint.load import copy_config, copy_tokenizer
    from qabuild.models.checkpoint.weights import examine_weights

    copy_config(checkpoint, directory)
    for name in examine_weights(checkpoint.directory).files:
        shutil.copyfile(checkpoint.directory / name, directory / name)
    copy_tokenizer(checkpoint, directory)


class Positional(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """Wraps a model for tracing: positional inputs, and two tensors as outputs."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**dict(zip(self.inputs, arguments, strict=True)))
        return output.start_logits, output.end_logits
