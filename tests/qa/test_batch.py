"""Answers of batches in memory: each kind of batch gives one of its kind, with the same answers and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from bulk_files import FirstWord
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from qabuild.errors import BadTarget
from qabuild.qa.answer_formats import COLUMNS
from qabuild.qa.bulk import answer_dataset
from qabuild.qa.bulk.batch import answer_batch
from qabuild.qa.data.dataset_ref import Columns

COLUMNS_GIVEN: dict[str, list[Any]] = {
    "id": ["a", "b", "c", "d"],
    "question": ["Who?", "Where?", None, "When?"],
    "context": ["Mira sang", " ", "Arvik", "été 1871"],
}
TABLE = pyarrow.table(COLUMNS_GIVEN)

KINDS: dict[str, Callable[[pyarrow.Table], Any]] = {
    "table": lambda table: table,
    "record batch": lambda table: pyarrow.RecordBatch.from_pylist(table.to_pylist(), table.schema),
    "frame": lambda table: table.to_pandas(),
    "lists": lambda table: table.to_pydict(),
    "arrays": lambda table: {name: column.to_numpy() for name, column in zip(table.schema.names, table, strict=True)},
}
"""How a table becomes a batch of each kind."""


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """Its rows as Python values, None where a cell is empty."""
    if isinstance(batch, dict):
        batch = pandas.DataFrame({name: pandas.Series(list(column), dtype=object) for name, column in batch.items()})
    if isinstance(batch, pandas.DataFrame):
        batch = batch.astype(object)
        return list(batch.where(batch.notna(), None).to_dict("records"))
    return list(batch.to_pylist())


@pytest.fixture
def file_rows(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The rows of the Parquet file into which a table's questions are answered on one machine."""

    def answered(table: pyarrow.Table, **parameters: Any) -> list[dict[str, Any]]:
        parquet.write_table(table, tmp_path / "q.parquet")
        answer_dataset(FirstWord(), tmp_path / "q.parquet", tmp_path / "out", parameters=parameters)
        return list(parquet.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist())

    return answered


