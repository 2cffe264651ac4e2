"""The steps by which a checkpoint is trained, and all that decides each of them.

logits    the teacher's logits on the windows that the student learns from, once
search    trials of alpha and temperature, of which the best is taken
train     the training itself, whose result is a checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.builder.store.local import Inputs, key_of
from qabuild.errors import BadTarget
from qabuild.models.training.options import Autocast, StepName, Train
from qabuild.models.training.student import refuse_layers_beyond
from qabuild.system import hub
from qabuild.target.lineage import Trained

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


_SHARED = (
    "backends/attention",
    "checkpoint",
    "data",
    "pipeline/parameters",
    "pipeline/windows",
    "training/examples",
)
CODE: dict[str, tuple[str, ...]] = {
    "logits": (*_SHARED, "training/logits"),
    "search": (*_SHARED, "pipeline", "squad", "training"),
    "train": (*_SHARED, "pipeline", "squad", "training"),
}
"""Modules whose code decides a step's result."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A training, and what is known of the checkpoints that take part in it."""

    trained: Trained
    label: str
    """What stands before the names of its steps: nothing for the target's own."""
    start: Checkpoint | None
    teacher: Checkpoint | None
    result: Checkpoint | None
    """What the training made, where the store has it."""
    inputs: Mapping[StepName, Inputs]
    """Of each step that it has, in order."""

    @property
    def key(self) -> str | None:
        """Of the training itself; None where something that decides it is not known yet."""
        return key_of(self.inputs["train"]) if is_known(self.inputs["train"]) else None


def is_known(inputs: Inputs) -> bool:
    """Whether all that decides a step is known: a Hub id that was not resolved is not."""
    return None not in [inputs.get(part, "") for part in ("checkpoint", "teacher", "train.dataset", "logits")]


def conditions(machine: Mapping[str, Any], dtype: Autocast) -> dict[str, Any]:
    """Where a training runs on `machine`, and in which numbers: what `auto` is here.

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


def check(train: Train, start: Checkpoint | None, conditions: Mapping[str, Any]) -> None:
    """Raise BadTarget, before any work, for a training that could not be carried out here or from that checkpoint."""
    if train.dtype == "fp16" and conditions["train.device"] == "cpu":
        raise BadTarget('train.dtype is "fp16", and there is no GPU here', 'on a CPU train in "bf16" or "fp32"')
    config = start.config if start else {}
    count = config.get("num_hidden_layers", config.get("n_layers"))  # DistilBERT's own name for it
    if start and train.layers and isinstance(count, int):
        refuse_layers_beyond(train.layers, count, start.name)


def inputs_of(
    trained: Trained,
    *,
    start: str | None,
    teacher: str | None,
    data: str | None,
    conditions: Mapping[str, Any],
    code: Mapping[str, str],
    packages: Mapping[str, str],
) -> dict[StepName, Inputs]:
    """What decides each step of a training.

    `start` and `teacher` are digests of checkpoints, or keys of the trainings that will make them; `data` is the
    digest or commit of the data set; `conditions` the device and the dtype; `code` a digest for each step.
    """
    steps: dict[StepName, Inputs] = {}
    windows = _windows(trained, data)
    if trained.distill:
        steps["logits"] = {"teacher": teacher, **windows, **conditions, **packages, "code": code["logits"]}
        if trained.distill.search:
            steps["search"] = {
                "checkpoint": start,
                "logits": _key(steps["logits"]),
                **_options(trained),
                **_flat("distill.search", trained.distill.search.model_dump(mode="json")),
                **conditions,
                **packages,
                "code": code["search"],
            }
    steps["train"] = {
        "checkpoint": start,
        **windows,
        **_options(trained),
        **({"logits": _key(steps["logits"])} if "logits" in steps else {}),
        **_weights_of_losses(trained, steps),
        **conditions,
        **packages,
        "code": code["train"],
    }
    return steps


def _key(inputs: Inputs) -> str | None:
    return key_of(inputs) if is_known(inputs) else None


def _windows(trained: Trained, data: str | None) -> dict[str, Any]:
    """Which windows are learnt from."""
    train = trained.train
    drawn = train.samples is not None or train.held_out > 0
    return {
        "train.dataset": data,
        "train.split": None if hub.is_path(train.dataset) else train.split,
        "train.samples": train.samples,
        "train.held_out": train.held_out,
        "train.draw": train.seed if drawn else None,
        "train.max_misplaced": train.max_misplaced,
        "train.max_seq_len": train.max_seq_len,
        "train.doc_stride": train.doc_stride,
    }


def _options(trained: Trained) -> dict[str, Any]:
    """What else decides the training, but for how often its state is saved."""
    elsewhere = {"dataset", "revision", "fingerprint", "split", "samples", "held_out", "max_misplaced", "dtype"}
    elsewhere |= {"max_seq_len", "doc_stride", "save_steps", "deepspeed"}
    options = _flat("train", trained.train.model_dump(mode="json", exclude=elsewhere))
    return options | ({"train.deepspeed": _content(trained.train.deepspeed)} if trained.train.deepspeed else {})


def _content(path: str) -> str:
    """A config counts by what it says, however that is laid out."""
    try:
        return json.dumps(json.loads(Path(path).read_text(encoding="utf-8")), sort_keys=True)
    except (OSError, ValueError) as error:
        raise BadTarget(f"train.deepspeed: {path}: {error}", "let it name a DeepSpeed config, a JSON file") from None


def _weights_of_losses(trained: Trained, steps: Mapping[StepName, Inputs]) -> dict[str, Any]:
    if trained.distill is None:
        return {}
    if "search" in steps:
        return {"search": _key(steps["search"])}
    return {"distill.alpha": trained.distill.alpha, "distill.temperature": trained.distill.temperature}


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}
