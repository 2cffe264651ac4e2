"""The model to train: a checkpoint's, with all or some of its layers, or with random weights."""

from __future__ import annotations

from typing import Any

from qabuild.errors import BadTarget
from qabuild.models.checkpoint.load import load_config, load_model
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.training.conditions import refuse_layers_beyond
from qabuild.models.training.options import Train
from qabuild.system.quiet import quiet_tracing


def make_student(start: Checkpoint, train: Train) -> Any:
    """Build the model, in fp32 on the CPU. `train.seed` determines random weights.

    Its config holds the dropout of the training, see `restore_dropout`. Raises BadTarget for layers that the checkpoint
    does not have, and what `load_model` raises.
    """
    import torch
    from transformers import AutoModelForQuestionAnswering

    torch.manual_seed(train.seed)
    config = config_with_dropout(start, train.dropout)
    if train.from_config:
        with quiet_tracing():  # some models script functions when they are imported
            model = AutoModelForQuestionAnswering.from_config(config, dtype=torch.float32)
    else:
        model = load_model(start, fresh_head=True, config=config)
    if train.layers is not None:
        keep_layers(model, train.layers, start.name)
    return model


def config_with_dropout(start: Checkpoint, dropout: float | None) -> Any:
    """The checkpoint's config, for a model that is to be trained: with `dropout`, unless that is None.

    Before the model is built, since some models store the value, and some build dropout layers from it.
    """
    config = load_config(start.directory)
    if dropout is not None:
        config.update(dict.fromkeys(_dropouts(config), dropout))
    return config


def restore_dropout(model: Any, start: Checkpoint) -> None:
    """Set the dropout in the model's config back to the checkpoint's, before it is saved."""
    model.config.update(_dropouts(load_config(start.directory)))


def _dropouts(config: Any) -> dict[str, float]:
    """The dropout probabilities of a config, by key."""
    return {key: value for key, value in config.to_dict().items() if "dropout" in key and type(value) in (int, float)}


def keep_layers(model: Any, layers: tuple[int, ...], name: str) -> None:
    """Remove all encoder layers but `layers`, which keep their weights.

    Raises BadTarget if a layer does not exist, or if the layers are not one list with weights of their own (ALBERT
    shares the weights of one).
    """
    from torch.nn import ModuleList

    count = model.config.num_hidden_layers
    candidates = [
        (parent, key)
        for parent in model.modules()
        for key, child in parent.named_children()
        if isinstance(child, ModuleList) and len(child) == count
    ]
    if len(candidates) != 1:
        raise BadTarget(
            f"{name}: the layers of a {model.config.model_type!r} cannot be told apart",
            "leave out train.layers, and name a smaller checkpoint as the student",
        )
    refuse_layers_beyond(layers, count, name)
    parent, key = candidates[0]
    setattr(parent, key, ModuleList([getattr(parent, key)[layer] for layer in layers]))
    model.config.num_hidden_layers = len(layers)