@pytest.mark.parametrize("parameters", [{}, {"top_k": 2}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_answered_as_a_file(kind: str, parameters: dict[str, Any], file_rows: Callable[..., Any]) -> None:
    batch = KINDS[kind](TABLE)
    answers = answer_batch(FirstWord(), batch, parameters=parameters)
    assert type(answers) is type(batch)
    expected = file_rows(TABLE, **parameters)
    assert rows_of(answers) == expected
    assert [row["error"] for row in expected if row["answer"] is None] == [
        "row 1.context is blank",
        "row 2.question is blank",
    ]


@pytest.mark.parametrize("length", [0, 4])
@pytest.mark.parametrize("id_type", [pyarrow.int32(), pyarrow.int64(), pyarrow.string(), pyarrow.large_string()])
@pytest.mark.parametrize("kind", ["table", "record batch"])
def test_an_arrow_schema_is_that_of_a_file_but_for_the_type_of_ids(
    tmp_path: Path, kind: str, id_type: Any, length: int, file_rows: Callable[..., Any]
) -> None:
    file_rows(TABLE)
    ids = pyarrow.array(range(4), pyarrow.int64()).cast(id_type)
    batch = KINDS[kind](TABLE.set_column(0, "id", ids).slice(0, length))
    schema = answer_batch(FirstWord(), batch).schema
    assert schema.field("id").type == id_type
    written = parquet.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert list(schema)[1:] == list(written)[1:]
    assert tuple(schema.names) == COLUMNS


def test_types_of_a_frame_do_not_depend_on_its_rows() -> None:
    frame = TABLE.to_pandas()
    frames = [answer_batch(FirstWord(), frame.iloc[rows]) for rows in (slice(0, 4), slice(0, 1), slice(1, 2), [])]
    assert len({tuple(frame.dtypes.astype(str)) for frame in frames}) == 1
    assert frames[0]["start"].dtype == "Int64"


def test_types_of_arrays_do_not_depend_on_their_rows() -> None:
    arrays = {
        "id": np.arange(4, dtype=np.int32),
        **{name: KINDS["arrays"](TABLE)[name] for name in COLUMNS_GIVEN if name != "id"},
    }
    for rows in (slice(0, 4), slice(1, 2), slice(0, 0)):
        answers = answer_batch(FirstWord(), {name: column[rows] for name, column in arrays.items()})
        assert (answers["id"].dtype, answers["score"].dtype, answers["start"].dtype) == (np.int32, float, object)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_made_where_there_are_none(kind: str, file_rows: Callable[..., Any]) -> None:
    table = TABLE.drop_columns("id")
    made = [row["id"] for row in file_rows(table)]
    assert made[0]
    assert made[1] is None  # a bad row has no texts to make one from
    assert [row["id"] for row in rows_of(answer_batch(FirstWord(), KINDS[kind](table)))] == made


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_id_among_strings_is_made_and_one_among_integers_stays_empty(kind: str) -> None:
    texts = TABLE.set_column(0, "id", pyarrow.array(["a", "b", "c", None]))
    made = rows_of(answer_batch(FirstWord(), KINDS[kind](TABLE.drop_columns("id"))))[3]["id"]
    assert [row["id"] for row in rows_of(answer_batch(FirstWord(), KINDS[kind](texts)))] == ["a", "b", "c", made]
    if kind not in ("frame", "arrays"):  # which have no empty integers
        integers = TABLE.set_column(0, "id", pyarrow.array([1, 2, 3, None]))
        ids = [row["id"] for row in rows_of(answer_batch(FirstWord(), KINDS[kind](integers)))]
        assert ids[:3] == [1, 2, 3]
        assert ids[3] in (None, made)


def test_cells_of_a_wrong_type_are_bad_rows() -> None:
    batch = {"id": [1, True, "x"], "question": ["Who?", "Who?", 7], "context": ["Mira", "Mira", "Mira"]}
    for kind in (batch, pandas.DataFrame(batch), {name: np.array(column, object) for name, column in batch.items()}):
        answers = rows_of(answer_batch(FirstWord(), kind))
        assert [row["id"] for row in answers] == [1, True, "x"]
        assert [row["error"] for row in answers] == [
            None,
            "row 1.id is neither a string nor a number",
            "row 2.question is not a string",
        ]


def test_columns_with_other_names_are_found_and_more_are_ignored() -> None:
    batch = {"nr": [7], "frage": ["Wer?"], "context": ["Mira"], "id": ["x"], "image": [object()]}
    answers = answer_batch(FirstWord(), batch, Columns(id="nr", question="frage"))
    assert (tuple(answers), answers["id"], answers["answer"]) == (COLUMNS, [7], ["Mira"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_the_columns_is_refused_and_an_empty_one_is_not(kind: str) -> None:
    table = TABLE.drop_columns("context")
    with pytest.raises(BadTarget, match=r"the batch: has no column 'context', only id, question"):
        answer_batch(FirstWord(), KINDS[kind](table))
    assert rows_of(answer_batch(FirstWord(), KINDS[kind](table.slice(0, 0)))) == []


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        ({"question": ["a?", "b?"], "context": ["c"]}, "its columns differ in length: 2 in 'question', 1 in 'context'"),
        ({"question": ["a?"], "context": ["c"], "id": []}, "its columns differ in length: .*, 0 in 'id'"),
        ({"question": np.array(["a?", "b?"]), "context": np.array(["c"])}, "its columns differ in length"),
        ({"question": "Who?", "context": "It was Ann."}, "its column 'question' is str"),
        ({"question": ["a?", "b?"], "context": "cd"}, "its column 'context' is str"),
        ({"question": ["a?"], "context": None}, "its column 'context' is NoneType"),
        ({"frage": ["a?"]}, "has no column 'question'"),
        (
            pandas.DataFrame([["a", "b", "c"]], columns=["question", "question", "context"]),
            "has several columns 'question'",
        ),
    ],
)
def test_columns_that_make_no_rows_are_refused(batch: Any, problem: str) -> None:
    with pytest.raises(BadTarget, match=f"the batch: {problem}"):
        answer_batch(FirstWord(), batch)


@pytest.mark.parametrize("index", [[7, 3], ["a", "b"], pandas.RangeIndex(5, 7)])
def test_the_answers_of_a_data_frame_have_its_index(index: Any) -> None:
    batch = pandas.DataFrame({"question": ["a?", "b?"], "context": ["Ann", "Bo"]}, index=index)
    answers = answer_batch(FirstWord(), batch)
    assert answers.index.equals(batch.index)
    assert batch.assign(answer=answers["answer"])["answer"].tolist() == ["Ann", "Bo"]
    several = answer_batch(FirstWord(), batch.assign(context="one two"), parameters={"top_k": 2})
    assert several["answer"].tolist() == ["one", "two"] * 2
    assert several.index.equals(pandas.RangeIndex(4))


def test_an_id_column_that_is_named_and_absent_is_refused() -> None:
    with pytest.raises(BadTarget, match="has no column 'nr'"):
        answer_batch(FirstWord(), {"question": ["a?"], "context": ["c"], "id": [1]}, Columns(id="nr"))


def test_what_is_no_batch_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"a batch is a pyarrow\.Table .*, not list"):
        answer_batch(FirstWord(), [{"question": "Who?", "context": "Mira"}])


@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_answers_do_not_depend_on_how_the_rows_are_cut_into_batches(sizes: list[int]) -> None:
    whole = [{**row, "error": None} for row in rows_of(answer_batch(FirstWord(), TABLE))]
    cut, first = [], 0
    for size in [*sizes, 4]:
        cut += rows_of(answer_batch(FirstWord(), TABLE.slice(first, size)))
        first += size
    assert [{**row, "error": None} for row in cut] == whole
