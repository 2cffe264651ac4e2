"""The layout of a tokenizer's windows, read from an encoding of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of a tokenizer's window: specials FIRST specials SECOND specials.

    FIRST is the question for tokenizers that pad on the right, the context for those that pad on the left (XLNet).
    A place in a window is written (bound, steps after it); the bounds are the six beginnings of these five pieces
    and the window's end, numbered 0 to 5.
    """

    question_first: bool
    specials: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Ids of the special tokens before, between and after the two texts."""
    types: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Token types of the five pieces: one for each special token, one for the whole of each text."""
    pad_id: int
    cls_id: int | None

    @property
    def special_count(self) -> int:
        return sum(len(group) for group in self.specials)

    @cached_property
    def special_places(self) -> tuple[tuple[int, int, int], ...]:
        """Every special token as (bound, steps, id)."""
        return tuple((2 * group, k, id_) for group, ids in enumerate(self.specials) for k, id_ in enumerate(ids))

    @cached_property
    def cls_place(self) -> tuple[int, int] | None:
        """The CLS token's place; None if the tokenizer adds none."""
        places = [(bound, steps) for bound, steps, id_ in self.special_places if id_ == self.cls_id]
        if not places:
            return None
        return places[0] if self.question_first else places[-1]

    @cached_property
    def type_runs(self) -> tuple[tuple[int, tuple[int, int], tuple[int, int]], ...]:
        """The runs of non-zero token types in a window, as (type, place of begin, place of end)."""
        steps = [(type_, (bound, k)) for bound, types in enumerate(self.types) for k, type_ in enumerate(types)]
        runs = [next(run) for _, run in itertools.groupby(steps, key=itemgetter(0))]
        ends = [place for _, place in runs[1:]] + [(5, 0)]
        return tuple((type_, begin, end) for (type_, begin), end in zip(runs, ends, strict=True) if type_)


def read_layout(tokenizer: Any, backend: Any, question_first: bool) -> Layout:
    """Read the layout from the encoding of a pair of words."""
    word = next(word for word in _words(backend) if backend.encode(word, add_special_tokens=False).ids)
    encoding = backend.encode(word, word)
    specials: list[list[int]] = [[], [], []]
    types: list[list[int]] = [[], [], [], [], []]
    group, text = 0, None
    for id_, type_, sequence in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if sequence is None:
            specials[group].append(id_)
            types[2 * group].append(type_)
        elif sequence != text:
            group, text = sequence + 1, sequence
            types[2 * group - 1].append(type_)
    pad = tokenizer.pad_token_id
    return Layout(
        question_first=question_first,
        specials=tuple(map(tuple, specials)),  # type: ignore[arg-type]
        types=tuple(map(tuple, types)),  # type: ignore[arg-type]
        pad_id=0 if pad is None else pad,  # never attended to, so any valid id works
        cls_id=tokenizer.cls_token_id,
    )


def _words(backend: Any) -> Iterator[str]:
    """Words of which a tokenizer should know one; the vocabulary, which may be large, comes last."""
    yield "a"
    yield "0"
    yield from backend.get_vocab()
