"""The same questions in every layout, format and encoding that tools write."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa import data
from qabuild.qa.data import Columns, Question, repair
from qabuild.qa.data.rows import id_of_texts
from qabuild.qa.data.source import encoding_of

MILL = "The mill at Fenwick Ford was rebuilt in 1794 by the mason Ada Crane. It ground rye until the flood of 1868."
WHO = "Who rebuilt the mill?"


def row(**changes: Any) -> dict[str, Any]:
    """A row about the mill; a change to None leaves the key out."""
    values = {"id": "a1", "question": WHO, "context": MILL, "answers": [{"text": "Ada Crane", "answer_start": 58}]}
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def write(path: Path, *rows: Any) -> Path:
    """The rows as the format that the path's ending names."""
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(text.getvalue().encode())
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(list(rows)))
    return path


# --- any questions, in every layout -----------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@st.composite
def question_sets(draw: st.DrawFn) -> list[Question]:
    """Questions with answers in place, and unanswerable ones."""

    def answers(context: str) -> list[tuple[str, int]]:
        spans = draw(st.lists(st.tuples(st.integers(0, len(context) - 1), st.integers(1, 9)), max_size=2))
        pairs = [(context[start : start + length], start) for start, length in spans]
        return [(text, start) for text, start in pairs if text.strip()]

    ids = draw(st.lists(TEXT, min_size=1, max_size=4, unique=True))
    questions = []
    for name in ids:
        context = draw(TEXT)
        pairs = answers(context)
        texts, starts = tuple(text for text, _ in pairs), tuple(start for _, start in pairs)
        questions.append(Question(id=name, question=draw(TEXT), context=context, answers=texts, answer_starts=starts))
    return questions


def struct_of_lists(question: Question) -> dict[str, Any]:
    return {"text": list(question.answers), "answer_start": list(question.answer_starts)}


def arrays(question: Question) -> dict[str, Any]:
    """As pandas holds lists."""
    return {
        "text": np.array(question.answers, dtype=object),
        "answer_start": np.array(question.answer_starts, dtype=np.int64),
    }


def list_of_structs(question: Question) -> list[dict[str, Any]]:
    pairs = zip(question.answers, question.answer_starts, strict=True)
    return [{"text": text, "answer_start": start} for text, start in pairs]


def rows_of(questions: list[Question], answers: Callable[[Question], Any]) -> list[dict[str, Any]]:
    return [
        {
            "context": q.context,
            "id": q.id,
            "answers": answers(q),
            "question": q.question,
            "is_impossible": not q.answers,
        }
        for q in questions
    ]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet as files

    pair = [("text", pyarrow.string()), ("answer_start", pyarrow.int32())]
    lists = pyarrow.struct([(name, pyarrow.list_(kind)) for name, kind in pair])
    kinds = lists if isinstance(rows[0]["answers"], dict) else pyarrow.list_(pyarrow.struct(pair))
    strings = [(name, pyarrow.string()) for name in ("context", "id", "question")]
    schema = pyarrow.schema([*strings, ("answers", kinds), ("is_impossible", pyarrow.bool_())])
    file = io.BytesIO()
    files.write_table(pyarrow.Table.from_pylist(rows, schema), file)
    return file.getvalue()


