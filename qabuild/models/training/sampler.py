"""The order of the windows: shuffled batches of windows of similar length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEGABATCH = 64
"""Batches whose windows are sorted by length together: more mean less padding and less randomness."""


class LengthGroupedSampler:
    """Window indices in batches of `batch_size` consecutive ones, each batch of similar length.

    The windows are shuffled, cut into megabatches and sorted by length within each; then the batches of all megabatches
    are shuffled. Some windows come twice, to fill the last batch, so that all batches weigh the same for any number of
    processes. The order depends on (seed, epoch) alone: resuming needs no saved random state, and every process draws
    the same order.
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

        generator = np.random.default_rng([self._seed, self._epoch])
        order = np.resize(generator.permutation(len(self._lengths)), len(self))
        size = self._batch_size * MEGABATCH
        batches: list[NDArray[np.int64]] = []
        for begin in range(0, len(order), size):
            megabatch = order[begin : begin + size]
            megabatch = megabatch[np.argsort(-self._lengths[megabatch], kind="stable")]
            starts = range(0, len(megabatch), self._batch_size)
            batches += [megabatch[start : start + self._batch_size] for start in starts]
        for index in generator.permutation(len(batches)):
            yield from batches[index].tolist()
