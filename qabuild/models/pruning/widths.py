"""How many neurons and heads each layer keeps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple

from qabuild.errors import BadTarget
from qabuild.models.pruning.latency_table import Latency
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
    """Importance for each unit of cost."""
    cost: float
    """Operations for each token, or time."""
    layer: int
    part: Part
    size: int


Cost = Callable[[Layer, Part, int], float]
"""What so many units of a layer's part cost."""


def choose(options: Prune, layers: Sequence[Layer], scores: Scores, latency: Latency | None = None) -> Widths:
    """The widths that `options` ask for, so that what is pruned is of the least importance; `speedup` needs `latency`.

    Raises BadTarget if they leave a layer nothing, state widths that the model does not have, or ask for a speedup that
    no widths reach.
    """
    if options.widths is not None:
        return _stated(options.widths, layers)
    if options.speedup is not None:
        assert latency
        return _as_fast(options.speedup, layers, _by_time(layers, scores, options.round_to, latency), latency)
    if options.flops is not None:
        blocks = [*_blocks(layers, scores, "ffn", options.round_to), *_blocks(layers, scores, "heads", 1)]
        return _of_share(options.flops, "flops", blocks, layers)
    widths = all_of(layers)
    for part in PARTS:
        share = options.ffn if part == "ffn" else options.heads
        if share is not None:
            blocks = _blocks(layers, scores, part, options.round_to if part == "ffn" else 1)
            best = _of_share(share, part, blocks, layers)
            widths = [{**width, **chosen} for width, chosen in zip(widths, best, strict=True)]
    return widths


def _of_share(share: float, key: str, blocks: Sequence[_Block], layers: Sequence[Layer]) -> Widths:
    """The most important blocks of a share of all. Raises BadTarget where that is less than one block of each layer."""
    whole, first = sum(block.cost for block in blocks), {(block.layer, block.part): block for block in blocks[::-1]}
    least = sum(block.cost for block in first.values()) / whole
    if share < least:
        finer = "" if key == "heads" else ", or for a lower prune.round_to"
        raise BadTarget(
            f"prune.{key}: {share:g} would leave some layers nothing: each keeps at least one head, and prune.round_to "
            "neurons",
            f"ask for {ceil(1000 * least) / 1000:g} or more{finer}",
            key=f"prune.{key}",
        )
    return _best(blocks, share * whole, layers)


def _by_time(layers: Sequence[Layer], scores: Scores, round_to: int, latency: Latency) -> list[_Block]:
    """The blocks of the parts that `latency` has times of, each with the time that it takes."""

    def cost(layer: Layer, part: Part, width: int) -> float:
        return -latency.saved(part, width) / len(layers)

    sizes = {"ffn": round_to, "heads": 1}
    return [block for part in latency.times for block in _blocks(layers, scores, part, sizes[part], cost)]


def _as_fast(speedup: float, layers: Sequence[Layer], blocks: Sequence[_Block], latency: Latency) -> Widths:
    fastest = latency.of(_best(blocks, 0, layers))
    if fastest * speedup > 1:
        raise BadTarget(
            f"prune.speedup: {speedup:g} is asked, and {int(100 / fastest) / 100:g} is the best that pruning reaches "
            "on this machine",
            "ask for less, or distil to fewer layers first",
            key="prune.speedup",
        )
    least = 1 - sum(block.cost for block in blocks)  # the time that no width changes
    return _filled(_best(blocks, 1 / speedup - least, layers), layers)


def _filled(chosen: Widths, layers: Sequence[Layer]) -> Widths:
    """`chosen`, with all units of the parts that are not pruned."""
    return [{**every, **width} for every, width in zip(all_of(layers), chosen, strict=True)]


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


def _operations(layer: Layer, part: Part, width: int) -> float:
    """Operations for each token."""
    return width * _unit_cost(layer, part)


def _blocks(
    layers: Sequence[Layer], scores: Scores, part: Part, size: int, cost_of: Cost = _operations
) -> list[_Block]:
    """The blocks of all layers; each layer's are in descending order of importance, the last may be smaller."""
    blocks = []
    for number, (layer, score) in enumerate(zip(layers, scores, strict=True)):
        width = 0
        for units in score[part].sort(descending=True).values.split(size):
            cost = cost_of(layer, part, width + len(units)) - cost_of(layer, part, width)
            value = float(units.sum()) / cost if cost > 0 else inf
            blocks.append(_Block(value, cost, number, part, len(units)))
            width += len(units)
    return blocks


def _unit_cost(layer: Layer, part: Part) -> float:
    """Operations of one unit for each token: two for each weight, and, for a head, those of attention."""
    linears = [*layer.inputs(part), layer.output(part)]
    weights: int = sum(linear.weight.numel() for linear in linears) // layer.count(part)
    return 2 * weights + (4 * TYPICAL_LENGTH * layer.head_size if part == "heads" else 0)


def _best(blocks: Sequence[_Block], budget: float, layers: Sequence[Layer]) -> Widths:
    """The most important blocks whose cost is within `budget`, and the first of each layer in any case.

    A layer's next block is kept before those behind it.
    """
    waiting: dict[tuple[int, Part], deque[_Block]] = {}
    for block in blocks:
        waiting.setdefault((block.layer, block.part), deque()).append(block)
    kept = [of_layer.popleft() for of_layer in waiting.values()]
    left = budget - sum(block.cost for block in kept)
    while waiting := {place: of_layer for place, of_layer in waiting.items() if of_layer}:
        place = max(waiting, key=lambda place: waiting[place][0].value)
        block = waiting[place].popleft()
        if block.cost <= left:
            kept.append(block)
            left -= block.cost
        else:
            del waiting[place]
    widths: Widths = [{} for _ in layers]
    for block in kept:
        widths[block.layer][block.part] = widths[block.layer].get(block.part, 0) + block.size
    return widths
