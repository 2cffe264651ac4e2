"""Questions from files in SQuAD's layout."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.data.questions import Question, check
from qabuild.qa.data.schema import field, items
from qabuild.system import files


def read_squad(path: Path, max_misplaced: float = 0.0) -> tuple[Question, ...]:
    """Read the questions of a SQuAD-layout JSON file (v1.1 or v2.0, plain or gzip), in the file's order.

    `max_misplaced` is the share of questions that may have an answer not at its `answer_start`.

    Raises BadTarget if there is no such file, UntrustedInput naming file and place if its content is invalid.
    """
    where = str(path)
    questions = tuple(_questions(_parse(path), where))
    check(questions, where, max_misplaced)
    return questions


def _parse(path: Path) -> Any:
    """The file's JSON value; decompressed first if it starts with the gzip magic."""
    try:
        content = files.read(path)
    except FileNotFoundError as error:
        raise BadTarget(f"{path}: there is no such file", "check the path; a Hub id is written 'owner/name'") from error
    except OSError as error:
        raise BadTarget(
            f"{path}: cannot be read ({error.strerror})", "give a SQuAD-layout .json or .json.gz file"
        ) from error
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return json.loads(content.decode("utf-8-sig"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UntrustedInput(f"{path}: damaged gzip file ({error})", "fetch or compress it again") from error
    except UnicodeDecodeError as error:
        raise UntrustedInput(f"{path}: not UTF-8 text (byte {error.start})", "give a SQuAD-layout JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UntrustedInput(f"{path}: not JSON ({error})", "give a SQuAD-layout JSON file") from error


def _questions(root: Any, where: str) -> Iterator[Question]:
    """Walk the SQuAD layout data[].paragraphs[].qas[]; the questions of a paragraph share its context."""
    for article, at_article in items(root, "data", where, ""):
        for paragraph, at_paragraph in items(article, "paragraphs", where, at_article):
            context = field(paragraph, "context", str, where, at_paragraph)
            for entry, at_entry in items(paragraph, "qas", where, at_paragraph):
                yield _question(entry, context, where, at_entry)


def _question(entry: Any, context: str, where: str, at: str) -> Question:
    question_id = field(entry, "id", str, where, at)
    impossible = field(entry, "is_impossible", bool, where, at) if "is_impossible" in entry else False
    answers = [] if impossible and "answers" not in entry else list(items(entry, "answers", where, at))
    if impossible == bool(answers):
        raise UntrustedInput(
            f"{where}: {at}: question {question_id!r} "
            + ("is marked is_impossible and has answers" if impossible else "has no answers"),
            'an unanswerable question (SQuAD 2.0) has "is_impossible": true and no answers; any other has some',
        )
    return Question(
        id=question_id,
        question=field(entry, "question", str, where, at),
        context=context,
        answers=tuple(field(answer, "text", str, where, at_answer) for answer, at_answer in answers),
        answer_starts=tuple(field(answer, "answer_start", int, where, at_answer) for answer, at_answer in answers),
    )
