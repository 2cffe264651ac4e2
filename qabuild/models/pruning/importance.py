"""Importance of FFN neurons and attention heads by Fisher information.

Each unit has a mask, 1 where it is kept. To second order, and with the Hessian replaced by the empirical Fisher
information, setting the mask of unit i to 0 raises the loss by half of the mean over the examples of (d loss / d
mask_i) squared: Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers", arXiv 2204.09656,
equation 6. Its diagonal alone is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qabuild.models.pruning.structure import Layer, Part, layers

if TYPE_CHECKING:
    import torch

Scores = Sequence[Mapping[Part, "torch.Tensor"]]
"""The importance of each unit, fp64 [units], by layer and part."""


def fisher(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    losses: Callable[[Mapping[str, Any]], torch.Tensor],
    parts: Iterable[Part],
) -> Scores:
    """Score the units of `parts` in all layers of `model`; `losses` passes a batch, and returns its rows' losses."""
    probes = [{part: _Probe(layer, part) for part in parts} for layer in layers(model)]
    try:
        for batch in batches:
            losses(batch).sum().backward()
            model.zero_grad()
            for of_layer in probes:
                for probe in of_layer.values():
                    probe.collect()
    finally:
        for of_layer in probes:
            for probe in of_layer.values():
                probe.remove()
    return [{part: probe.score for part, probe in of_layer.items()} for of_layer in probes]


class _Probe:
    """Sums the squared gradients of the masks of one layer's units.

    The gradient of a mask is the sum, over the unit's values, of value times gradient: no mask needs to be there.
    """

    def __init__(self, layer: Layer, part: Part) -> None:
        import torch

        self.score = torch.zeros(layer.count(part), dtype=torch.float64)
        self._units = layer.count(part)
        self._gradient: Any = None
        self._hook = layer.output(part).register_forward_pre_hook(self._watch)

    def _watch(self, _: Any, arguments: tuple[Any, ...]) -> None:
        (values,) = arguments

        def add(gradient: torch.Tensor) -> None:
            products = (values.detach() * gradient).sum(1).view(len(values), self._units, -1).sum(2)
            # A layer that is used several times has one mask.
            self._gradient = products if self._gradient is None else self._gradient + products

        values.register_hook(add)

    def collect(self) -> None:
        self.score += self._gradient.double().pow(2).sum(0)
        self._gradient = None

    def remove(self) -> None:
        self._hook.remove()