def table(rows: list[dict[str, Any]], delimiter: str, cell: Callable[[Any], str]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows({**row, "answers": cell(row["answers"])} for row in rows)
    return file.getvalue()


LAYOUTS: dict[str, Callable[[list[Question]], str | bytes]] = {
    "canonical.json": lambda questions: repair.document(questions),
    "data.json": lambda questions: json.dumps({"version": "0.1.0", "data": rows_of(questions, struct_of_lists)}),
    "list.json": lambda questions: json.dumps(rows_of(questions, list_of_structs), ensure_ascii=False),
    "articles.json": lambda questions: json.dumps(json.loads(repair.document(questions))["data"]),
    "lines.json": lambda questions: "\n".join(map(json.dumps, rows_of(questions, struct_of_lists))),
    "lines.jsonl": lambda questions: "\n".join(map(json.dumps, rows_of(questions, list_of_structs))),
    "crlf.jsonl": lambda questions: "\r\n".join(map(json.dumps, rows_of(questions, struct_of_lists))),
    "cells.csv": lambda questions: table(rows_of(questions, list_of_structs), ",", json.dumps),
    "python.csv": lambda questions: table(rows_of(questions, struct_of_lists), ";", str),
    "pandas.csv": lambda questions: table(rows_of(questions, arrays), ",", str),
    "cells.tsv": lambda questions: table(rows_of(questions, struct_of_lists), "\t", json.dumps),
    "lists.parquet": lambda questions: parquet(rows_of(questions, struct_of_lists)),
    "structs.parquet": lambda questions: parquet(rows_of(questions, list_of_structs)),
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


@pytest.mark.parametrize("name", LAYOUTS)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=30, deadline=None)
@given(questions=question_sets(), encoding=st.sampled_from(ENCODINGS), compressed=st.booleans())
def test_the_same_questions_are_read_from_every_layout(
    tmp_path_factory: pytest.TempPathFactory, name: str, questions: list[Question], encoding: str, compressed: bool
) -> None:
    content = LAYOUTS[name](questions)
    encoded = content.encode(encoding) if isinstance(content, str) else content
    path = tmp_path_factory.getbasetemp() / f"{name}{'.gz' * compressed}"
    path.write_bytes(gzip.compress(encoded) if compressed else encoded)
    assert data.read(path) == tuple(questions)


@settings(deadline=None)
@given(question_sets(), st.integers(-3, 3), st.sampled_from(["characters", "utf-8", "utf-16-le"]))
def test_mended_offsets_are_in_place_and_change_no_text(
    tmp_path_factory: pytest.TempPathFactory, questions: list[Question], shift: int, unit: str
) -> None:
    def counted(question: Question, start: int) -> int:
        before = question.context[:start]
        size = {"utf-8": 1, "utf-16-le": 2}
        return start if unit == "characters" else len(before.encode(unit)) // size[unit]

    path = tmp_path_factory.getbasetemp() / "moved.json"
    rows = rows_of(questions, list_of_structs)
    for values, question in zip(rows, questions, strict=True):
        for answer in values["answers"]:
            answer["answer_start"] = counted(question, answer["answer_start"]) + shift
    path.write_text(json.dumps(rows))
    mended = repair.examine(path, Columns()).questions
    path.write_bytes(repair.document(mended))
    assert [(q.id, q.answers) for q in data.read(path)] == [(q.id, q.answers) for q in questions]


# --- ids, answers, flags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (row(id=381), "381"),
        (row(id=381.0), "381"),  # a column of integers beside an empty cell, in pandas
        (row(id=1.5), "1.5"),
        (row(id="007"), "007"),
        (row(id=None), id_of_texts(WHO, MILL)),
        (row(id=float("nan")), id_of_texts(WHO, MILL)),
    ],
)
def test_an_id_is_any_scalar_or_made_from_the_texts(tmp_path: Path, values: Any, expected: str) -> None:
    (question,) = data.read(write(tmp_path / "q.jsonl", values))
    assert question.id == expected


def test_a_row_without_an_id_has_the_same_one_in_every_file(tmp_path: Path) -> None:
    other = row(id=None, question="When was the flood?", answers=[])
    first = data.read(write(tmp_path / "a.jsonl", row(id=None), other))
    second = data.read(write(tmp_path / "b.json", other, row(id=None)))
    assert [question.id for question in first] == [question.id for question in second][::-1]


@pytest.mark.parametrize(
    ("changes", "answers", "starts"),
    [
        ({"answers": {"text": ["Ada Crane"], "answer_start": [58]}}, ("Ada Crane",), (58,)),
        ({"answers": {"text": "Ada Crane", "answer_start": 58}}, ("Ada Crane",), (58,)),
        ({"answers": [{"text": "Ada Crane", "answer_start": 58.0, "answer_id": 901}]}, ("Ada Crane",), (58,)),
        ({"answers": None, "answer_text": "Ada Crane", "answer_start": "58"}, ("Ada Crane",), (58,)),
        ({"answers": [{"text": "", "answer_start": 0}]}, (), ()),
        ({"answers": {"text": [], "answer_start": []}}, (), ()),
        ({"answers": [], "is_impossible": 1}, (), ()),
        ({"answers": None, "is_impossible": True}, (), ()),
        ({"answers": [], "is_impossible": 1.0}, (), ()),
        ({"answers": [], "is_impossible": "True"}, (), ()),
        ({"is_impossible": 0}, ("Ada Crane",), (58,)),
        ({"is_impossible": float("nan")}, ("Ada Crane",), (58,)),
    ],
)
def test_answers_are_read_as_tools_write_them(tmp_path: Path, changes: Any, answers: Any, starts: Any) -> None:
    (question,) = data.read(write(tmp_path / "q.jsonl", row(**changes)))
    assert (question.answers, question.answer_starts) == (answers, starts)


