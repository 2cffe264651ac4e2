"""Formats of answer files: JSON Lines, SQuAD's predictions, CSV, TSV and Parquet.

In a table, each answer is a row with its question's id, best first, and a question that has none is a row with
`error`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from qabuild.errors import BadTarget

AnswersFormat = Literal["jsonl", "predictions", "csv", "tsv", "parquet"]
Record = dict[str, Any]
"""The answer of one question: `id` and `answer`, `score`, `start`, `end`, or `answers`, a list of these, each with
`question_truncated`, true, where it was; or `id`, `at` and `error` for a bad row."""

_ENDINGS: dict[str, AnswersFormat] = {
    ".json": "predictions",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COLUMNS = ("id", "answer", "score", "start", "end", "question_truncated", "error")
"""Of a table of answers."""
_BATCH = 1000


def format_of(name: str) -> AnswersFormat:
    """The format that the file name's ending tells. Raises BadTarget for an unknown one."""
    form = _ENDINGS.get(Path(name).suffix.lower())
    if form is None:
        hint = f"use {', '.join(_ENDINGS)}; a folder of answers ends in / (in Python: `answer_dataset`)"
        raise BadTarget(f"{name}: its ending names no format of answers", hint)
    return form


def line_of(record: Record) -> bytes:
    """A line of JSON; lone surrogates become JSON escapes."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def predictions(records: Iterable[Record]) -> tuple[bytes, list[str]]:
    """SQuAD's predictions, a text for each id, and the ids that other questions with another answer share.

    Of rows that share an id the first counts.
    """
    texts: dict[str, str] = {}
    ambiguous = []
    for record in records:
        if "error" in record:
            continue
        name = str(record["id"])
        text = (record["answers"][0] if "answers" in record else record)["answer"]
        if texts.setdefault(name, text) != text:
            ambiguous.append(name)
    return json.dumps(texts, ensure_ascii=False, indent=4).encode() + b"\n", ambiguous


def write_csv(file: IO[bytes], records: Iterable[Record], delimiter: str) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)
    try:
        # It puts cells with characters of the terminator in quotes, and of line breaks only these: both.
        writer = csv.DictWriter(_Lines(text), COLUMNS, delimiter=delimiter, lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(_rows(records))
    finally:
        text.detach()


class _Lines:
    """Rows of CSV, each ended by a line feed."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def write(self, row: str) -> int:
        return self._text.write(row.removesuffix("\r\n") + "\n")


def write_parquet(file: IO[bytes], records: Iterable[Record], whole_ids: bool) -> None:
    """Write a Parquet table; with `whole_ids`, its ids are int64, else strings."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    schema = arrow_schema(pyarrow.int64() if whole_ids else pyarrow.string())
    rows = arrow_rows(records)
    with parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            if not whole_ids:
                batch = [{**row, "id": None if row["id"] is None else str(row["id"])} for row in batch]
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def arrow_schema(id_type: Any) -> Any:
    """The Arrow schema of a table of answers whose ids have that type."""
    import pyarrow

    types = (id_type, "string", "float64", "int64", "int64", "bool", "string")
    return pyarrow.schema(list(zip(COLUMNS, types, strict=True)))


def arrow_rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The rows of a table of answers. Arrow has no lone surrogates: they become escapes."""
    for row in _rows(records):
        yield {name: _escaped(value) if isinstance(value, str) else value for name, value in row.items()}


def has_whole_ids(records: Iterable[Record]) -> bool:
    """Whether all ids are integers of 64 bits."""
    ids = (record["id"] for record in records if record["id"] is not None)
    return all(isinstance(name, int) and -(2**63) <= name < 2**63 for name in ids)


def _rows(records: Iterable[Record]) -> Iterator[Mapping[str, Any]]:
    for record in records:
        if "error" in record:
            yield {"id": record["id"], "error": record["error"]}
        for answer in record.get("answers", () if "error" in record else (record,)):
            row = {"question_truncated": False, **answer}
            yield {"id": record["id"], **{name: row[name] for name in COLUMNS[1:-1]}}


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
