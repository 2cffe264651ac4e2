"""Scripts that are written without spaces between words: of such text, a tokenizer's words are whole sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCKS = (
    *((0x0E00, 0x109F), (0x1780, 0x17FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),  # Thai, Lao, Tibetan, Burmese; Khmer
    *((0x2E80, 0x312F), (0x3190, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Chinese, Japanese
    *((0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF9F)),  # their wide punctuation, narrow kana
)
"""First and last code point of the blocks, those of punctuation among them."""


def unspaced(text: str) -> NDArray[np.bool_]:
    """[characters]: whether each belongs to a script without spaces."""
    import numpy as np

    if text.isascii():
        return np.zeros(len(text), dtype=bool)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    borders = np.array(sorted((first, last + 1) for first, last in BLOCKS)).ravel()
    inside: NDArray[np.bool_] = np.searchsorted(borders, codes, side="right") % 2 == 1
    return inside
