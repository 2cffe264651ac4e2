"""Batches of training windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qabuild.models.training.examples import Examples

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Numbers = NDArray[np.float32]


MULTIPLE = 16
"""Batches are padded to a multiple of this: matrix units work on tiles, and few shapes are easier on the allocator."""


class Collator:
    """Makes of windows' indices the padded tensors of one batch, with answers and, if given, a teacher's logits."""

    def __init__(self, examples: Examples, input_names: Sequence[str], logits: Logits | None = None) -> None:
        self._examples, self._names, self._logits = examples, input_names, logits

    def __call__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """input_ids and so on, int64 [rows, length]; start_positions and end_positions, int64 [rows]; where there is
        a teacher, its start and end logits, fp32 [rows, length], 0 on padding."""
        import numpy as np
        import torch

        examples, rows = self._examples, np.asarray(indices)
        windows = examples.windows
        length = -(-int(windows.length[rows].max()) // MULTIPLE) * MULTIPLE
        shift = windows.place(rows, length)[0] - windows.first[rows]
        arrays: dict[str, Any] = windows.arrays(rows, length, [*self._names, "attention_mask"])
        arrays |= {"start_positions": examples.starts[rows] + shift, "end_positions": examples.ends[rows] + shift}
        if self._logits is not None:
            padded = self._logits.padded(rows, shift, length)
            arrays |= {"teacher_start_logits": padded[0], "teacher_end_logits": padded[1]}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


@dataclass(frozen=True, kw_only=True)
class Logits:
    """`numbers` is [2, tokens]; window i has those from offsets[i] up to offsets[i + 1]."""

    numbers: Numbers
    offsets: NDArray[np.int64]

    def padded(self, rows: NDArray[np.int64], shift: NDArray[np.int64], length: int) -> Numbers:
        """[2, rows, length]: start and end logits of those windows, moved by `shift` columns; 0 on padding."""
        import numpy as np

        padded = np.zeros((2, len(rows), length), dtype=np.float32)
        for row, (window, by) in enumerate(zip(rows, shift, strict=True)):
            begin, end = self.offsets[window], self.offsets[window + 1]
            padded[:, row, by : by + end - begin] = self.numbers[:, begin:end]
        return padded
