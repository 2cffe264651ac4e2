"""Output projections, fitted by least squares to give what they gave before their inputs were pruned.

Each token counts by the inverse of its output's mean square: a few tokens, such as separators, have outputs that are
larger by orders of magnitude, and would decide the fit alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qabuild.models.pruning.structure import Layer, Part

if TYPE_CHECKING:
    import torch

DAMPING = 1e-4
"""Ridge, relative to the mean of the Gram matrix's diagonal."""
SMALLEST = 1e-3
"""Added to the mean square of a token's output, so that one of almost no output does not decide the fit either."""


class Moments:
    """Weighted second moments of a projection's inputs over tokens, with a constant 1 as last input.

    The moments of inputs and outputs follow from them, since the outputs are a linear function of the inputs.
    """

    def __init__(self, layer: Layer, part: Part) -> None:
        import torch

        self._layer, self._part = layer, part
        size = layer.output(part).in_features + 1
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._hook = layer.output(part).register_forward_hook(self._add)
        self.mask: torch.Tensor | None = None
        """Of the batch that passes, [rows, length]: tokens with 0 are left out."""

    def _add(self, _: Any, arguments: tuple[Any, ...], output: Any) -> None:
        import torch

        assert self.mask is not None
        values, outputs = (each.detach()[self.mask.bool()] for each in (arguments[0], output))
        weights = 1 / (outputs.square().mean(1, keepdim=True) + SMALLEST)
        values = torch.cat([values, values.new_ones(len(values), 1)], 1)
        self._gram += ((values * weights).T @ values).double()

    def remove(self) -> None:
        self._hook.remove()

    def refit(self, kept: Sequence[int]) -> None:
        """Fit the columns of the `kept` units, and the bias, to the output that all units gave."""
        import torch

        output = self._layer.output(self._part)
        columns = self._layer.columns(self._part, kept)
        inputs = torch.cat([columns, torch.tensor([output.in_features])])
        gram = self._gram[inputs][:, inputs]
        ridge = DAMPING * gram.diagonal().mean()
        whole = torch.cat([output.weight.data, output.bias.data[:, None]], 1).double()
        # The ridge pulls towards the weights that are there, not towards 0.
        wanted = self._gram[inputs] @ whole.T + ridge * whole[:, inputs].T
        gram.diagonal().add_(ridge)
        fitted = torch.linalg.solve(gram, wanted).T.to(output.weight.dtype)
        output.weight.data[:, columns] = fitted[:, :-1]
        output.bias.data[:] = fitted[:, -1]


def collect(model: Any, batches: Iterable[Mapping[str, Any]], moments: Sequence[Moments], names: Sequence[str]) -> None:
    """Pass the batches through the model; `names` are its inputs."""
    import torch

    for batch in batches:
        for each in moments:
            each.mask = batch["attention_mask"]
        with torch.inference_mode():
            model(**{name: batch[name] for name in names})
