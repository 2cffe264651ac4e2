"""Questions from records: columns by name, ids of any scalar, and answers in each layout that tools write.

Answers are SQuAD's list of {text, answer_start}, an object of two lists {text: [...], answer_start: [...]} as in data
sets on the Hub, texts alone, or a column `answer_text` with `answer_start` beside it. Blank answers are none, and a
question without answers is unanswerable. A text without an `answer_start` has the start -1, which is never in place.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.data.dataset_ref import Columns
from qabuild.qa.data.questions import Question
from qabuild.qa.data.records import Record

UNKNOWN_START = -1

SHOWN_PROBLEMS = 3
_SHOWN_KEYS = 8
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question without its answers, or its problem."""

    at: str
    id: str | int | None = None
    question: str = ""
    context: str = ""
    problem: str | None = None


class Unreadable(ValueError):
    """What is wrong with a row, and where."""


def row_of(record: Record, columns: Columns) -> Row:
    """The question, context and id that `record` holds; a row without an id gets one from its texts."""
    row_id: str | int | None = None
    try:
        if record.problem:
            raise Unreadable(record.problem)
        if not isinstance(record.values, dict):
            raise Unreadable(f"{record.at} is not an object")
        row_id = _id(record, columns)
        question = _text(record.values, "question", record.at, columns)
        context = _text(record.holder, "context", record.at, columns)
        _require_encodable(record.at, str(row_id), question, context)
    except Unreadable as problem:
        return Row(at=record.at, id=row_id, problem=str(problem))
    if row_id is None:
        row_id = id_of_texts(question, context)
    return Row(at=record.at, id=row_id, question=question, context=context)


def question_of(record: Record, columns: Columns) -> Question:
    """The question with its gold answers. Raises Unreadable."""
    row = row_of(record, columns)
    if row.problem:
        raise Unreadable(row.problem)
    answers = _answers(record, columns)
    _require_encodable(record.at, *(text for text, _ in answers))
    impossible = _flag(_value(record.values, "is_impossible", columns), record.at)
    if impossible is not None and impossible == bool(answers):
        raise Unreadable(
            f"{record.at}: question {row.id!r} "
            + ("is marked is_impossible and has answers" if impossible else "has no answers and is_impossible is false")
        )
    return Question(
        id=str(row.id),
        question=row.question,
        context=row.context,
        answers=tuple(text for text, _ in answers),
        answer_starts=tuple(start for _, start in answers),
    )


def questions_of(records: Iterable[Record], columns: Columns, where: str) -> tuple[Question, ...]:
    """The questions of all records. Raises UntrustedInput with the number of bad rows and the first problems."""
    questions, problems = [], []
    for record in records:
        try:
            questions.append(question_of(record, columns))
        except Unreadable as problem:
            problems.append(str(problem))
    if problems:
        raise UntrustedInput(
            f"{where}: {summary(problems, len(problems), len(questions) + len(problems))}",
            "a row has question, context, answers (texts, each with its answer_start) and, unless they are made from "
            "its texts, an id; `columns` names those that are called otherwise",
        )
    return tuple(questions)


def summary(problems: Iterable[str], count: int, rows: int) -> str:
    """One message about `count` bad rows, of which `problems` begins with the first ones."""
    shown = list(islice(problems, SHOWN_PROBLEMS))
    if count == 1:
        return shown[0]
    return f"{count} of {rows} rows are bad: {'; '.join(shown)}{'; ...' if count > len(shown) else ''}"


def require_columns(names: Collection[str], columns: Columns, where: str) -> None:
    """Raise BadTarget for a table without the columns that a question needs, or the one that is named for its id."""
    for name in ("question", "context", *(["id"] if columns.id else [])):
        column = _column(name, columns)
        if column not in names:
            shown = ", ".join(map(str, islice(names, _SHOWN_KEYS)))
            raise BadTarget(f"{where}: has no column '{column}', only {shown}", f"name it: --column {name}=COLUMN")


def id_of_texts(question: str, context: str) -> str:
    """The id of a question that has none: it depends on the texts alone, so that it is the same in every file."""
    return hashlib.sha256(json.dumps([question, context]).encode()).hexdigest()[:16]


def _value(values: Mapping[str, Any], name: str, columns: Columns) -> Any:
    """The value of `name`, in the column that `columns` names for it; None if it is absent or NaN."""
    value = values.get(_column(name, columns))
    return None if isinstance(value, float) and math.isnan(value) else value


def _column(name: str, columns: Columns) -> str:
    return getattr(columns, name) or name


