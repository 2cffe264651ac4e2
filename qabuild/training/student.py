"""The model that is trained: a checkpoint's, some of its layers, or one of the same shape with random weights."""

from __future__ import annotations

from typing import Any

from qabuild.checkpoint import Checkpoint, load_model
from qabuild.errors import BadTarget
from qabuild.origin import Train
from qabuild.training.steps import refuse_layers_beyond


def make_student(start: Checkpoint, train: Train) -> Any:
    """The model, in fp32 on the CPU. What is random in it follows from `train.seed`.

    Raises BadTarget for layers that the checkpoint does not have, and what `load_model` raises.
    """
    import torch

    torch.manual_seed(train.seed)
    model = _fresh(start) if train.from_config else load_model(start, fresh_head=True)
    if train.layers is not None:
        keep_layers(model, train.layers, start.name)
    if train.dropout is not None:
        set_dropout(model, train.dropout)
    return model


def keep_layers(model: Any, layers: tuple[int, ...], name: str) -> None:
    """Drop all layers of the encoder but those; they keep their weights.

    Raises BadTarget where there is no such layer, or no list of layers of its own weights (ALBERT shares one).
    """
    from torch.nn import ModuleList

    count = model.config.num_hidden_layers
    found = [
        (parent, key)
        for parent in model.modules()
        for key, child in parent.named_children()
        if isinstance(child, ModuleList) and len(child) == count
    ]
    if len(found) != 1:
        raise BadTarget(
            f"{name}: the layers of a {model.config.model_type!r} cannot be told apart",
            "leave out train.layers, and name a smaller checkpoint as the student",
        )
    refuse_layers_beyond(layers, count, name)
    parent, key = found[0]
    setattr(parent, key, ModuleList([getattr(parent, key)[layer] for layer in layers]))
    model.config.num_hidden_layers = len(layers)


def set_dropout(model: Any, share: float) -> None:
    """Let every dropout of the model drop that share while it is trained; its config stays as it is.

    Attention that calls torch's function has no `Dropout` for it, but keeps the share as a number.
    """
    from torch.nn import Dropout

    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = share
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, share)


def _fresh(start: Checkpoint) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    config = AutoConfig.from_pretrained(start.directory, local_files_only=True, trust_remote_code=False)
    return AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)
