"""Answers of a batch of questions in memory: a table or record batch of Arrow, a data frame, or a dict of columns.

The answers come as the same kind, with the columns of a table of answers. Ids keep their type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from qabuild.errors import BadTarget
from qabuild.qa.answer_formats import COLUMNS, arrow_rows, arrow_schema
from qabuild.qa.bulk.answers import answer_rows
from qabuild.qa.data.dataset_ref import SAME_NAMES, Columns
from qabuild.qa.data.records import Record
from qabuild.qa.data.rows import require_columns, row_of

Rows = Sequence[Mapping[str, Any]]


def answer_batch(
    pipeline: Callable[..., Any], batch: Any, columns: Columns = SAME_NAMES, parameters: Mapping[str, Any] | None = None
) -> Any:
    """The answers of a batch, in its order and as the same kind; a bad row gets an `error`, as in a file.

    Raises BadTarget for a batch that lacks the columns, has one twice or some of other lengths, TypeError for anything
    else, and what `answer_rows` raises.
    """
    kind = _kind_of(batch)
    names = kind.names()
    id_name = columns.id or ("id" if "id" in names else None)
    wanted = [columns.question or "question", columns.context or "context", *([id_name] if id_name else [])]
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise BadTarget(f"the batch: has several columns '{twice[0]}'", "give it one of each name")
    values = {name: kind.values(name) for name in names if name in wanted}
    length = kind.length(values)
    if length:
        require_columns(names, columns, "the batch")
    rows = ({name: cells[number] for name, cells in values.items()} for number in range(length))
    records = (Record(f"row {number}", row, row) for number, row in enumerate(rows))
    numbers: list[int] = []
    answers: list[Mapping[str, Any]] = []
    for number, record in enumerate(
        answer_rows(pipeline, (row_of(record, columns) for record in records), parameters or {})
    ):
        for row in arrow_rows([record]):
            numbers.append(number)
            answers.append(row)
    return kind.answers(id_name, numbers, answers)


class _Kind(Protocol):
    """A kind of batches: reads one, and makes another of its answers."""

    def length(self, columns: Mapping[str, list[Any]]) -> int:
        """Its number of rows; `columns` are the values of those that are read."""

    def names(self) -> list[str]: ...

    def values(self, name: str) -> list[Any]:
        """A column as Python values; None is null."""

    def answers(self, id_name: str | None, numbers: list[int], rows: Rows) -> Any:
        """The answers `rows`, of the questions with these numbers.

        Their ids are those of the batch. Where it has no such column, or an empty cell in one of strings, it is the id
        that the row got.
        """


def _kind_of(batch: Any) -> _Kind:
    import pyarrow  # type: ignore[import-untyped]

    if isinstance(batch, (pyarrow.Table, pyarrow.RecordBatch)):
        return _ArrowBatch(batch)
    if isinstance(batch, Mapping):
        return _DictBatch(batch)
    import pandas  # type: ignore[import-untyped]

    if isinstance(batch, pandas.DataFrame):
        return _FrameBatch(batch)
    kinds = "a pyarrow.Table or RecordBatch, a pandas.DataFrame or a dict of columns"
    raise TypeError(f"a batch is {kinds}, not {type(batch).__name__}")


class _ArrowBatch:
    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def length(self, columns: Mapping[str, list[Any]]) -> int:
        return int(self._batch.num_rows)

    def names(self) -> list[str]:
        return list(self._batch.schema.names)

    def values(self, name: str) -> list[Any]:
        return list(self._batch.column(name).to_pylist())

    def answers(self, id_name: str | None, numbers: list[int], rows: Rows) -> Any:
        import pyarrow

        made = pyarrow.array([_text(row["id"]) for row in rows], pyarrow.string())
        ids = made if id_name is None else self._ids(id_name, numbers, made)
        schema = arrow_schema(ids.type)
        return type(self._batch).from_arrays([ids, *_arrays(rows).values()], schema=schema)

    def _ids(self, name: str, numbers: list[int], made: Any) -> Any:
        import pyarrow
        from pyarrow import compute, types

        ids = self._batch.column(name).take(pyarrow.array(numbers, pyarrow.int64()))
        if ids.null_count and (types.is_string(ids.type) or types.is_large_string(ids.type)):
            return compute.coalesce(ids, made.cast(ids.type))
        return ids


class _FrameBatch:
    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def length(self, columns: Mapping[str, list[Any]]) -> int:
        return len(self._batch)

    def names(self) -> list[str]:
        return list(self._batch.columns)

    def values(self, name: str) -> list[Any]:
        column = self._batch[name].astype(object)
        return list(column.where(column.notna(), None).tolist())

    def answers(self, id_name: str | None, numbers: list[int], rows: Rows) -> Any:
        import pandas
        import pyarrow

        made = pandas.Series([_text(row["id"]) for row in rows], dtype=None if rows else str)
        ids = made
        if id_name is not None:
            ids = self._batch[id_name].iloc[numbers].reset_index(drop=True)
            if ids.isna().any() and pandas.api.types.infer_dtype(ids, skipna=True) in ("string", "empty"):
                ids = ids.where(ids.notna(), made)
        table = pyarrow.table(_arrays(rows))
        # Whole numbers and truth values have empty cells in some batches only, and one type in all.
        nullable = {pyarrow.int64(): pandas.Int64Dtype(), pyarrow.bool_(): pandas.BooleanDtype()}
        answers = table.to_pandas(types_mapper=nullable.get)
        answers.insert(0, "id", ids)
        # With several answers to a question, rows are none of the batch's.
        return answers.set_axis(self._batch.index) if numbers == list(range(len(self._batch))) else answers


class _DictBatch:
    """Of lists, or of NumPy arrays where the column of questions is one."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._batch = batch

    def length(self, columns: Mapping[str, list[Any]]) -> int:
        sizes = {name: len(cells) for name, cells in (columns or self._batch).items()}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{size} in '{name}'" for name, size in sizes.items())
            raise BadTarget(f"the batch: its columns differ in length: {shown}", "give each row a cell in every column")
        return next(iter(sizes.values()), 0)

    def names(self) -> list[str]:
        return list(self._batch)

    def values(self, name: str) -> list[Any]:
        column = self._batch[name]
        if isinstance(column, (str, bytes)) or not hasattr(column, "__len__"):
            raise BadTarget(f"the batch: its column '{name}' is {type(column).__name__}", "give a list or an array")
        return list(column.tolist() if hasattr(column, "tolist") else column)

    def answers(self, id_name: str | None, numbers: list[int], rows: Rows) -> Any:
        import numpy as np

        given = self.values(id_name) if id_name is not None else []
        is_text = all(value is None or isinstance(value, str) for value in given)
        ids = [
            given[number] if given and not (given[number] is None and is_text) else _text(row["id"])
            for number, row in zip(numbers, rows, strict=True)
        ]
        lists = {"id": ids, **{name: _cells(rows, name) for name in COLUMNS[1:]}}
        if not any(isinstance(column, np.ndarray) for column in self._batch.values()):
            return lists
        arrays: dict[str, Any] = {name: np.array(cells, dtype=object) for name, cells in lists.items()}
        arrays["score"] = arrays["score"].astype(np.float64)  # None becomes NaN
        if id_name is not None:
            arrays["id"] = arrays["id"].astype(np.asarray(self._batch[id_name]).dtype)
        return arrays


def _arrays(rows: Rows) -> dict[str, Any]:
    """The columns of a table of answers, but the ids."""
    import pyarrow

    schema = arrow_schema(pyarrow.string())
    return {name: pyarrow.array(_cells(rows, name), schema.field(name).type) for name in COLUMNS[1:]}


def _cells(rows: Rows, name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