def _require(values: Mapping[str, Any], name: str, at: str, columns: Columns) -> None:
    """Raise Unreadable for a row without the column."""
    if _column(name, columns) not in values:
        keys = ", ".join(map(str, islice(values, _SHOWN_KEYS)))
        raise Unreadable(f"{at} has no '{_column(name, columns)}', only {keys or 'nothing'}")


def _text(values: Any, name: str, at: str, columns: Columns) -> str:
    if not isinstance(values, dict):
        raise Unreadable(f"{at} is not an object")
    _require(values, name, at, columns)
    value, column = _value(values, name, columns), _column(name, columns)
    if not isinstance(value, str) and value is not None:
        raise Unreadable(f"{at}.{column} is not a string")
    if value is None or not value.strip():
        raise Unreadable(f"{at}.{column} is blank")
    return value


def _id(record: Record, columns: Columns) -> str | int | None:
    if columns.id:  # else a row without an id gets one
        _require(record.values, "id", record.at, columns)
    value = _value(record.values, "id", columns)
    if isinstance(value, (bool, bytes, dict, list)):
        raise Unreadable(f"{record.at}.id is neither a string nor a number")
    if isinstance(value, str) and not value.strip():
        raise Unreadable(f"{record.at}.id is blank")
    if isinstance(value, float) and value.is_integer():  # as a data frame writes integers beside empty cells
        return int(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _require_encodable(at: str, *texts: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise Unreadable(f"{at} holds characters that are not valid text (lone surrogates)") from None


def _flag(value: Any, at: str) -> bool | None:
    """A truth value, as JSON, a data frame or CSV writes it."""
    if isinstance(value, str):
        value = _FLAGS.get(value.lower(), value)
    if value is None or value in (True, False):
        return None if value is None else bool(value)
    raise Unreadable(f"{at}.is_impossible is neither true nor false")


def _answers(record: Record, columns: Columns) -> list[tuple[str, int]]:
    """Each answer that is not blank, with its start."""
    values, at = record.values, record.at
    if not _flag(_value(values, "is_impossible", columns), at):
        _require_answers(values, at, columns)
    answers = _parsed(_value(values, "answers", columns))
    if answers is None or isinstance(answers, str):
        text = _value(values, "answer_text", columns) if answers is None else answers
        answers = {"text": text, "answer_start": _value(values, "answer_start", columns)}
    return [
        (text, _start(start, f"{place}.answer_start"))
        for text, start, place in _pairs(answers, f"{at}.answers")
        if _is_answer(text, f"{place}.text")
    ]


def _require_answers(values: Mapping[str, Any], at: str, columns: Columns) -> None:
    """Raise Unreadable for a row without answers: without the columns that `columns` names for them, or else any."""
    named = [name for name in ("answers", "answer_text") if getattr(columns, name)]
    if named or "answer_text" not in values:
        for name in named or ["answers"]:
            _require(values, name, at, columns)


def _parsed(cell: Any) -> Any:
    """The list or object that a cell of CSV holds, as JSON, Python or pandas writes it; any other value as it is."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval, _parsed_arrays):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return parse(cell)
    return cell


def _parsed_arrays(cell: str) -> Any:
    """An object of numpy arrays, as pandas and `Dataset.to_csv` write it."""
    return ast.literal_eval(re.sub(r"array\((\[.*?\])(,\s*dtype=[^)]*)?\)", r"\1", cell, flags=re.DOTALL))


def _pairs(answers: Any, at: str) -> list[tuple[Any, Any, str]]:
    """Text, start and place of each answer."""
    if isinstance(answers, dict):
        if "text" not in answers:
            raise Unreadable(f"{at} has no 'text'")
        texts, starts = _listed(answers["text"]), _listed(answers.get("answer_start"))
        if texts and starts and len(starts) != len(texts):
            raise Unreadable(f"{at}: {len(texts)} texts have {len(starts)} starts")
        return [
            (text, start, f"{at}[{index}]")
            for index, (text, start) in enumerate(zip(texts, starts or [None] * len(texts), strict=False))
        ]
    if not isinstance(answers, list):
        raise Unreadable(f"{at} is not a list")
    return [_pair(answer, f"{at}[{index}]") for index, answer in enumerate(answers)]


def _pair(answer: Any, at: str) -> tuple[Any, Any, str]:
    if isinstance(answer, str):
        return answer, None, at
    if not isinstance(answer, dict) or "text" not in answer:
        raise Unreadable(f"{at} has no 'text'")
    return answer["text"], answer.get("answer_start"), at


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_answer(text: Any, at: str) -> bool:
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return False
    if not isinstance(text, str):
        raise Unreadable(f"{at} is not a string")
    return bool(text.strip())


def _start(value: Any, at: str) -> int:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN_START
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and (number := float(value)).is_integer():
            return int(number)
    raise Unreadable(f"{at} is not an integer")
