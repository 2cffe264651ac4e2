"""Examines a question file, mends what can be mended, and writes the questions in SQuAD's layout."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from qabuild.errors import BadTarget
from qabuild.qa.data import placement
from qabuild.qa.data.dataset_ref import Columns
from qabuild.qa.data.questions import Question
from qabuild.qa.data.records import Record, format_of, read_records
from qabuild.qa.data.rows import Unreadable, id_of_texts, question_of
from qabuild.qa.data.source import Encoding, encoding_of, is_pipe, opened


class Kind(NamedTuple):
    """A kind of problem, and what mending does about it."""

    problem: str
    remedy: str
    drops: bool = False
    """Whether the remedy is to leave the row or answer out."""
    advice: str = ""
    """What is to be done where that leaves nothing."""


ENCODING = Kind("text that is not UTF-8", "decodes it")
UNREADABLE = Kind(
    "rows that hold no question",
    "leaves them out",
    drops=True,
    advice="say which columns hold what, as in --column question=Frage; questions without answers need no check: "
    "`qabuild answer` asks them as they are",
)
REPEATED = Kind("rows that repeat a question", "merges their answers")
SHARED_ID = Kind("other questions with the same id", "gives them new ids")
MISPLACED = Kind("answers that are not at their answer_start", "corrects answer_start")
ALIKE = Kind("answers in other case or white space than their context", "takes the context's text")
NOWHERE = Kind(
    "answers that are not in their context",
    "leaves them out",
    drops=True,
    advice="correct them: an answer is a part of its context, word for word",
)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What a file holds, and what is wrong with it."""

    format: str
    encoding: Encoding | None
    """None for Parquet."""
    questions: tuple[Question, ...]
    """Mended."""
    made_ids: int
    """How many have no id in the file; `rows.id_of_texts` makes theirs."""
    problems: Mapping[Kind, list[str]]
    """What is wrong with each row or answer, by kind."""

    @property
    def unanswerable(self) -> int:
        return sum(not question.answers for question in self.questions)


def examine(path: Path, columns: Columns) -> Examination:
    """Read the file at `path`, bad rows and all.

    Raises BadTarget if there is no such file, UntrustedInput if it cannot be parsed or decoded.
    """
    where = str(path)
    if is_pipe(where):
        raise BadTarget(f"{path}: not a regular file", "name a file of questions")
    form = format_of(where)
    problems: dict[Kind, list[str]] = defaultdict(list)
    encoding = None if form == "parquet" else _encoding(where)
    guess = None
    if encoding and not encoding.certain:
        guess = encoding.name
        problems[ENCODING].append(f"it looks like {encoding.shown}")
    read = tuple(_readable(read_records(where, form, columns, encoding=guess), columns, problems))
    merged = _merged(read, problems)
    mended = tuple(_in_place(_with_own_ids(merged, problems), problems))
    return Examination(
        format=form,
        encoding=encoding,
        questions=mended,
        made_ids=sum(question.id == id_of_texts(question.question, question.context) for question in read),
        problems=problems,
    )


def document(questions: Iterable[Question]) -> bytes:
    """The questions as a JSON document in the layout of SQuAD 2.0; neighbours on one context share a paragraph."""
    paragraphs = [
        {"context": context, "qas": [_entry(question) for question in group]}
        for context, group in groupby(questions, lambda question: question.context)
    ]
    root = {"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}
    return json.dumps(root, ensure_ascii=False, indent=1).encode() + b"\n"


def _entry(question: Question) -> dict[str, Any]:
    pairs = zip(question.answers, question.answer_starts, strict=True)
    return {
        "id": question.id,
        "question": question.question,
        "answers": [{"text": text, "answer_start": start} for text, start in pairs],
        "is_impossible": not question.answers,
    }


def _encoding(where: str) -> Encoding | None:
    with opened(where) as stream:
        return encoding_of(stream.read())


def _readable(records: Iterable[Record], columns: Columns, problems: dict[Kind, list[str]]) -> Iterator[Question]:
    for record in records:
        try:
            yield question_of(record, columns)
        except Unreadable as problem:
            problems[UNREADABLE].append(str(problem))


def _merged(questions: Iterable[Question], problems: dict[Kind, list[str]]) -> list[Question]:
    """One question for all rows with the same id and texts, with the answers of all."""
    by_row: dict[tuple[str, str, str], Question] = {}
    for question in questions:
        row = (question.id, question.question, question.context)
        if row not in by_row:
            by_row[row] = question
            continue
        problems[REPEATED].append(repr(question.id))
        answers = dict.fromkeys(
            pair for same in (by_row[row], question) for pair in zip(same.answers, same.answer_starts, strict=True)
        )
        by_row[row] = _with_answers(question, list(answers))
    return list(by_row.values())


def _with_own_ids(questions: list[Question], problems: dict[Kind, list[str]]) -> Iterator[Question]:
    taken = {question.id for question in questions}
    used: set[str] = set()
    for question in questions:
        own, number = question.id, 1
        while own in used or (number > 1 and own in taken):
            number += 1
            own = f"{question.id}-{number}"
        if own != question.id:
            problems[SHARED_ID].append(f"{question.id!r} becomes {own!r}")
        used.add(own)
        yield replace(question, id=own)


def _in_place(questions: Iterable[Question], problems: dict[Kind, list[str]]) -> Iterator[Question]:
    for question in questions:
        answers = []
        for text, start in zip(question.answers, question.answer_starts, strict=True):
            answer = _placed(question.context, text, start)
            if answer != (text, start):
                kind = NOWHERE if answer is None else ALIKE if answer[0] != text else MISPLACED
                problems[kind].append(placement.describe(_with_answers(question, [(text, start)])))
            if answer is not None:
                answers.append(answer)
        if answers or not question.answers:
            yield _with_answers(question, answers)


def _placed(context: str, text: str, start: int) -> tuple[str, int] | None:
    """The answer as it is in `context`."""
    if placement.is_in_place(context, text, start):
        return text, start
    place = placement.locate(context, text, start)
    return placement.locate_alike(context, text, start) if place is None else (text, place)


def _with_answers(question: Question, answers: list[tuple[str, int]]) -> Question:
    return replace(
        question,
        answers=tuple(text for text, _ in answers),
        answer_starts=tuple(start for _, start in answers),
    )
