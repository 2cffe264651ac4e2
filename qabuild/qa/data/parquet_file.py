"""Parquet files, read in batches: memory depends on neither their length nor that of their row groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any

from qabuild.errors import UntrustedInput
from qabuild.qa.data.dataset_ref import Columns
from qabuild.system.storage import READ_BYTES

_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a table tells about its rows, without them."""

    rows: int
    columns: tuple[str, ...]
    integers: frozenset[str]
    """The columns that hold an integer of 64 bits in each row."""


def outline(stream: IO[bytes], where: str, columns: Columns) -> Outline:
    """Raises UntrustedInput if it is not Parquet, or has two of the `columns` of one name."""
    with _opened(stream, where) as file:
        names = file.schema_arrow.names
        columns.require_unambiguous(names, where)
        integers = {name for name in names if names.count(name) == 1 and _is_integer(file, name)}
        return Outline(rows=file.metadata.num_rows, columns=tuple(names), integers=frozenset(integers))


def _is_integer(file: Any, name: str) -> bool:
    """Whether the type and the statistics of all row groups say so; files without statistics do not."""
    from pyarrow import types  # type: ignore[import-untyped]

    kind = file.schema_arrow.field(name).type
    if not types.is_integer(kind) or types.is_uint64(kind):
        return False
    index = [file.schema.column(number).path for number in range(len(file.schema))].index(name)
    groups = (file.metadata.row_group(number).column(index) for number in range(file.num_row_groups))
    return all(group.num_values == 0 or (group.is_stats_set and _has_no_nulls(group.statistics)) for group in groups)


def _has_no_nulls(statistics: Any) -> bool:
    return bool(statistics.has_null_count and statistics.null_count == 0)


def read_rows(
    stream: IO[bytes], where: str, columns: Columns, first: int = 0, count: int | None = None
) -> Iterator[tuple[int, Any]]:
    """The rows from number `first`, `count` of them or all, each with its number; row groups before are not read.

    Raises UntrustedInput if it is not Parquet, or has two of the `columns` of one name.
    """
    with _opened(stream, where) as file:
        columns.require_unambiguous(file.schema_arrow.names, where)
        end = file.metadata.num_rows if count is None else first + count
        ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
        skipped = bisect_right(ends, first)
        if skipped == len(ends):
            return
        number = ends[skipped - 1] if skipped else 0
        for batch in file.iter_batches(batch_size=_BATCH, row_groups=range(skipped, len(ends))):
            if number >= end:
                return
            begin = max(first - number, 0)
            yield from enumerate(batch[begin : end - number].to_pylist(), number + begin)
            number += batch.num_rows


@contextmanager
def _opened(stream: IO[bytes], where: str) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        # With a buffer, pages are read one by one; without one, each column of a row group at once.
        source = stream if stream.seekable() else pyarrow.BufferReader(stream.read())
        yield parquet.ParquetFile(source, buffer_size=READ_BYTES, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk or the store
        raise UntrustedInput(f"{where}: not Parquet ({' '.join(str(error).split())})", "write it again") from error