def test_null_answers_are_none(tmp_path: Path) -> None:
    (question,) = data.read(write(tmp_path / "q.jsonl", row() | {"answers": None}))
    assert question.answers == ()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"answers": None}, "line 1 has no 'answers'"),
        ({"answers": 7}, r"line 1\.answers is not a list"),
        ({"answers": [{"answer_start": 58}]}, r"line 1\.answers\[0\] has no 'text'"),
        ({"answers": [{"text": 7, "answer_start": 58}]}, r"line 1\.answers\[0\]\.text is not a string"),
        ({"answers": {"text": ["Ada Crane"], "answer_start": [58, 59]}}, r"line 1\.answers: 1 texts have 2 starts"),
        ({"answers": [{"text": "Ada Crane", "answer_start": "x"}]}, r"\.answer_start is not an integer"),
        ({"answers": ["Ada Crane"]}, r"'a1' \('Ada Crane' is at 58\)"),
        ({"answers": ["Bob"]}, r"'a1' \('Bob' is nowhere\)"),
        ({"is_impossible": 2}, "line 1.is_impossible is neither true nor false"),
        ({"is_impossible": True}, "marked is_impossible and has answers"),
    ],
)
def test_other_answers_are_refused_with_their_place(tmp_path: Path, changes: Any, problem: str) -> None:
    with pytest.raises(UntrustedInput, match=problem):
        data.read(write(tmp_path / "q.jsonl", row(**changes)))


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_columns_with_other_names_are_read_by_name(tmp_path: Path, ending: str) -> None:
    values = {"nr": 7, "frage": WHO, "text": MILL, "antwort": "Ada Crane", "ab": 58, "answer_category": "SHORT"}
    path = write(tmp_path / f"fragen.{ending}", values)
    columns = Columns(id="nr", question="frage", context="text", answer_text="antwort", answer_start="ab")
    loaded = data.load(data.DatasetRef(path, columns=columns))
    assert loaded.questions == (
        Question(id="7", question=WHO, context=MILL, answers=("Ada Crane",), answer_starts=(58,)),
    )
    with pytest.raises(UntrustedInput, match="has no 'question', only nr, frage, text, antwort, ab"):
        data.load(data.DatasetRef(path))


@pytest.mark.parametrize("ending", ["json", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["id", "question", "context", "answers", "answer_text"])
def test_a_column_that_is_named_and_absent_has_no_substitute(tmp_path: Path, ending: str, name: str) -> None:
    path = write(tmp_path / f"q.{ending}", row(answer_text="Ada Crane", answer_start=58))
    with pytest.raises(UntrustedInput, match="has no 'nowhere', only id, question, context"):
        data.load(data.DatasetRef(path, columns=Columns(**{name: "nowhere"})))


def test_bad_rows_are_counted_in_one_message(tmp_path: Path) -> None:
    rows = [row(id=number) if number % 2 else {"frage": "?"} for number in range(40)]
    with pytest.raises(UntrustedInput, match=r"20 of 40 rows are bad: line 1 .*; line 3 .*; line 5 [^;]*; \.\.\.\n"):
        data.read(write(tmp_path / "q.jsonl", *rows))


def test_a_long_context_of_csv_is_read(tmp_path: Path) -> None:
    context = f'{MILL}\n"quoted", and\r\n' * 3000
    (question,) = data.read(write(tmp_path / "q.csv", row(context=context, answers="Ada Crane") | {"answer_start": 58}))
    assert question.context == context


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("q.csv", b'id,question,context\n1,"Who?,c\n', "line 2: not CSV"),
        ("q.csv", b"id,question,context\n1,Who?,c,d\n", "line 2 has more cells"),
        ("q.csv", b"id,question,context\n1,Who?\n", r"line 2\.context is blank"),
        ("q.csv", b"", "there are no questions"),
        ("q.json", b"", r"q\.json: is empty"),
        ("q.json", b" \n", r"q\.json: is empty"),
        ("q.parquet", b"PAR1 and no more", "not Parquet"),
        ("q.parquet", b"", "not Parquet"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UntrustedInput, match=problem):
        data.read(tmp_path / name)


def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "q.xlsx").write_bytes(b"")
    with pytest.raises(BadTarget, match=r"q\.xlsx: its ending names no format.*\n.*\.csv, \.tsv, \.parquet"):
        data.read(tmp_path / "q.xlsx")


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "looks_like"),
    [
        ("cp1252", "Windows-1252: byte 0xE9 after"),
        ("utf-16-le", "UTF-16LE: it has no byte order mark"),
        ("utf-16-be", "UTF-16BE: it has no byte order mark"),
        ("utf-32-le", "UTF-32LE: it has no byte order mark"),
    ],
)
def test_text_in_another_encoding_is_refused_and_mended(tmp_path: Path, encoding: str, looks_like: str) -> None:
    context = "The Café Crème opened in 1911."
    values = row(context=context, answers=[{"text": "Café Crème", "answer_start": 4}])
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(values, ensure_ascii=False).encode(encoding))
    with pytest.raises(UntrustedInput, match=f"not UTF-8 text, it looks like {looks_like}"):
        data.read(path)
    found = repair.examine(path, Columns())
    assert found.problems.keys() == {repair.ENCODING}
    assert found.questions[0].context == context


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis", "cp1251"])
def test_an_encoding_that_cannot_be_told_is_not_guessed(tmp_path: Path, encoding: str) -> None:
    text = {"cp1251": "Мельница была построена", "gb18030": "磨坊重建于", "shift_jis": "水車小屋は再建された"}[encoding]
    path = tmp_path / "q.jsonl"
    path.write_bytes(json.dumps(row(context=text), ensure_ascii=False).encode(encoding))
    with pytest.raises(UntrustedInput, match="not UTF-8 text: byte 0x") as caught:
        repair.examine(path, Columns())
    assert "iconv" in (caught.value.hint or "")


