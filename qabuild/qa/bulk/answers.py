"""The answers of a stream of rows, in their order; a row that cannot be answered does not end the stream."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from qabuild.qa.answer_formats import Record
from qabuild.qa.data.rows import Row

MAX_CONSECUTIVE_FAILURES = 50
"""Consecutive failing rows after which the run ends; one paragraph has fewer questions."""
MAX_PENDING_BAD_ROWS = 1000
"""Bad rows held back until the rows before them are answered."""


def answer_rows(pipeline: Callable[..., Any], rows: Iterator[Row], parameters: Mapping[str, Any]) -> Iterator[Record]:
    """The record of every row. Raises what `rows` raises, and the pipeline's exception if it fails on every row."""
    for row, result in _answered(pipeline, rows, parameters):
        yield _record(row, result, parameters)


def _answered(
    pipeline: Callable[..., Any], rows: Iterator[Row], parameters: Mapping[str, Any]
) -> Iterator[tuple[Row, Any]]:
    """Every row with its result, in order; bad rows with None. Raises what `rows` raises.

    The pipeline answers a stream. If it raises, the rows that it had read are answered one by one to find the failing
    row, and a new stream continues with the rest.
    """
    pending: deque[Row] = deque()
    answered: Row | None = None  # the last one
    more, unreadable = True, False

    def examples() -> Iterator[dict[str, str]]:
        nonlocal more, unreadable
        bad = 0
        try:
            for row in rows:
                pending.append(row)
                if row.problem is None:
                    yield {"question": row.question, "context": row.context}
                elif (bad := bad + 1) == MAX_PENDING_BAD_ROWS:
                    return
        except Exception:
            unreadable = True
            raise
        more = False

    while more:
        try:
            for result in pipeline(examples(), **parameters):
                while pending[0].problem is not None:
                    yield pending.popleft(), None
                answered = pending.popleft()
                yield answered, result
        except Exception as error:
            if unreadable:
                raise
            yield from _one_by_one(pipeline, pending, parameters, error, answered)
        else:
            yield from ((row, None) for row in pending)
        pending.clear()


def _one_by_one(
    pipeline: Callable[..., Any],
    rows: Iterable[Row],
    parameters: Mapping[str, Any],
    error: Exception,
    answered_before: Row | None,
) -> list[tuple[Row, Any]]:
    """Rows with their results.

    Raises `error` if many consecutive rows fail, or if all rows fail and the pipeline fails on `answered_before` too,
    which it answered earlier: no single row causes that.
    """

    def ask(row: Row) -> Any:
        return pipeline(question=row.question, context=row.context, **parameters)

    answered = []
    failures = 0
    for row in rows:
        result = None
        if row.problem is None:
            try:
                result = ask(row)
                failures = 0
            except Exception as problem:
                row = replace(row, problem=f"{row.at} cannot be answered ({type(problem).__name__}: {problem})")
                failures += 1
        answered.append((row, result))
        if failures == MAX_CONSECUTIVE_FAILURES:
            raise error
    if all(result is None for _, result in answered):
        if answered_before is None:
            raise error
        try:
            ask(answered_before)
        except Exception:
            raise error from None
    return answered


def _record(row: Row, result: Any, parameters: Mapping[str, Any]) -> Record:
    if row.problem is not None:
        return {"id": row.id, "at": row.at, "error": row.problem}
    answers = [_ordered(answer) for answer in (result if isinstance(result, list) else [result])]
    if not all(math.isfinite(answer["score"]) for answer in answers):
        return {"id": row.id, "at": row.at, "error": f"{row.at}: the model's scores are not finite"}
    several = isinstance(result, list) or parameters.get("top_k", 1) > 1
    return {"id": row.id, "answers": answers} if several else {"id": row.id, **answers[0]}


def _ordered(answer: Mapping[str, Any]) -> Record:
    return {name: answer[name] for name in ("answer", "score", "start", "end", "question_truncated") if name in answer}
