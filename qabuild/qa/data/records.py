"""Records of question files: JSON in SQuAD's layout or flat, JSON Lines, CSV, TSV and Parquet, plain or gzip.

A record that cannot be parsed is yielded with its problem, so that reading continues; a file that cannot be parsed
raises an error.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.data import parquet_file
from qabuild.qa.data.dataset_ref import SAME_NAMES, Columns
from qabuild.qa.data.json_reader import JsonReader
from qabuild.qa.data.source import decoded, is_pipe, opened

QuestionsFormat = Literal["squad", "jsonl", "csv", "tsv", "parquet"]

_ENDINGS: dict[str, QuestionsFormat] = {
    ".json": "squad",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file, or its problem."""

    at: str
    """Its place: "line 7", "row 7", or "data[0].paragraphs[1].qas[2]"."""
    values: Any = None
    holder: Any = None
    """The object with the context: the paragraph in SQuAD's layout, elsewhere the row itself."""
    problem: str | None = None


def format_of(name: str) -> QuestionsFormat:
    """The format that the name's ending tells; a pipe has JSON Lines. Raises BadTarget for an unknown ending."""
    plain = name.lower().removesuffix(".gz")
    for ending, form in _ENDINGS.items():
        if plain.endswith(ending):
            return form
    if is_pipe(name):
        return "jsonl"
    raise BadTarget(
        f"{name}: its ending names no format of questions", f"use {', '.join(_ENDINGS)}, each also with .gz"
    )


def read_records(
    source: str,
    form: QuestionsFormat,
    columns: Columns = SAME_NAMES,
    *,
    encoding: str | None = None,
    first: int = 0,
    count: int | None = None,
) -> Iterator[Record]:
    """Read the records of `source`, a file, a URL or a pipe; a JSON document is held in memory one article at a time.

    `encoding` is that of text; by default its byte order mark tells, or else it is UTF-8. `first` and `count` choose
    rows of a Parquet file.

    Raises BadTarget for a missing file, UntrustedInput if it cannot be parsed, or is a table with two of the `columns`
    of one name.
    """
    with opened(source) as stream:
        if source.endswith(".gz") and not stream.peek(1):  # type: ignore[attr-defined]
            raise UntrustedInput(f"{source}: damaged gzip file (it is empty)", "fetch or compress it again")
        if form == "parquet":
            for number, row in parquet_file.read_rows(stream, source, columns, first, count):
                yield Record(f"row {number}", row, row)
            return
        with decoded(stream, source, "" if form in ("csv", "tsv") else "\n", encoding) as text:
            if form == "squad":
                yield from _json(text, source)
            elif form == "jsonl":
                yield from _jsonl(text)
            else:
                yield from _csv(text, source, "\t" if form == "tsv" else None, columns)


def _jsonl(lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        at = f"line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Record(at, problem=f"{at} is not JSON ({error})")
        else:
            yield Record(at, row, row)


def _csv(lines: io.TextIOWrapper, where: str, delimiter: str | None, columns: Columns) -> Iterator[Record]:
    """The rows of a table whose first line names its columns, separated by commas, semicolons or tabs.

    Raises UntrustedInput for a cell of a table with tabs that holds as many tabs as whole rows. Few tools put cells of
    such a table in quotes, and then a quote that is part of the text makes one cell of the rows up to the next one.
    """
    csv.field_size_limit(sys.maxsize)  # a context may be longer than the 131,072 characters of the default
    header = lines.readline()
    delimiter = delimiter or max(",;\t", key=header.count)
    reader = csv.DictReader(chain([header], lines), delimiter=delimiter, strict=True)
    first = 1
    try:
        columns.require_unambiguous(reader.fieldnames or (), where)
        for cells in reader:
            at, first = f"line {first + 1}", reader.line_num
            if delimiter == "\t" and any(_holds_rows(cell, len(cells)) for cell in cells.values()):
                raise UntrustedInput(
                    f"{where}: {at}: a quote begins a cell that ends in line {first}, with the rows between",
                    "double each quote that is part of a text and put its cell in quotes, or write JSON Lines",
                )
            if None in cells:
                yield Record(at, problem=f"{at} has more cells than the first line")
                continue
            row = {column: cell or None for column, cell in cells.items()}
            yield Record(at, row, row)
    except csv.Error as error:
        raise UntrustedInput(
            f"{where}: line {first + 1}: not CSV ({error})", "put a cell with quotes or line breaks in quotes"
        ) from None


def _holds_rows(cell: Any, width: int) -> bool:
    """Whether a cell looks like the rows from one quote to another in the same column of a table with `width` columns.

    For each line break, it holds the tabs of one row.
    """
    breaks = len(cell.splitlines()) - 1 if isinstance(cell, str) and "\t" in cell else 0
    return breaks > 0 and cell.count("\t") == breaks * (width - 1)


def _json(text: io.TextIOWrapper, where: str) -> Iterator[Record]:
    """The questions of a document with a list `data`, of a list, or of objects that follow each other."""
    reader = JsonReader(text)
    try:
        if reader.at_end():
            raise UntrustedInput(f"{where}: is empty", "give a file with questions")
        if reader.takes("["):
            yield from _articles(reader.items(), "")
            reader.require_end()
            return
        number = 0
        while number == 0 or not reader.at_end():
            number += 1
            yield from _object(reader, f"object {number}")
    except json.JSONDecodeError as error:
        problem = error.msg.removesuffix(" at").removesuffix(" starting")
        raise UntrustedInput(f"{where}: line {reader.line(error)}: not JSON ({problem})", "check the file") from error
    except RecursionError as error:
        raise UntrustedInput(f"{where}: not JSON ({error})", "check the file") from error


def _object(reader: JsonReader, at: str) -> Iterator[Record]:
    row, is_document = {}, False
    for key in reader.object_keys():
        if key == "data" and reader.takes("["):
            is_document = True
            yield from _articles(reader.items(), "data")
        else:
            row[key] = reader.value()
    if not is_document or "question" in row:
        yield from _article(row, at)


def _articles(values: Iterable[Any], place: str) -> Iterator[Record]:
    for index, value in enumerate(values):
        yield from _article(value, f"{place}[{index}]")


def _article(value: Any, at: str) -> Iterator[Record]:
    """The questions of an article with `paragraphs`; anything else is a question itself."""
    if not isinstance(value, dict) or "paragraphs" not in value or "question" in value:
        yield Record(at, value, value)
        return
    for paragraph, at_paragraph in _items(value, "paragraphs", at):
        if isinstance(paragraph, Record):
            yield paragraph
            continue
        for entry, at_entry in _items(paragraph, "qas", at_paragraph):
            yield entry if isinstance(entry, Record) else Record(at_entry, entry, paragraph)


def _items(parent: Any, key: str, at: str) -> Iterator[tuple[Any, str]]:
    """The entries of the list `parent[key]`, each with its place; one Record with the problem if there is none."""
    if not isinstance(parent, dict):
        yield Record(at, problem=f"{at} is not an object"), at
    elif key not in parent:
        yield Record(at, problem=f"{at} has no '{key}'"), at
    elif not isinstance(parent[key], list):
        yield Record(at, problem=f"{at}.{key} is not a list"), at
    else:
        for index, item in enumerate(parent[key]):
            yield item, f"{at}.{key}[{index}]"
