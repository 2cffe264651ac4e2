"""The time that a model takes to answer, by the widths of its layers; `latency` measures it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qabuild.models.pruning.structure import Part


@dataclass(frozen=True)
class Latency:
    """The time to answer of models that have some width in all layers, relative to the unpruned model."""

    times: Mapping[Part, Sequence[tuple[int, float]]]
    """Pairs of width and time of each part that can be pruned, ascending in both; the last is the unpruned model's."""

    @classmethod
    def measured(cls, times: Mapping[Part, Mapping[int, float]]) -> Latency:
        """The table of what was measured. That a wider layer is faster is noise, and passed over."""
        table: dict[Part, list[tuple[int, float]]] = {}
        for part, by_width in times.items():
            least, pairs = 1.0, []
            for width in sorted(by_width, reverse=True):
                least = min(least, by_width[width])
                pairs.append((width, least))
            table[part] = pairs[::-1]
        return cls(table)

    def saved(self, part: Part, width: int) -> float:
        """The share of the time that the models save whose layers all have this width, interpolated."""
        import numpy as np

        widths, times = zip(*self.times[part], strict=True)
        return float(times[-1] - np.interp(width, widths, times))

    def of(self, chosen: Sequence[Mapping[Part, int]]) -> float:
        """The time of a model with these widths of its layers."""
        return 1 - sum(self.saved(part, width[part]) for width in chosen for part in self.times) / len(chosen)
