"""Probes: few batches on which logits are compared, chosen to cover what a model may meet.

They hold the longest input and the shortest, full and padded rows in one batch, several batch sizes, text with many
distinct words and with other scripts, and tokens from the entire vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from qabuild.artifact.sealed_reference import Probe
from qabuild.models.checkpoint.interface import positions

if TYPE_CHECKING:
    from qabuild.qa.data import Question

LONGEST = 512
"""Tokens of the longest row, where the model has as many positions."""
WINDOW = 384
"""Tokens of a full window of the pipeline, by its defaults."""
CANDIDATES = 512
"""Questions among which the most diverse ones are searched."""
DIVERSE = 8
"""How many of them the rows are made of."""


def longest_input(model: Any, tokenizer: Any) -> int:
    """The maximum tokens of a row, at most `LONGEST`."""
    return int(min(LONGEST, tokenizer.model_max_length, positions(model.config) or LONGEST))


def choose(questions: Sequence[Question], tokenizer: Any, longest: int) -> list[Probe]:
    """The probes for these questions, at most `longest` tokens long; the same questions give the same probes."""
    diverse = _most_diverse(questions)
    by_length = sorted(questions, key=lambda question: len(question.question) + len(question.context))
    shortest, *others = (by_length[len(questions) * part // 4] for part in range(4))

    def probe(*starts: int, length: int, **kind: bool) -> Probe:
        """Rows full of real tokens, each with the contexts from diverse[start] on."""
        length = min(length, longest)
        rows = [_full_row([*diverse[start:], *diverse[:start]], tokenizer, length) for start in starts]
        return Probe(rows=rows, length=length, **kind)

    window = probe(4, length=WINDOW, padded=True)
    return [
        probe(0, length=LONGEST, padded=False),
        replace(window, rows=[*window.rows, [shortest.id]]),
        probe(6, 7, length=128, padded=False),
        Probe(rows=[[question.id] for question in (*others, shortest)], length=min(160, longest), padded=False),
        Probe(rows=[[shortest.id]], length=min(24, longest), padded=False),
        probe(0, length=WINDOW, padded=False, vocabulary=True),
    ]


def encode(probe: Probe, tokenizer: Any, questions: Mapping[str, Question], names: Collection[str]) -> dict[str, Any]:
    """The inputs `names` of a probe: int64 tensors, [rows, tokens]. `questions` are by id."""
    encoded = tokenizer(
        [questions[row[0]].question for row in probe.rows],
        [" ".join(questions[name].context for name in row) for row in probe.rows],
        truncation="longest_first",
        max_length=min(probe.length, tokenizer.model_max_length),
        padding="max_length" if probe.padded else "longest",
        return_attention_mask=True,
        return_special_tokens_mask=True,
        return_tensors="pt",
    )
    if probe.vocabulary:
        _spread(encoded["input_ids"], encoded["special_tokens_mask"] == 0, tokenizer.vocab_size)
    return {name: encoded[name] for name in names if name in encoded}


def _most_diverse(questions: Sequence[Question]) -> list[Question]:
    """The `DIVERSE` questions that together have the most distinct words, one with the most other scripts first."""
    foreign = max(questions, key=lambda question: len({c for c in question.context if not c.isascii()}))
    candidates = questions[:: len(questions) // CANDIDATES + 1]
    chosen, seen = [foreign], set(foreign.context.split())
    while len(chosen) < min(DIVERSE, len(questions)):
        chosen.append(max(candidates, key=lambda question: len(set(question.context.split()) - seen)))
        seen |= set(chosen[-1].context.split())
    return chosen


def _full_row(questions: Sequence[Question], tokenizer: Any, length: int) -> list[str]:
    """Ids of as many of `questions`, in order and from the start again, as fill a row of `length` tokens."""
    row: list[Question] = []
    for question in islice(cycle(questions), length):
        row.append(question)
        text = " ".join(each.context for each in row)
        tokens = tokenizer(row[0].question, text, truncation="longest_first", max_length=length)["input_ids"]
        if len(tokens) == length:
            break
    return [question.id for question in row]


def _spread(input_ids: Any, is_text: Any, size: int) -> None:
    """Replace the tokens of text by tokens at regular intervals of a vocabulary of `size`, but not by special ones."""
    import torch

    special, count = set(input_ids[~is_text].tolist()), int(is_text.sum())
    spread = [(2 * number + 1) * size // (2 * count) for number in range(count)]
    input_ids[is_text] = torch.tensor([next(i for i in range(token, size) if i not in special) for token in spread])
