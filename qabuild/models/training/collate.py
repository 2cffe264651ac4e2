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

    Floats = NDArray[np.float32]


MULTIPLE = 16
"""Batches are padded to a multiple of this: matrix units work on tiles, and few shapes are easier on the allocator."""
BATCH_TOKENS = 8192
"""Maximum tokens of a batch that is not trained on, padding included."""


def batches_by_length(lengths: NDArray[np.int64], tokens: int = BATCH_TOKENS) -> list[NDArray[np.int64]]:
    """Batches of windows of similar length, longest first, with up to `tokens` tokens each; at least one window."""
    import numpy as np

    order = np.argsort(-lengths, kind="stable")
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, tokens // int(lengths[order[begin]]))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


class Collator:
    """Turns window indices into the padded tensors of a batch, with answer positions and, if given, teacher logits.

    `longest`: the model's positions, which no batch exceeds.
    """

    def __init__(
        self, examples: Examples, input_names: Sequence[str], logits: Logits | None = None, longest: int | None = None
    ) -> None:
        self._examples, self._names, self._logits, self._longest = examples, input_names, logits, longest

    def __call__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The model's inputs, int64 [rows, length]; start_positions and end_positions, int64 [rows]; with a teacher,
        teacher_start_logits and teacher_end_logits, fp32 [rows, length], 0 on padding."""
        import numpy as np
        import torch

        examples, rows = self._examples, np.asarray(indices)
        windows = examples.windows
        length = -(-int(windows.length[rows].max()) // MULTIPLE) * MULTIPLE
        length = min(length, self._longest or length)
        shift = windows.place(rows, length)[0] - windows.first[rows]
        arrays: dict[str, Any] = windows.arrays(rows, length, [*self._names, "attention_mask"])
        arrays |= {"start_positions": examples.starts[rows] + shift, "end_positions": examples.ends[rows] + shift}
        if self._logits is not None:
            padded = self._logits.padded(rows, shift, length)
            arrays |= {"teacher_start_logits": padded[0], "teacher_end_logits": padded[1]}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


@dataclass(frozen=True, kw_only=True)
class Logits:
    """A teacher's start and end logits, `values` [2, tokens]; window i has columns offsets[i] to offsets[i + 1]."""

    values: Floats
    offsets: NDArray[np.int64]

    def padded(self, rows: NDArray[np.int64], shift: NDArray[np.int64], length: int) -> Floats:
        """[2, rows, length]: start and end logits of the windows `rows`, shifted by `shift` columns; 0 on padding."""
        import numpy as np

        padded = np.zeros((2, len(rows), length), dtype=np.float32)
        for row, (window, offset) in enumerate(zip(rows, shift, strict=True)):
            begin, end = self.offsets[window], self.offsets[window + 1]
            padded[:, row, offset : offset + end - begin] = self.values[:, begin:end]
        return padded
