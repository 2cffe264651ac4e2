"""Where gold answers are in their contexts: offsets that are off, or counted in other units than characters."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qabuild.qa.data.questions import Question

_UNITS = {"utf-16-le": 2, "utf-8": 1}
"""Bytes of the units in which other tools count: UTF-16 units, as JavaScript and Java, and bytes."""
_SHOWN_CHARACTERS = 40


def is_in_place(context: str, text: str, start: int) -> bool:
    return start >= 0 and context.startswith(text, start)


def locate(context: str, text: str, start: int) -> int | None:
    """Where `text` is: at `start` in other units than characters, or else nearest to it. None: nowhere."""
    for encoding, size in _UNITS.items():
        before = context.encode(encoding)[: max(start, 0) * size].decode(encoding, "ignore")
        if before and is_in_place(context, text, len(before)):
            return len(before)
    return _nearest((match.start() for match in re.finditer(f"(?={re.escape(text)})", context)), start)


def locate_alike(context: str, text: str, start: int) -> tuple[str, int] | None:
    """A text that equals `text` but for case and white space, as `context` has it, and where."""
    alike = re.compile(r"\s+".join(map(re.escape, text.split())), re.IGNORECASE)
    found = {match.start(): match.group() for match in alike.finditer(context)}
    place = _nearest(iter(found), start)
    return None if place is None else (found[place], place)


def _nearest(places: Iterator[int], start: int) -> int | None:
    return min(places, key=lambda place: abs(place - start), default=None)


def describe(question: Question) -> str:
    """The question's first misplaced answer: the text at its offset, and where the answer is."""
    for text, start in zip(question.answers, question.answer_starts, strict=True):
        if not is_in_place(question.context, text, start):
            place = locate(question.context, text, start)
            stated = f"{_short(question.context[max(start, 0) :][: len(text)])} is at {start}" if start >= 0 else ""
            where = f"{_short(text)} " + ("is nowhere" if place is None else f"is at {place}")
            return f"{question.id!r} ({', '.join(filter(None, (stated, where)))})"
    return repr(question.id)


def _short(text: str) -> str:
    if not text:
        return "nothing"
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
