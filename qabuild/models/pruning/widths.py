"""How many neurons and heads each layer keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from qabuild.errors import BadTarget
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.structure import PARTS, Layer, Part

if TYPE_CHECKING:
    from qabuild.models.pruning.importance import Scores

Widths = list[dict[Part, int]]
"""Neurons and heads that each layer keeps."""

TYPICAL_LENGTH = 160
"""Tokens of a window, for the operations of attention: SQuAD's have about as many."""


class _Block(NamedTuple):
    """Units of one layer that are kept or pruned together: its most important ones, then the next, and so on."""

    value: float
    """Importance for each operation."""
    cost: float
    """Operations for each token."""
    layer: int
    part: Part
    size: int


def choose(options: Prune, layers: Sequence[Layer], scores: Scores) -> Widths:
    """The widths that `options` ask for, so that what is pruned is of the least importance.

    Raises BadTarget if they leave a layer nothing, or state widths that the model does not have.
    """
    if options.widths is not None:
        return _stated(options.widths, layers)
    if options.flops is not None:
        blocks = [*_blocks(layers, scores, "ffn", options.round_to), *_blocks(layers, scores, "heads", 1)]
        return _best(blocks, options.flops * sum(block.cost for block in blocks), layers)
    widths = all_of(layers)
    for part in PARTS:
        share = options.ffn if part == "ffn" else options.heads
        if share is not None:
            blocks = _blocks(layers, scores, part, options.round_to if part == "ffn" else 1)
            best = _best(blocks, share * sum(block.cost for block in blocks), layers)
            widths = [{**width, part: chosen[part]} for width, chosen in zip(widths, best, strict=True)]
    return widths


def all_of(layers: Sequence[Layer]) -> Widths:
    """What an unpruned model has."""
    return [{part: layer.count(part) for part in PARTS} for layer in layers]


def operations(layers: Sequence[Layer], widths: Widths) -> float:
    """Operations for each token of what `widths` name, in the layers' products."""
    return sum(
        width[part] * _unit_cost(layer, part) for layer, width in zip(layers, widths, strict=True) for part in width
    )


def _stated(stated: Sequence[tuple[int, int]], layers: Sequence[Layer]) -> Widths:
    there = [(layer.count("ffn"), layer.count("heads")) for layer in layers]
    fits = len(stated) == len(there) and all(
        wanted <= count
        for one, other in zip(stated, there, strict=True)
        for wanted, count in zip(one, other, strict=True)
    )
    if not fits:
        raise BadTarget(
            f"prune.widths names {[list(pair) for pair in stated]}, and the model's layers have "
            f"{[list(pair) for pair in there]} neurons and heads",
            "name a pair [neurons, heads] for each layer, none of them greater than the model's",
            key="prune.widths",
        )
    return [{"ffn": neurons, "heads": heads} for neurons, heads in stated]


def _blocks(layers: Sequence[Layer], scores: Scores, part: Part, size: int) -> list[_Block]:
    """The blocks of all layers; each layer's are in descending order of importance, the last may be smaller."""
    blocks = []
    for number, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        for units in score[part].sort(descending=True).values.split(size):
            cost = len(units) * _unit_cost(layer, part)
            blocks.append(_Block(float(units.sum()) / cost, cost, number, part, len(units)))
    return blocks


def _unit_cost(layer: Layer, part: Part) -> float:
    """Operations of one unit for each token: two for each weight, and, for a head, those of attention."""
    linears = [*layer.inputs(part), layer.output(part)]
    weights: int = sum(linear.weight.numel() for linear in linears) // layer.count(part)
    return 2 * weights + (4 * TYPICAL_LENGTH * layer.head_size if part == "heads" else 0)


def _best(blocks: Sequence[_Block], budget: float, layers: Sequence[Layer]) -> Widths:
    """The most important blocks within `budget` operations, and the first of each layer in any case."""
    first: dict[tuple[int, Part], _Block] = {}
    for block in blocks:
        first.setdefault((block.layer, block.part), block)
    rest = [block for block in blocks if first[block.layer, block.part] is not block]
    kept = list(first.values())
    left = budget - sum(block.cost for block in kept)
    for block in sorted(rest, key=lambda block: -block.value):
        if block.cost <= left:
            kept.append(block)
            left -= block.cost
    widths: Widths = [{} for _ in layers]
    for block in kept:
        widths[block.layer][block.part] = widths[block.layer].get(block.part, 0) + block.size
    return widths
