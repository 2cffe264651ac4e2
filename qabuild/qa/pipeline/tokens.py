"""Tokens of texts and the characters that they span, as arrays, by a tokenizer's Rust backend."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from qabuild.qa.pipeline.scripts import unspaced

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Booleans = NDArray[np.bool_]


def copy_backend(tokenizer: Any) -> Any:
    """A copy of the backend that neither truncates nor pads, so that the original's settings stay as they are."""
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    except Exception:  # components written in Python cannot be copied: share the backend
        backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
    return backend


def tables(texts: Sequence[str], encodings: Sequence[Any]) -> list[Integers]:
    """The tokens of each text, without special ones: int64 [5, tokens].

    The rows are a token's id; its first character, and the one after its last; whether a word begins with it, as the
    pre-tokenizer splits text; and whether it holds a character of a script without spaces between words (0 or 1).
    """
    import numpy as np

    # One array for all texts: a call of NumPy takes as long as what it does for one text.
    sizes = np.array([len(encoding) for encoding in encodings])
    stops = np.cumsum(sizes)
    count = int(stops[-1])
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64, count)
    spans = chain.from_iterable(encoding.offsets for encoding in encodings)
    places = np.fromiter(chain.from_iterable(spans), np.int64, 2 * count)
    begins, ends = places[::2], places[1::2]
    begins_word = _begins_word(encodings, count)
    begins_word[(stops - sizes)[sizes > 0]] = True
    table = np.stack([ids, begins, ends, begins_word, _unspaced(texts, sizes, begins, ends)])
    return [table[:, start:stop].copy() for start, stop in pairwise([0, *stops.tolist()])]


def _begins_word(encodings: Sequence[Any], count: int) -> Booleans:
    """[tokens]: whether a token is in another word than the one before it; one in no word is a word by itself."""
    import numpy as np

    try:
        words = np.fromiter(chain.from_iterable(encoding.word_ids for encoding in encodings), np.int64, count)
    except TypeError:  # None, in no word
        indices = enumerate(chain.from_iterable(encoding.word_ids for encoding in encodings))
        words = np.fromiter((-1 - i if word is None else word for i, word in indices), np.int64, count)
    begins: Booleans = np.diff(words, prepend=-1) != 0
    return begins


def _unspaced(texts: Sequence[str], sizes: Integers, begins: Integers, ends: Integers) -> Booleans:
    """[tokens]: whether a token holds a character of a script without spaces; `sizes` are the tokens of each text."""
    import numpy as np

    lengths = np.array([len(text) for text in texts])
    counts = np.concatenate([[0], np.cumsum(unspaced("".join(texts)))])
    text_at = np.repeat(np.cumsum(lengths) - lengths, sizes)
    held: Booleans = counts[ends + text_at] > counts[begins + text_at]
    return held
