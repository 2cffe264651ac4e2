"""Parts of a data set: rows of one input file, whose answers are one output file.

A part can be read without those before it. Parquet tells the number of its rows and finds each by its row group, so
files are cut there; other formats would have to be read from their start, so each of their files is one part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa.data import parquet_file, records, rows
from qabuild.qa.data.dataset_ref import Columns
from qabuild.qa.data.question_files import QuestionFiles
from qabuild.qa.data.source import opened
from qabuild.system.frozen import Frozen


class Part(Frozen):
    """Some rows of one file."""

    name: str = Field(pattern=r"^part-\d{5,}$")
    file: str
    first: int = Field(ge=0)
    rows: int | None = Field(ge=1)
    """None: all of the file, however many that are."""


def cut(lengths: Mapping[str, int | None], part_rows: int) -> tuple[Part, ...]:
    """The parts of files with that many rows, in order; None for a file that is not cut."""
    return tuple(
        Part(name=name_of(number), file=file, first=first, rows=count)
        for number, (file, first, count) in enumerate(_pieces(lengths, part_rows))
    )


def name_of(number: int) -> str:
    """The name of a part, counted from 0."""
    return f"part-{number:05d}"


def _pieces(lengths: Mapping[str, int | None], part_rows: int) -> Iterator[tuple[str, int, int | None]]:
    for file, length in lengths.items():
        if length is None:
            yield file, 0, None
        else:
            yield from ((file, first, min(part_rows, length - first)) for first in range(0, length, part_rows))


def measure(files: QuestionFiles, columns: Columns) -> tuple[dict[str, int | None], bool]:
    """The rows of each file, None for one that is not cut, and whether all ids are integers of 64 bits.

    Raises BadTarget for a table that lacks the columns, UntrustedInput for files of Parquet whose rows cannot be
    counted. What is wrong with other files, their parts tell.
    """
    lengths: dict[str, int | None] = {}
    unreadable: dict[str, QABuildError] = {}
    integers = files.format == "parquet"
    for name in files.states:
        address, lengths[name] = files.address(name), None
        if files.format == "parquet":
            try:
                with opened(address) as stream:
                    outline = parquet_file.outline(stream, address, columns)
            except (BadTarget, UntrustedInput) as error:
                unreadable[address] = error
                continue
            lengths[name] = outline.rows
            integers &= (columns.id or "id") in outline.integers
            rows.require_columns(outline.columns, columns, address)
        elif files.format in ("csv", "tsv"):
            try:
                first = next(records.read_records(address, files.format, columns), None)
            except (BadTarget, UntrustedInput):
                continue
            if first and first.values:
                rows.require_columns(first.values, columns, address)
    if unreadable:
        raise UntrustedInput(*explained(unreadable))
    return lengths, integers


def explained(errors: Mapping[str, QABuildError]) -> tuple[str, str | None]:
    """The message and the hint for all of these errors, by the address of the file that each is about."""
    first, *others = errors.values()
    if not others:
        return first.message, first.hint
    shown = "; ".join(error.message for error in list(errors.values())[: rows.SHOWN_PROBLEMS])
    rest = list(errors)[rows.SHOWN_PROBLEMS :]
    more = f"; and {len(rest)} more: {', '.join(rest)}" * bool(rest)
    return f"{shown}{more}", "repair or restore these files, and run the same command again"
