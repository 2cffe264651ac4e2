"""What the backends that run in torch have in common.

It imports torch at once, so it is itself imported inside functions only.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qabuild.errors import BadTarget, MissingEnvironment
from qabuild.models import sdpa_kernels
from qabuild.models.runtime import Runtime

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What an extractive question-answering encoder may take, in the order of the traced arguments."""

AUTOCAST = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}

Answer = Callable[..., Any]
"""Takes some of `INPUTS` by name and returns start and end logits, [batch, sequence] each, as its first two items."""


class TorchModel(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A compiled model that behaves like one of `AutoModelForQuestionAnswering`, for inference only.

    It stays on the device and in the numbers it was built for: `to` refuses any other.
    """

    def __init__(
        self,
        answer: Answer,
        inputs: Sequence[str],
        config: Any,
        device: torch.device,
        autocast: torch.dtype | None = None,
        refused: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.answer = answer
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
        wanted, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None or (wanted is not None and _indexed(wanted) != self._device):
            raise BadTarget(
                f"this model was built for {self._device} and cannot be moved to {wanted or dtype}",
                f"give the pipeline device={str(self._device)!r}, or build a target with the device you want",
            )
        return self

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> QuestionAnsweringModelOutput:
        """Start and end logits, float32 [batch, sequence], on the model's device.

        The inputs are int64 [batch, sequence], on any device; what the architecture has no use for is ignored. Raises
        ValueError for token types, other than 0, that it has a use for but was not compiled to take.
        """
        if "token_type_ids" in self.refused and token_type_ids is not None and bool(token_type_ids.any()):
            raise ValueError("this model was compiled without token_type_ids: its own tokenizer gives none")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        taken = {name: given[name].to(self._device) for name in self.inputs if given[name] is not None}
        with torch.inference_mode(), self.autocast(), sdpa_kernels.of_any_shape(self._device.type):
            start, end = self.answer(**taken)[:2]
            return QuestionAnsweringModelOutput(start_logits=start.float(), end_logits=end.float())

    def autocast(self, cache_enabled: bool = True) -> torch.autocast:
        """The autocast context of this model's numbers; one that does nothing for fp32."""
        dtype = self._autocast_dtype
        return torch.autocast(
            self._device.type, dtype=dtype or torch.float16, enabled=dtype is not None, cache_enabled=cache_enabled
        )


def completed(given: Mapping[str, torch.Tensor], inputs: Sequence[str]) -> dict[str, torch.Tensor]:
    """All of `inputs`, for a graph, which has no defaults: no mask means that every token counts, no token types that
    all are 0."""
    ids = given["input_ids"]
    defaults = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
    return {name: given[name] if name in given else defaults[name](ids) for name in inputs}


def named(model: Any, config: Any) -> Any:
    """Give the model's class the name of the architecture that it stands for, as the stock pipeline checks names."""
    names = getattr(config, "architectures", None) or [type(model).__name__]
    model.__class__ = type(names[0], (type(model),), {"__module__": type(model).__module__})
    return model


def device(runtime: Runtime) -> torch.device:
    """The runtime's device. Raises MissingEnvironment where torch has none of that kind."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise MissingEnvironment(
            "runtime.device is cuda, and torch finds no CUDA device here",
            "run it on a machine with a GPU and a CUDA build of torch, or set runtime.device to cpu",
        )
    return _indexed(torch.device(runtime.device))


def _indexed(device: torch.device) -> torch.device:
    """`cuda` as the device that it means now, such as `cuda:0`: the two do not compare equal."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(device.type) if device.type == "cpu" else device


def inputs_of(model: Any, tokenizer: Any = None) -> tuple[str, ...]:
    """Those of `INPUTS` that the model takes; without token types where a tokenizer is given that makes none."""
    taken = inspect.signature(model.forward).parameters
    unmade = {"token_type_ids"} - set(tokenizer.model_input_names if tokenizer else INPUTS)
    return tuple(name for name in INPUTS if name in taken and name not in unmade)


def stored_model(directory: Path, attention: Literal["eager", "sdpa"] | None = None) -> Any:
    """The eager fp32 model in `directory`, on the CPU."""
    from qabuild.models.checkpoint.load import load_model
    from qabuild.models.checkpoint.resolve import Checkpoint

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint(directory=directory, name=directory.name, revision=None, digest="", config=config)
    return load_model(checkpoint, attention=attention)


def copy_checkpoint(source: Path, directory: Path) -> None:
    """Copy config and weights byte for byte, so that the copy is a checkpoint as good as `source`."""
    from qabuild.models.checkpoint.weights import examine_weights

    for name in ("config.json", *examine_weights(source).files):
        shutil.copyfile(source / name, directory / name)


class Positional(torch.nn.Module):  # type: ignore[misc]  # torch is not type-checked here
    """A model that takes its inputs in order and returns two tensors, which is all that a trace can hold."""

    def __init__(self, model: Any, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**dict(zip(self.inputs, arguments, strict=True)))
        return output.start_logits, output.end_logits