@given(st.binary(max_size=40))
def test_a_guessed_encoding_decodes_its_text_or_is_none(content: bytes) -> None:
    encoding = encoding_of(content)
    if encoding and encoding.name in ("utf-8", "cp1252"):
        content.decode(encoding.name)


# --- data check -----------------------------------------------------------------------------------------------------


def examined(tmp_path: Path, *rows: Any) -> repair.Examination:
    return repair.examine(write(tmp_path / "q.jsonl", *rows), Columns())


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    found = examined(tmp_path, row(), row(id=None, question="Who owned it?", answers=[]))
    assert (found.problems, found.unanswerable, found.made_ids) == ({}, 1, 1)


def test_rows_of_several_annotators_are_merged(tmp_path: Path) -> None:
    found = examined(
        tmp_path,
        row(),
        row(answers=[{"text": "the mason Ada Crane", "answer_start": 48}]),
        row(),
        row(question="When was the flood?", answers=[{"text": "1868", "answer_start": 102}]),
    )
    assert [(question.id, question.answers) for question in found.questions] == [
        ("a1", ("Ada Crane", "the mason Ada Crane")),
        ("a1-2", ("1868",)),
    ]
    assert found.problems == {repair.REPEATED: ["'a1'", "'a1'"], repair.SHARED_ID: ["'a1' becomes 'a1-2'"]}


def test_a_new_id_is_no_one_elses(tmp_path: Path) -> None:
    rows = [row(), row(question="When?"), row(id="a1-2", question="Where?"), row(question="How?")]
    assert [question.id for question in examined(tmp_path, *rows).questions] == ["a1", "a1-3", "a1-2", "a1-4"]


@pytest.mark.parametrize(
    ("text", "start", "kind", "mended"),
    [
        ("Ada Crane", 59, repair.MISPLACED, ("Ada Crane", 58)),
        ("the", 80, repair.MISPLACED, ("the", 89)),
        ("ada  crane", 58, repair.ALIKE, ("Ada Crane", 58)),
        ("Bob", 58, repair.NOWHERE, None),
    ],
)
def test_an_answer_is_put_in_place_or_left_out(
    tmp_path: Path, text: str, start: int, kind: repair.Kind, mended: Any
) -> None:
    second = {"text": "1794", "answer_start": 40}
    found = examined(tmp_path, row(answers=[{"text": text, "answer_start": start}, second]))
    (question,) = found.questions
    assert list(found.problems) == [kind]
    assert list(zip(question.answers, question.answer_starts, strict=True))[:-1] == ([mended] if mended else [])


def test_offsets_counted_in_bytes_or_utf_16_units_are_told(tmp_path: Path) -> None:
    context = "😀😀😀😀 Ada, Ada."  # of the first Ada: 5 characters, 9 UTF-16 units and 17 bytes precede it
    for start in (9, 17):
        found = examined(tmp_path, row(context=context, answers=[{"text": "Ada", "answer_start": start}]))
        assert found.questions[0].answer_starts == (5,)


def test_a_question_whose_only_answer_is_nowhere_is_left_out(tmp_path: Path) -> None:
    found = examined(tmp_path, row(), row(id="a2", answers=["Bob"]), {"id": "a3"})
    assert [question.id for question in found.questions] == ["a1"]
    assert found.problems.keys() == {repair.UNREADABLE, repair.NOWHERE}


# --- leakage --------------------------------------------------------------------------------------------------------


def test_two_files_may_number_their_questions_alike(tmp_path: Path) -> None:
    first = data.read(write(tmp_path / "a.jsonl", row(id=1)))
    second = data.read(write(tmp_path / "b.jsonl", row(id=1, question="Where?", context="Ada Crane.", answers=[])))
    data.refuse_leakage(first, second)
    for changes in ({"id": 2}, {"question": "By whom?"}, {"context": f"{MILL} End."}):
        with pytest.raises(BadTarget, match="1 of its 1 questions"):
            data.refuse_leakage(first, data.read(write(tmp_path / "c.jsonl", row(**{"id": 1, **changes}))))
