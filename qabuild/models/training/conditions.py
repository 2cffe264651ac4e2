"""The device and dtype of a training, and whether this machine and checkpoint allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget
from qabuild.models.training.options import Autocast, Fit, Train

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


def device_and_dtype(machine: Mapping[str, Any], train: Fit) -> dict[str, Any]:
    """The device and the dtype of a training on `machine`, by the keys of its table, with `auto` resolved.

    On a GPU: bf16 if it supports it, else fp16. On a CPU: bf16 with AMX or AMD's AVX512-BF16, else fp32; on an Intel
    CPU with AVX512-BF16 and no AMX, multiplications in bf16 were measured to take 1.6 times as long as in fp32.
    """
    device = "cuda" if machine.get("gpus") else "cpu"
    resolved: Autocast
    if train.dtype != "auto":
        resolved = train.dtype
    elif device == "cuda":
        resolved = "bf16" if int(str(machine["gpu_architecture"])[3:]) >= 80 else "fp16"
    else:
        available = machine["instruction_sets"]
        resolved = (
            "bf16" if "AMX-BF16" in available or ("AVX512-BF16" in available and "AMD" in machine["cpu"]) else "fp32"
        )
    return {f"{train.table}.device": device, f"{train.table}.dtype": resolved}


def check(train: Fit, start: Checkpoint | None, machine: Mapping[str, Any]) -> None:
    """Raise BadTarget, before any work, for a training that cannot run on this machine or from that checkpoint."""
    if train.dtype == "fp16" and not machine.get("gpus"):
        raise BadTarget(
            f'{train.table}.dtype is "fp16", and there is no GPU here', 'on a CPU train in "bf16" or "fp32"'
        )
    config = start.config if start else {}
    count = config.get("num_hidden_layers", config.get("n_layers"))  # DistilBERT's key
    if start and isinstance(train, Train) and train.layers and isinstance(count, int):
        refuse_layers_beyond(train.layers, count, start.name)


def refuse_layers_beyond(layers: Sequence[int], count: int, name: str) -> None:
    """Raise BadTarget if the checkpoint `name`, of `count` layers, lacks one of `layers`."""
    if layers[-1] >= count:
        raise BadTarget(
            f"{name}: has layers 0 to {count - 1}, and train.layers names {layers[-1]}", "name some of them"
        )
