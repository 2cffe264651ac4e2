"""Where a training runs, in which dtype, and whether it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget
from qabuild.models.training.options import Autocast, Train

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


def conditions(machine: Mapping[str, Any], dtype: Autocast) -> dict[str, Any]:
    """`train.device` and `train.dtype` on `machine`: what `auto` is here.

    On a GPU bf16 where it has it, else fp16. On a CPU bf16 with a matrix unit, or with AMD's AVX512-BF16; measured on
    an Intel CPU with AVX512-BF16 and no AMX, products in bf16 took 1.6 times as long as in fp32.
    """
    device = "cuda" if machine.get("gpus") else "cpu"
    if dtype != "auto":
        fast = dtype
    elif device == "cuda":
        fast = "bf16" if int(str(machine["gpu_architecture"])[3:]) >= 80 else "fp16"
    else:
        here = machine["instruction_sets"]
        fast = "bf16" if "AMX-BF16" in here or ("AVX512-BF16" in here and "AMD" in machine["cpu"]) else "fp32"
    return {"train.device": device, "train.dtype": fast}


def check(train: Train, start: Checkpoint | None, machine: Mapping[str, Any]) -> None:
    """Raise BadTarget, before any work, for a training that could not be carried out here or from that checkpoint."""
    if train.dtype == "fp16" and conditions(machine, train.dtype)["train.device"] == "cpu":
        raise BadTarget('train.dtype is "fp16", and there is no GPU here', 'on a CPU train in "bf16" or "fp32"')
    config = start.config if start else {}
    count = config.get("num_hidden_layers", config.get("n_layers"))  # DistilBERT's own name for it
    if start and train.layers and isinstance(count, int):
        refuse_layers_beyond(train.layers, count, start.name)


def refuse_layers_beyond(layers: Sequence[int], count: int, name: str) -> None:
    """Raise BadTarget if the checkpoint `name`, of `count` layers, lacks one of `layers`."""
    if layers[-1] >= count:
        raise BadTarget(
            f"{name}: has layers 0 to {count - 1}, and train.layers names {layers[-1]}", "name some of them"
        )
