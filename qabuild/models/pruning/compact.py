"""A model without its pruned places.

A pruned checkpoint keeps its shapes, and its pruned places are zero, so that everyone can open it. Compilers take the
model from here, where the neurons and heads that contribute nothing are gone.
"""

from __future__ import annotations

from typing import Any

from qabuild.models.checkpoint.load import load_model
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.pruning.structure import ARCHITECTURES, PARTS, layers

MULTIPLE = 8
"""Neurons that contribute nothing stay where the width would not be a multiple of this, which kernels work on."""


def load_compact(checkpoint: Checkpoint, **options: Any) -> Any:
    """`load_model`, without the FFN neurons and attention heads whose outputs are multiplied by zero alone.

    The model computes the same. `options` are those of `load_model`, which says what is raised.
    """
    model = load_model(checkpoint, **options)
    compact(model)
    return model


def compact(model: Any) -> None:
    """Remove the neurons and heads that contribute nothing, where the architecture is one that can be pruned."""
    names = ARCHITECTURES.get(model.config.model_type)
    for layer in layers(model) if names else ():
        for part in PARTS if names and names.prunes_heads else PARTS[:1]:
            live, count = layer.live(part), layer.count(part)
            if part == "ffn":
                live = _filled(live, count)
            if len(live) < count:
                layer.keep(part, live or [0])


def _filled(live: list[int], count: int) -> list[int]:
    """`live`, and as many others as make their number a multiple of `MULTIPLE`."""
    wanted = min(count, -(-len(live) // MULTIPLE) * MULTIPLE)
    others = (unit for unit in range(count) if unit not in set(live))
    return sorted([*live, *(next(others) for _ in range(wanted - len(live)))])
