"""A model without its pruned places.

A pruned checkpoint keeps its shapes, and its pruned places are zero, so that everyone can open it. Compilers take the
model from here, where the neurons and heads that contribute nothing are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qabuild.models.checkpoint.load import load_model
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.pruning.structure import ARCHITECTURES, Layer, Part, layers

if TYPE_CHECKING:
    import torch

Kept = Sequence[Mapping[Part, Sequence[int]]]
"""The units of each layer that are left, by part; of a part without an entry all."""

MULTIPLE = 8
"""Neurons that contribute nothing stay where the width would not be a multiple of this, which kernels work on."""


def load_compact(checkpoint: Checkpoint, **options: Any) -> Any:
    """`load_model`, without the FFN neurons and attention heads whose outputs are multiplied by zero alone.

    The model computes the same. `options` are those of `load_model`, which says what is raised.
    """
    model = load_model(checkpoint, **options)
    compact(model)
    return model


def compact(model: Any) -> Kept:
    """Remove the neurons and heads that contribute nothing, where the architecture is one that can be pruned."""
    names = ARCHITECTURES.get(model.config.model_type)
    return [_compact(layer, names.parts) for layer in layers(model)] if names else []


def _compact(layer: Layer, parts: Sequence[Part]) -> Mapping[Part, Sequence[int]]:
    kept = {}
    for part in parts:
        live, count = layer.live(part), layer.count(part)
        if part == "ffn":
            live = _filled(live, count)
        if len(live) < count:
            kept[part] = live or [0]
            layer.keep(part, kept[part])
    return kept


def expand(model: Any, state: Mapping[str, torch.Tensor], kept: Kept) -> None:
    """Fill an unpruned `model` with the weights of its compact one, `state`, and with zeros where that has none."""
    import torch

    places: dict[int, tuple[int, torch.Tensor]] = {}
    for layer, of_layer in zip(layers(model), kept, strict=True):
        for part, units in of_layer.items():
            columns = layer.columns(part, units)
            for linear in layer.inputs(part):
                places |= {id(parameter): (0, columns) for parameter in linear.parameters()}
            places[id(layer.output(part).weight)] = (1, columns)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) in places:
                parameter.zero_().index_copy_(*places[id(parameter)], state[name])
            else:
                parameter.copy_(state[name])


def _filled(live: list[int], count: int) -> list[int]:
    """`live`, and as many others as make their number a multiple of `MULTIPLE`."""
    wanted = min(count, -(-len(live) // MULTIPLE) * MULTIPLE)
    others = (unit for unit in range(count) if unit not in set(live))
    return sorted([*live, *(next(others) for _ in range(wanted - len(live)))])
