"""Windows: a question with a part of its context as model input, and the mapping of tokens back to characters.

Each text is tokenised once, without special tokens; the windows of many questions are a table of offsets into flat
token arrays, and become padded arrays only batch by batch. Nothing here depends on logits, so that training cuts its
examples with the same code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from qabuild.errors import QABuildError
from qabuild.qa.pipeline import tokens
from qabuild.qa.pipeline.memo import Memo
from qabuild.qa.pipeline.template import Layout, read_layout
from qabuild.system import panic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Booleans = NDArray[np.bool_]

CACHED_TOKENS = 1 << 20
"""Tokens of recent texts cached for later questions (some 40 MB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How windows are cut, in tokens: `max_seq_len` for a whole window, `doc_stride` for the overlap of two."""

    max_seq_len: int
    doc_stride: int
    max_question_len: int | None = None
    """None: 7/8 of the tokens of a window beside the overlap, so that a long context has few times more windows."""
    from_the_end: bool = False
    """Whether the first window holds the context's end, as for tokenizers that truncate on the left."""


class WindowMaker:
    """Cuts questions and contexts into windows with a fast tokenizer; tokens of recent texts are cached.

    It works on a copy of the tokenizer's backend: truncation and padding that a `tokenizer.json` sets, or that a caller
    enables later, have no effect here, and the original's settings stay as they are.

    Raises QABuildError if the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise QABuildError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; only those map tokens to characters of the text.",
                "Load it with AutoTokenizer.from_pretrained(..., use_fast=True).",
            )
        self._tokenizer = tokenizer
        self._source = tokenizer.name_or_path
        with panic.explained(self._source):
            self._backend = tokens.copy_backend(tokenizer)
        self._layouts: dict[bool, Layout] = {}
        self._empty_memos()

    def _empty_memos(self) -> None:
        self._contexts = Memo(self._tokenise, lambda table: table.shape[1] + 64, CACHED_TOKENS)
        self._questions = Memo(self._ids, lambda ids: len(ids) + 64, CACHED_TOKENS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not isinstance(value, Memo)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._empty_memos()

    def layout(self) -> Layout:
        """The layout for the tokenizer's current `padding_side`."""
        question_first = self._tokenizer.padding_side == "right"
        if question_first not in self._layouts:
            with panic.explained(self._source):
                self._layouts[question_first] = read_layout(self._tokenizer, self._backend, question_first)
        return self._layouts[question_first]

    def __call__(self, pairs: Sequence[tuple[str, str]], cut: Cut) -> Windows:
        """The windows of (question, context) pairs.

        A question is truncated to `max_question_len` tokens, and further if it would leave its context no more tokens
        than the overlap, unless both fit one window. Raises ValueError as `check` does.
        """
        layout = self.check(cut)
        questions, question_of = _distinct(question for question, _ in pairs)
        contexts, context_of = _distinct(context for _, context in pairs)
        with panic.explained(self._source):
            return _cut(
                layout,
                cut,
                self._questions(questions),
                question_of,
                self._contexts(contexts),
                context_of,
                lambda index, size: self._whole_characters(questions[index], size),
            )

    def check(self, cut: Cut) -> Layout:
        """The layout. Raises ValueError if a window cannot hold the special tokens, the overlap and one more token."""
        layout = self.layout()
        if cut.max_seq_len - layout.special_count - cut.doc_stride < 1:
            raise ValueError(
                f"`doc_stride` ({cut.doc_stride}) leaves no tokens for text in `max_seq_len` ({cut.max_seq_len}), "
                f"of which special tokens take {layout.special_count}"
            )
        return layout

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _tokenise(self, texts: list[str]) -> list[Integers]:
        return tokens.tables(texts, self._backend.encode_batch(texts, add_special_tokens=False))

    def _whole_characters(self, question: str, size: int) -> int:
        """The first `size` tokens, less those of a character whose last token is not among them, and of spaces."""
        offsets = self._backend.encode(question, add_special_tokens=False).offsets
        while 0 < size < len(offsets):
            begin, end = offsets[size - 1]
            if offsets[size][0] >= end and question[begin:end].strip():
                break
            size -= 1
        return size


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows of many (question, context) pairs; arrays are [windows] unless stated otherwise.

    The windows of a pair are adjacent, and the pairs keep their order.
    """

    layout: Layout
    pair: Integers
    """Index of the window's pair."""
    bounds: Integers
    """[windows, 6]: the columns of the layout's bounds, in the window without padding."""
    question_at: Integers
    """Index of the first question token in `question_ids`."""
    context_at: Integers
    """Index of the first context token in `context_ids`."""
    question_ids: Integers
    """All questions, concatenated."""
    context_ids: Integers
    """[context tokens]: all contexts, concatenated, as are the four arrays below, see `tokens.tables`."""
    begins: Integers
    ends: Integers
    begins_word: Booleans
    unspaced: Booleans
    truncated: Booleans
    """[pairs]: whether the question was truncated."""

    def __len__(self) -> int:
        return len(self.pair)

    @cached_property
    def length(self) -> Integers:
        """Number of tokens, including special ones."""
        return self.bounds[:, 5]

    @cached_property
    def first(self) -> Integers:
        """Column of the first context token, in the window without padding."""
        return self.bounds[:, 3 if self.layout.question_first else 1]

    @cached_property
    def size(self) -> Integers:
        """Number of context tokens."""
        return self.bounds[:, 4 if self.layout.question_first else 2] - self.first

    @cached_property
    def cls(self) -> Integers:
        """Column of the CLS token, in the window without padding; -1 if there is none."""
        import numpy as np

        place = self.layout.cls_place
        return np.full(len(self), -1) if place is None else self.bounds[:, place[0]] + place[1]

    def place(self, rows: Integers, length: int) -> Integers:
        """[3, rows]: first context column, context size and CLS column (or -1) of windows padded to `length`."""
        import numpy as np

        shift = self._shift(rows, length)
        return np.stack([self.first[rows] + shift, self.size[rows], self.cls[rows] + shift * (self.cls[rows] >= 0)])

    def arrays(self, rows: Integers, length: int, names: Sequence[str]) -> dict[str, Integers]:
        """The model inputs `names` of the windows `rows`, padded to `length`: int64 [rows, length] each."""
        bounds = self.bounds[rows] + self._shift(rows, length)[:, None]
        arrays = {}
        if "input_ids" in names:
            arrays["input_ids"] = self._input_ids(rows, bounds, length)
        if "attention_mask" in names:
            arrays["attention_mask"] = _between(bounds, (0, 0), (5, 0), length).astype("int64")
        if "token_type_ids" in names:
            arrays["token_type_ids"] = self._token_types(bounds, length)
        return arrays

    def characters(
        self, rows: Integers, first: Integers, last: Integers, align_to_words: bool | Literal["auto"]
    ) -> tuple[Integers, Integers]:
        """The begins and ends of spans in their contexts, in characters; all arrays are [spans].

        `rows` are the spans' windows; `first` and `last` are tokens counted from the window's first context token,
        both inclusive. Aligned to words, a span grows to the ends of its words, as far as the window holds them; with
        "auto", a token that holds a character of a script without spaces is a word by itself.
        """
        import numpy as np

        offset = self.context_at[rows]
        first, last = first + offset, last + offset
        if align_to_words:
            word_first, word_last = self._words(align_to_words == "auto")
            first = np.maximum(word_first[first], offset)
            last = np.minimum(word_last[last], offset + self.size[rows] - 1)
        return self.begins[first], self.ends[last]

    def _words(self, split: bool) -> tuple[Integers, Integers]:
        """[context tokens]: the first and the last token of each token's word; with `split`, the words of "auto"."""
        import numpy as np

        begins = self.begins_word.copy()
        if split:
            begins |= self.unspaced
            begins[1:] |= self.unspaced[:-1]
        firsts = np.flatnonzero(begins)
        sizes = np.diff(firsts, append=len(begins))
        return np.repeat(firsts, sizes), np.repeat(firsts + sizes - 1, sizes)

    def answer_columns(self, answers: Sequence[tuple[int, int] | None]) -> tuple[Integers, Integers]:
        """The columns of each window's first and last answer token, in the window without padding.

        `answers` holds, for each pair, the characters from begin up to end, or None for no answer. A window that
        does not hold the whole answer points at its CLS token twice, as in transformers' SQuAD fine-tuning script.
        """
        import numpy as np

        starts, ends = self.cls.copy(), self.cls.copy()
        for row, (pair, at, size) in enumerate(zip(self.pair, self.context_at, self.size, strict=True)):
            answer = answers[pair]
            begins, stops = self.begins[at : at + size], self.ends[at : at + size]
            if answer is not None and size and begins[0] <= answer[0] and answer[1] <= stops[-1]:
                starts[row] = self.first[row] + np.searchsorted(begins, answer[0], side="right") - 1
                ends[row] = self.first[row] + np.searchsorted(stops, answer[1], side="left")
        return starts, ends

    def _shift(self, rows: Integers, length: int) -> Integers:
        """[rows]: by how many columns padding to `length` moves each window's tokens."""
        return (length - self.length[rows]) * (not self.layout.question_first)

    def _input_ids(self, rows: Integers, bounds: Integers, length: int) -> Integers:
        import numpy as np

        ids = np.full((len(rows), length), self.layout.pad_id, dtype=np.int64)
        all_rows = np.arange(len(rows))
        for bound, steps, special in self.layout.special_places:
            ids[all_rows, bounds[:, bound] + steps] = special
        texts = (self.question_ids, self.question_at), (self.context_ids, self.context_at)
        (first_ids, first_at), (second_ids, second_at) = texts if self.layout.question_first else texts[::-1]
        places = zip(ids, bounds.tolist(), first_at[rows].tolist(), second_at[rows].tolist(), strict=True)
        for row, (_, begin, end, second, stop, _), at, and_at in places:
            row[begin:end] = first_ids[at : at + end - begin]
            row[second:stop] = second_ids[and_at : and_at + stop - second]
        return ids

    def _token_types(self, bounds: Integers, length: int) -> Integers:
        import numpy as np

        types = np.zeros((len(bounds), length), dtype=np.int8)
        for type_, begin, end in self.layout.type_runs:
            types += _between(bounds, begin, end, length).view(np.int8) * np.int8(type_)
        return types.astype(np.int64)


def _distinct(texts: Iterable[str]) -> tuple[list[str], list[int]]:
    """The distinct texts, and each text's index among them."""
    index: dict[str, int] = {}
    indices = [index.setdefault(text, len(index)) for text in texts]
    return list(index), indices


def _cut(
    layout: Layout,
    cut: Cut,
    questions: list[list[int]],
    question_of: list[int],
    contexts: list[Integers],
    context_of: list[int],
    whole: Callable[[int, int], int],
) -> Windows:
    """Cut the pairs into windows; `question_of` and `context_of` are the indices of each pair's texts.

    `questions` are ids, `contexts` tables, see `tokens.tables`.

    `whole` reduces a number of tokens of the question with that index to those of whole characters.
    """
    import numpy as np

    question_at, full_size = (ends[question_of] for ends in _offsets([len(ids) for ids in questions]))
    context_at, context_size = (ends[context_of] for ends in _offsets([table.shape[1] for table in contexts]))
    question_size = _question_sizes(layout, cut, full_size, context_size)
    truncated = question_size < full_size
    for truncated_pair in np.flatnonzero(truncated):
        question_size[truncated_pair] = whole(question_of[truncated_pair], int(question_size[truncated_pair]))
    capacity = cut.max_seq_len - layout.special_count - question_size
    pair, begin, end = _slide(context_size, capacity, cut)
    context_ids, begins, ends, begins_word, is_unspaced = np.concatenate(contexts, axis=1)
    return Windows(
        layout=layout,
        pair=pair,
        bounds=_bounds(layout, question_size[pair], end - begin),
        question_at=question_at[pair],
        context_at=context_at[pair] + begin,
        question_ids=np.fromiter(itertools.chain.from_iterable(questions), dtype=np.int64),
        context_ids=context_ids,
        begins=begins,
        ends=ends,
        begins_word=begins_word != 0,
        unspaced=is_unspaced != 0,
        truncated=truncated,
    )


def _offsets(sizes: list[int]) -> tuple[Integers, Integers]:
    """The offset of each text when all are concatenated, and the sizes."""
    import numpy as np

    array = np.array(sizes, dtype=np.int64)
    return np.cumsum(array) - array, array


def _question_sizes(layout: Layout, cut: Cut, question: Integers, context: Integers) -> Integers:
    """[pairs]: the number of question tokens in the windows, after truncation."""
    import numpy as np

    capacity = cut.max_seq_len - layout.special_count
    free = capacity - cut.doc_stride
    limit = free * 7 // 8 if cut.max_question_len is None else free - 1
    question = question if cut.max_question_len is None else np.minimum(question, cut.max_question_len)
    return np.where(question + context > capacity, np.minimum(question, limit), question)


def _slide(size: Integers, capacity: Integers, cut: Cut) -> tuple[Integers, Integers, Integers]:
    """[windows] each: the window's pair, and the first and one past the last of its context tokens.

    As `tokenizers` truncates: windows of `capacity` tokens that overlap by `doc_stride`; the last one is shorter.
    """
    import numpy as np

    step = np.maximum(capacity - cut.doc_stride, 1)
    count = 1 + np.maximum(0, -((capacity - size) // step))
    pair = np.repeat(np.arange(len(size)), count)
    nth = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    begin = nth * step[pair]
    end = np.minimum(begin + capacity[pair], size[pair])
    return (pair, size[pair] - end, size[pair] - begin) if cut.from_the_end else (pair, begin, end)


def _bounds(layout: Layout, question: Integers, context: Integers) -> Integers:
    """[windows, 6]: the columns of the layout's bounds."""
    import numpy as np

    before, between, after = (np.full(len(question), len(group)) for group in layout.specials)
    first, second = (question, context) if layout.question_first else (context, question)
    return np.cumsum(np.stack([np.zeros_like(before), before, first, between, second, after], axis=1), axis=1)


def _between(bounds: Integers, begin: tuple[int, int], end: tuple[int, int], length: int) -> NDArray[np.bool_]:
    """[rows, length]: whether a column lies between two places, `begin` included and `end` excluded."""
    import numpy as np

    columns = np.arange(length)
    low, high = bounds[:, begin[0], None] + begin[1], bounds[:, end[0], None] + end[1]
    below: NDArray[np.bool_] = columns < high
    return below & (columns >= low)
