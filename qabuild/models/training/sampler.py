"""The order of the windows: batches of about one length, and as good as shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEGABATCH = 64
"""Batches whose windows are sorted by length together: the more, the less padding, and the less chance."""


class LengthGroupedSampler:
    """Indices of windows, so that each `batch_size` of them, one after another, are of about one length.

    The windows are shuffled, cut into megabatches, sorted by length within each, and the batches of all megabatches
    shuffled. Some come twice, to fill the last batch: so each weighs the same, however many processes share it. All
    is drawn from (seed, epoch) alone: a training that is taken up again needs no random state for it, and every
    process draws the same.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._lengths) // self._batch_size) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        import numpy as np

        draw = np.random.default_rng([self._seed, self._epoch])
        order = np.resize(draw.permutation(len(self._lengths)), len(self))
        size = self._batch_size * MEGABATCH
        batches: list[NDArray[np.int64]] = []
        for begin in range(0, len(order), size):
            mega = order[begin : begin + size]
            mega = mega[np.argsort(-self._lengths[mega], kind="stable")]
            batches += [mega[at : at + self._batch_size] for at in range(0, len(mega), self._batch_size)]
        for index in draw.permutation(len(batches)):
            yield from batches[index].tolist()
