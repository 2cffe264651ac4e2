"""Bulk answering of many files into a folder: parts, shards, other storage, and runs that were killed."""

from __future__ import annotations

import errno
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import fsspec
import pyarrow
import pytest
import s3
from bulk_files import FirstWord, RecordingReporter, kill_at, read_jsonl, read_table, rows, write_jsonl, write_table
from fsspec.registry import _registry
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput
from qabuild.qa.bulk import Summary, answer_dataset, answer_file
from qabuild.qa.bulk.parts import cut
from qabuild.qa.data import records
from qabuild.system import files

COUNT = 25
FILES = (slice(0, 12), slice(12, 12), slice(12, COUNT))
"""Rows of each input file; the second has none."""


def asked() -> list[dict[str, Any]]:
    return [{**row, "id": number} for number, row in enumerate(rows(COUNT))]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A folder of three Parquet files, in which each row has an integer for an id."""
    folder = tmp_path / "questions"
    for number, part in enumerate(FILES):
        file = folder / f"day={number}" / "q.parquet"
        file.parent.mkdir(parents=True)
        write_parquet(file, asked()[part])
    return folder


def write_parquet(path: Path, content: list[dict[str, Any]]) -> None:
    schema = pyarrow.schema({"id": pyarrow.int64(), "question": pyarrow.string(), "context": pyarrow.string()})
    parquet.write_table(pyarrow.Table.from_pylist(content, schema), path, row_group_size=5)


def answered(folder: Path) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    return [row for part in sorted(folder.glob("part-*.parquet")) for row in read_table(part)]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def in_process(*args: Any, answering: Callable[[str], None] = lambda question: None, **named: Any) -> Any:
    """A started process that runs `answer_dataset`."""
    process = multiprocessing.get_context("fork").Process(
        target=lambda: answer_dataset(FirstWord(3, answering), *args, **named)
    )
    process.start()
    return process


# --- parts ----------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.none() | st.integers(0, 300), max_size=8), part_rows=st.integers(1, 120))
def test_every_row_is_in_exactly_one_part(lengths: list[int | None], part_rows: int) -> None:
    named = {f"{number}.parquet": length for number, length in enumerate(lengths)}
    parts = cut(named, part_rows)
    assert [part.name for part in parts] == [f"part-{number:05d}" for number in range(len(parts))]
    for file, length in named.items():
        own = [part for part in parts if part.file == file]
        if length is None:
            assert [(part.first, part.rows) for part in own] == [(0, None)]
        else:
            covered = [row for part in own for row in range(part.first, part.first + (part.rows or 0))]
            assert covered == list(range(length))
            assert all(part.rows and part.rows <= part_rows for part in own)


@given(length=st.integers(0, 40), group=st.integers(1, 15), first=st.integers(0, 45), count=st.integers(1, 45))
def test_any_rows_of_a_parquet_file_are_read(
    tmp_path_factory: pytest.TempPathFactory, length: int, group: int, first: int, count: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "q.parquet"
    parquet.write_table(
        pyarrow.table({"id": pyarrow.array(range(length), pyarrow.int64())}), path, row_group_size=group
    )
    read = list(records.read_records(str(path), "parquet", first=first, count=count))
    assert [record.values["id"] for record in read] == list(range(length))[first : first + count]
    assert [record.at for record in read] == [f"row {record.values['id']}" for record in read]


def test_a_folder_is_answered_in_parts(tmp_path: Path, questions: Path) -> None:
    out, reporter = tmp_path / "out", RecordingReporter()
    summary = answer_dataset(FirstWord(), questions, out, part_rows=10, reporter=reporter)
    assert summary == Summary(rows=COUNT, answered=COUNT, bad=0, resumed=0)
    assert (reporter.messages, reporter.done, reporter.total) == ([], COUNT, COUNT)
    parts = [f"part-{number:05d}" for number in range(4)]
    assert names(out) == sorted(
        ["_manifest.json", *(f"_parts/{part}.json" for part in parts), *(f"{part}.parquet" for part in parts)]
    )
    assert [len(read_table(out / f"{part}.parquet")) for part in parts] == [10, 2, 10, 3]
    assert [(row["id"], row["answer"]) for row in answered(out)] == [(n, f"été{n}") for n in range(COUNT)]
    manifest = json.loads((out / "_manifest.json").read_text())
    assert list(manifest["run"]["files"]) == [f"day={number}/q.parquet" for number in range(3)]
    assert manifest["parts"][1] == {"name": "part-00001", "file": "day=0/q.parquet", "first": 10, "rows": 2}


def test_all_parts_are_one_table(tmp_path: Path, questions: Path) -> None:
    """Ids are integers in every part only if all are, whatever the rows of a part."""
    answer_dataset(FirstWord(), questions, tmp_path / "integers", part_rows=10)
    assert str(parquet.read_table(tmp_path / "integers").schema.field("id").type) == "int64"
    write_table(questions / "z.parquet", [{**row, "id": str(row["id"])} for row in asked()])
    answer_dataset(FirstWord(), questions, tmp_path / "texts", part_rows=10)
    assert parquet.read_table(tmp_path / "texts").num_rows == 2 * COUNT
    assert {type(row["id"]) for row in answered(tmp_path / "texts")} == {str}


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.tsv", "q.json", "q.jsonl.gz"])
def test_files_of_other_formats_are_a_part_each(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    for number in range(2):
        file = folder / f"{number}{name}"
        part = rows(COUNT)[number::2]
        if name == "q.json":
            file.write_text(json.dumps(part))
        elif name == "q.jsonl.gz":
            file.write_bytes(gzip.compress(write_jsonl(tmp_path / "plain", part).read_bytes()))
        else:
            (write_jsonl if name == "q.jsonl" else write_table)(file, part)
    (folder / "README.md").write_text("Not a file of questions.")
    (folder / "_old.jsonl").write_text("Nor this one.")
    summary = answer_dataset(FirstWord(), folder, tmp_path / "out", part_rows=3)
    assert summary.answered == COUNT
    form = Path(name).suffix if name in ("q.csv", "q.tsv") else ".jsonl"
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert [part.name for part in parts] == [f"part-00000{form}", f"part-00001{form}"]
    answer_dataset(FirstWord(), folder, tmp_path / "parquet", answers_format="parquet")
    expected = [f"q{n}" for part in (range(0, COUNT, 2), range(1, COUNT, 2)) for n in part]
    assert [row["id"] for row in answered(tmp_path / "parquet")] == expected


def test_a_glob_chooses_files_and_one_match_goes_to_a_file(tmp_path: Path, questions: Path) -> None:
    assert answer_dataset(FirstWord(), questions / "day=[12]" / "*.parquet", tmp_path / "out").rows == 13
    assert answer_file(FirstWord(), questions / "day=[0]" / "*.parquet", tmp_path / "a.jsonl").rows == 12
    with pytest.raises(BadTarget, match=r"these are 2 files\n.*name a folder"):
        answer_file(FirstWord(), questions / "day=[12]" / "*.parquet", tmp_path / "a.jsonl")


def test_links_to_files_are_read_as_these(tmp_path: Path, questions: Path) -> None:
    """As the Hub's cache has them."""
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "q.parquet").symlink_to(questions / "day=0" / "q.parquet")
    for resumed in (0, 12):
        assert answer_dataset(FirstWord(), linked, tmp_path / "out").resumed == resumed


def test_bad_rows_are_reported_with_their_file_and_stay_in_their_part(tmp_path: Path) -> None:
    folder, out = tmp_path / "questions", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b"):
        write_jsonl(folder / f"{name}.jsonl", [*rows(6), "{"])
    for resumed in (0, 14):
        reporter = RecordingReporter()
        summary = answer_dataset(FirstWord(), folder, out, reporter=reporter)
        assert summary == Summary(rows=14, answered=12, bad=2, resumed=resumed)
        (message,) = reporter.messages
        assert message.startswith(f"2 of 14 rows are bad: {folder}/a.jsonl: line 7 is not JSON")
        assert f"{folder}/b.jsonl: line 7 is not JSON" in message
    for part in ("part-00000.jsonl", "part-00001.jsonl"):
        assert "line 7 is not JSON" in read_jsonl(out / part)[-1]["error"]


# --- runs that resume, and shards -----------------------------------------------------------------------------------


def test_a_run_that_is_killed_anywhere_goes_on(tmp_path: Path, questions: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    answer_dataset(FirstWord(), questions, whole, part_rows=4)
    for number in range(0, COUNT, 3):
        process = in_process(questions, out, part_rows=4, answering=kill_at(number))
        process.join()
        assert process.exitcode == -signal.SIGKILL
        complete = len(list(out.glob("_parts/*.json")))
        pipeline = FirstWord()
        summary = answer_dataset(pipeline, questions, out, part_rows=4)
        assert summary.resumed == COUNT - len(pipeline.answered)
        assert summary.resumed > 4 * (complete - 2)
        assert answered(out) == answered(whole)
        assert names(out) == names(whole)
        shutil.rmtree(out)


def test_a_run_killed_before_any_file_operation_goes_on(tmp_path: Path, questions: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    answer_dataset(FirstWord(), questions, whole, part_rows=13)

    def run(last: int) -> None:
        events = iter(range(1, 10_000))

        def hook(event: str, details: tuple[Any, ...]) -> None:
            if event in ("open", "os.truncate", "os.rename", "os.remove", "fcntl.flock") and next(events) == last:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        answer_dataset(FirstWord(), questions, out, part_rows=13)

    for number in range(1, 10_000, 3):
        process = multiprocessing.get_context("fork").Process(target=run, args=(number,))
        process.start()
        process.join()
        answer_dataset(FirstWord(), questions, out, part_rows=13)
        assert answered(out) == answered(whole)
        assert {*names(out)} - {*names(whole)} <= {name for name in names(out) if name.endswith(".partial")}
        shutil.rmtree(out)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert number > 10


def test_what_a_killed_run_left_of_a_part_is_overwritten(tmp_path: Path, questions: Path) -> None:
    answer_dataset(FirstWord(), questions, tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    (out / ".part-00000.parquet.partial").write_bytes(b"PAR1" + bytes(100_000))
    answer_dataset(FirstWord(), questions, out)
    assert answered(out) == answered(tmp_path / "whole")
    assert names(out) == names(tmp_path / "whole")


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:20] + b"?" + content[21:]])
@pytest.mark.parametrize("name", ["part-00002.parquet", "_parts/part-00002.json"])
def test_a_damaged_part_is_made_again(
    tmp_path: Path, questions: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    out = tmp_path / "out"
    answer_dataset(FirstWord(), questions, out, part_rows=4)
    expected = answered(out)
    (out / name).write_bytes(damage((out / name).read_bytes()))
    pipeline = FirstWord()
    assert answer_dataset(pipeline, questions, out, part_rows=4).resumed == COUNT - 4
    assert pipeline.answered == [row["question"] for row in rows(COUNT)[8:12]]
    assert answered(out) == expected
    (out / "part-00000.parquet").unlink()
    assert answer_dataset(FirstWord(), questions, out, part_rows=4).resumed == COUNT - 4


def test_shards_in_processes_that_start_at_once_share_a_folder(tmp_path: Path, questions: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    answer_dataset(FirstWord(), questions, whole, part_rows=4)
    processes = [in_process(questions, out, part_rows=4, shard=(number, 3)) for number in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert names(out) == names(whole)
    assert answered(out) == answered(whole)
    assert answer_dataset(FirstWord(), questions, out, part_rows=4, shard=(1, 3)).resumed == 8


def test_an_interruption_says_what_is_complete(tmp_path: Path, questions: Path) -> None:
    def interrupt(question: str) -> None:
        if question == "What is 20?":
            raise KeyboardInterrupt

    reporter = RecordingReporter()
    with pytest.raises(KeyboardInterrupt):
        answer_dataset(FirstWord(3, interrupt), questions, tmp_path / "out", part_rows=4, reporter=reporter)
    assert reporter.messages == ["5 of 7 parts are complete; the same command makes the others"]
    assert not list((tmp_path / "out").glob(".*"))


def test_a_part_that_another_process_is_making_is_refused(tmp_path: Path, questions: Path) -> None:
    def answering(question: str) -> None:
        if question == "What is 1?":
            with pytest.raises(QABuildError, match=r"part-00000\.parquet: another process is writing it"):
                answer_dataset(FirstWord(), questions, tmp_path / "out")

    assert answer_dataset(FirstWord(answering=answering), questions, tmp_path / "out").answered == COUNT


def test_a_file_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    held, free = Event(), Event()

    def hold() -> None:
        with files.exclusive(tmp_path / "part"):
            held.set()
            free.wait()

    holder = Thread(target=hold)
    holder.start()
    held.wait()
    with pytest.raises(BlockingIOError), files.exclusive(tmp_path / "part", 0.2):
        pass
    Timer(0.3, free.set).start()
    with files.exclusive(tmp_path / "part", 60):
        holder.join()


# --- folders of another run -----------------------------------------------------------------------------------------


def change(file: Path) -> None:
    write_parquet(file, asked()[:3])


def test_a_folder_of_another_run_is_refused_with_what_differs(tmp_path: Path, questions: Path) -> None:
    out = tmp_path / "out"
    answer_dataset(FirstWord(), questions, out, answered_by="a" * 64, parameters={"top_k": 1})

    def refused(problem: str, **named: Any) -> None:
        arguments: dict[str, Any] = {"answered_by": "a" * 64, "parameters": {"top_k": 1}, **named}
        with pytest.raises(BadTarget, match=f"holds the answers of another run: {problem}"):
            answer_dataset(FirstWord(), questions, out, **arguments)

    refused("artifact aaaaaaaaaaaa, now bbbbbbbbbbbb\n", answered_by="b" * 64)
    refused("top_k 1, now 3\n", parameters={"top_k": 3})
    refused("part_rows 100000, now 7\n", part_rows=7)
    refused("answers_format parquet, now csv\n", answers_format="csv")
    refused("columns {}, now {'id': 'nr'}\n", columns={"id": "nr"})
    write_table(questions / "more.parquet", asked())
    refused("the input had no more.parquet\n")
    (questions / "more.parquet").unlink()
    change(questions / "day=0" / "q.parquet")
    refused("day=0/q.parquet: changed to other rows, or ids of another type\n")
    (questions / "day=0" / "q.parquet").unlink()
    refused("the input had day=0/q.parquet\n")


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv"])
def test_a_damaged_file_keeps_no_other_from_being_answered(tmp_path: Path, ending: str) -> None:
    """Once it is repaired, the same command answers it, and nothing else again."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    files = [folder / f"{number}{ending}" for number in range(4)]
    for number, file in enumerate(files):
        part = rows(COUNT)[number::4]
        if ending == ".csv":
            write_table(file, part)
        else:
            file.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in part).encode()))
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-9] if ending == ".jsonl.gz" else whole + b'9,"never closed,9\n')

    reporter = RecordingReporter()
    with pytest.raises(UntrustedInput, match=rf"1{ending}: (damaged gzip file|line \d+: not CSV)"):
        answer_dataset(FirstWord(), folder, out, answers_format="jsonl", reporter=reporter)
    assert reporter.messages == ["3 of 4 parts are complete"]
    assert sorted(path.name for path in out.glob("*part*.jsonl*")) == [f"part-0000{n}.jsonl" for n in (0, 2, 3)]

    files[1].write_bytes(whole)
    pipeline = FirstWord()
    assert answer_dataset(pipeline, folder, out, answers_format="jsonl").answered == COUNT
    assert pipeline.answered == [row["question"] for row in rows(COUNT)[1::4]]
    assert [row["id"] for n in range(4) for row in read_jsonl(out / f"part-0000{n}.jsonl")] == [
        row["id"] for n in range(4) for row in rows(COUNT)[n::4]
    ]


def test_damaged_tables_of_parquet_are_named_before_any_answer(tmp_path: Path, questions: Path) -> None:
    for number in range(6):
        (questions / f"{number}.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        UntrustedInput, match=r"0\.parquet: .*; .*1\.parquet: .*; .*2\.parquet: .*; and 3 more: .*5\.parquet\n"
    ):
        answer_dataset(FirstWord(), questions, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_has_changed_is_answered_again_and_no_other(tmp_path: Path, questions: Path) -> None:
    out, reporter = tmp_path / "out", RecordingReporter()
    answer_dataset(FirstWord(), questions, out, part_rows=5)
    first = questions / "day=0" / "q.parquet"
    write_parquet(first, [{**row, "context": f"new {row['context']}"} for row in asked()[FILES[0]]])
    pipeline = FirstWord()
    summary = answer_dataset(pipeline, questions, out, part_rows=5, reporter=reporter)
    assert summary.resumed == COUNT - len(pipeline.answered) == COUNT - FILES[0].stop
    assert reporter.messages == ["changed since an earlier run: day=0/q.parquet"]
    expected = ["new" if n < FILES[0].stop else f"été{n}" for n in range(COUNT)]
    assert [row["answer"] for row in answered(out)] == expected
    assert answer_dataset(FirstWord(), questions, out, part_rows=5).resumed == COUNT


def test_answers_of_a_file_as_it_was_never_count_as_those_of_the_changed_one(tmp_path: Path, questions: Path) -> None:
    """A process that began before the change may complete a part of it after another one has begun."""
    out = tmp_path / "out"
    answer_dataset(FirstWord(), questions, out)
    earlier = {path: path.read_bytes() for path in (out / "_parts" / "part-00000.json", out / "part-00000.parquet")}
    first = questions / "day=0" / "q.parquet"
    write_parquet(first, [{**row, "context": f"new {row['context']}"} for row in asked()[FILES[0]]])
    answer_dataset(FirstWord(), questions, out)
    for path, content in earlier.items():
        path.write_bytes(content)
    assert answer_dataset(FirstWord(), questions, out).resumed == COUNT - FILES[0].stop
    assert answered(out)[0]["answer"] == "new"


def test_an_interruption_tells_of_the_damaged_files_so_far(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.gz").touch()
    write_jsonl(tmp_path / "in" / "b.jsonl", rows(3))

    def interrupt(question: str) -> None:
        raise KeyboardInterrupt

    reporter = RecordingReporter()
    with pytest.raises(KeyboardInterrupt):
        answer_dataset(FirstWord(answering=interrupt), tmp_path / "in", tmp_path / "out", reporter=reporter)
    damaged = f"{tmp_path}/in/a.jsonl.gz: damaged gzip file (it is empty)"
    assert reporter.messages == [damaged, "0 of 2 parts are complete"]


def test_a_link_to_nothing_keeps_no_other_file_from_being_answered(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", rows(3))
    (tmp_path / "in" / "b.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(UntrustedInput, match=r"in/b\.jsonl: there is no such file"):
        answer_dataset(FirstWord(), tmp_path / "in", tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out" / "part-00000.jsonl")) == 3
    write_jsonl(tmp_path / "in" / "nowhere.jsonl", rows(2))
    (tmp_path / "in" / "nowhere.jsonl").rename(tmp_path / "nowhere.jsonl")
    (tmp_path / "in" / "b.jsonl").unlink()
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    assert answer_dataset(FirstWord(), tmp_path / "in", tmp_path / "out").answered == 5


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    for name in "ab":
        write_table(tmp_path / f"{name}{ending}", rows(3))

    def denied(path: Any, *arguments: Any, **named: Any) -> Any:
        if str(path).endswith(f"a{ending}"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return unlimited(path, *arguments, **named)

    unlimited = open
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UntrustedInput, match=rf"a{ending}: access is denied\n.*the right to read it"):
        answer_dataset(FirstWord(), f"{tmp_path}/*{ending}", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("part-*"))) == (ending == ".csv")


def test_a_folder_in_the_folder_that_cannot_be_read_is_not_empty(
    tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Any) -> Any:
        if str(path).endswith("day=1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(BadTarget, match=r"questions/day=1: access is denied"):
        answer_dataset(FirstWord(), questions, tmp_path / "out")


@pytest.mark.parametrize("at", ["What is 1?", "What is 13?"])
def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, questions: Path, at: str) -> None:
    """Both while it is read and before."""
    last = questions / "day=2" / "q.parquet"

    def answering(question: str) -> None:
        if question == at:
            change(last)

    with pytest.raises(QABuildError, match=r"day=2/q\.parquet: has changed since the run began"):
        answer_dataset(FirstWord(answering=answering), questions, tmp_path / "out", part_rows=50)
    assert [path.name for path in (tmp_path / "out").glob("*part*.parquet*")] == ["part-00000.parquet"]


@pytest.mark.parametrize(
    ("content", "error", "problem"),
    [
        (b"", UntrustedInput, r"_manifest\.json: is damaged"),
        (b"[]", UntrustedInput, "is damaged"),
        (b'{"manifest_version": 1}', UntrustedInput, r"is damaged \(\w+: Field required\)"),
        (b'{"manifest_version": 2, "qabuild": "9.0"}', BadTarget, r"was written by a newer qabuild, 9\.0\n.*update"),
        (None, BadTarget, r"holds parts without a _manifest\.json"),
    ],
)
def test_a_damaged_newer_or_missing_manifest_is_refused(
    tmp_path: Path, questions: Path, content: bytes | None, error: type[QABuildError], problem: str
) -> None:
    out = tmp_path / "out"
    answer_dataset(FirstWord(), questions, out)
    (out / "_manifest.json").unlink()
    if content is not None:
        (out / "_manifest.json").write_bytes(content)
    with pytest.raises(error, match=problem):
        answer_dataset(FirstWord(), questions, out)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "problem"),
    [
        ("nowhere", "out", "nowhere: there is no such file"),
        ("questions/*.csv", "out", "there are no questions\n.*a glob that matches some"),
        ("empty", "out", "there are no questions"),
        ("-", "out", "-: is read once"),
        ("questions", "questions/out", "lies in the folder of the questions"),
        ("questions", "questions", "lies in the folder of the questions"),
        ("questions/**/*.parquet", "questions/out", "lies in the folder of the questions"),
        ("questions/day=0/*.parquet", "questions/day=0", "lies in the folder of the questions"),
        ("questions/*/*.parquet", "questions/out", "lies in the folder of the questions"),
        ("questions/*/*[q1].parquet", "questions/out", "lies in the folder of the questions"),
        ("questions/**/q.parquet", "linked", "lies in the folder of the questions"),
        ("questions", "artifact/out", r"lies in the artifact .*, which is sealed"),
        ("questions", "q.xlsx", "is a file\n.*name a folder"),
        ("q.xlsx", "out", "its ending names no format of questions"),
        ("mixed", "out", r"several formats: csv \(a\.csv\), jsonl \(b\.jsonl\)\n.*with a glob"),
        ("others.parquet", "out", r"others\.parquet: has no column 'context', only id, question\n.*--column context="),
        ("others.csv", "out", r"others\.csv: has no column 'question', only id, frage\n.*--column question=COLUMN"),
        ("questions", "zzz://bucket/out", "Protocol not known: zzz"),
        ("zzz://bucket/in", "out", "Protocol not known: zzz"),
        ("s3:/bucket/in", "out", r"s3:/bucket/in: is no URL\n  write s3://bucket/in"),
        ("questions", "s3:/bucket/out", r"s3:/bucket/out: is no URL"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_any_answer(
    working_directory: Path, questions: Path, source: str, target: str, problem: str
) -> None:
    for folder in ("artifact", "mixed", "empty", "questions/out"):
        Path(folder).mkdir()
    Path("linked").symlink_to("questions/out")
    Path("artifact/manifest.json").write_text("{}")
    Path("q.xlsx").touch()
    write_table(Path("mixed/a.csv"), rows(1))
    write_jsonl(Path("mixed/b.jsonl"), rows(1))
    write_table(Path("others.parquet"), [{"id": 1, "question": "?"}])
    write_table(Path("others.csv"), [{"id": 1, "frage": "?"}])
    with pytest.raises(BadTarget, match=problem):
        answer_dataset(FirstWord(), source, target)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"part_rows": 0}, "part_rows: 0"),
        ({"answers_format": "xml"}, "answers_format: 'xml' is not known\n.*jsonl, csv, tsv, parquet"),
        ({"shard": (0, 0)}, "shard 0/0: there is none"),
        ({"shard": (2, 2)}, "shard 2/2: there is none\n.*0/2 to 1/2"),
        ({"columns": {"context": "nope"}}, r"a\.csv: has no column 'nope', only"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    working_directory: Path, arguments: dict[str, Any], problem: str
) -> None:
    Path("in").mkdir()
    write_table(Path("in/a.csv"), rows(2))
    with pytest.raises(BadTarget, match=problem):
        answer_dataset(FirstWord(), "in", "out", **arguments)
    assert not Path("out").exists()


@pytest.mark.parametrize("shard", [(3, 3), (-1, 3), (0, 0)])
def test_a_shard_that_there_is_not_is_refused(tmp_path: Path, questions: Path, shard: tuple[int, int]) -> None:
    with pytest.raises(BadTarget, match=r"there is none\n.*counting from 0"):
        answer_dataset(FirstWord(), questions, tmp_path / "out", shard=shard)


def test_without_rights_the_error_says_so(tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def denied(*args: Any, **named: Any) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", denied)
    with pytest.raises(BadTarget, match=r"memory:///rights/_manifest\.json: access is denied\n.*credentials"):
        answer_dataset(FirstWord(), questions, "memory://rights")


def test_a_missing_driver_is_named(tmp_path: Path, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(MissingEnvironment, match=r"s3://bucket/in/: its driver is not installed\n  pip install s3fs"):
        answer_dataset(FirstWord(), "s3://bucket/in/", tmp_path / "out")


# --- other storage --------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(questions: Path) -> Iterator[Any]:
    """fsspec's file system in memory, with the questions in /in."""
    filesystem = fsspec.filesystem("memory")
    for file in names(questions):
        filesystem.put_file(str(questions / file), f"/in/{file}")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("source", ["memory://in", "memory://in/", "memory://in/**/*.parquet"])
def test_a_store_is_answered_into_a_store(tmp_path: Path, questions: Path, memory: Any, source: str) -> None:
    whole = tmp_path / "whole"
    answer_dataset(FirstWord(), questions, whole, part_rows=4)
    for resumed in (0, COUNT):
        summary = answer_dataset(FirstWord(), source, "memory://out/", part_rows=4)
        assert summary == Summary(rows=COUNT, answered=COUNT, bad=0, resumed=resumed)
    assert sorted(memory.find("/out")) == [f"/out/{name}" for name in names(whole)]
    memory.get("/out/", str(tmp_path / "fetched"), recursive=True)
    assert answered(tmp_path / "fetched") == answered(whole)
    memory.pipe_file("/out/part-00001.parquet", memory.cat_file("/out/part-00001.parquet")[:-1])
    reporter = RecordingReporter()
    assert answer_dataset(FirstWord(), source, "memory://out/", part_rows=4, reporter=reporter).resumed == COUNT - 4
    assert reporter.messages == ["memory:///out/part-00001.parquet: is damaged, and made again"]


def test_a_glob_that_does_not_match_the_answers_may_lie_beside_them(tmp_path: Path, questions: Path) -> None:
    for resumed in (0, COUNT):
        summary = answer_dataset(FirstWord(), questions / "day=*" / "*.parquet", questions / "out")
        assert summary.resumed == resumed


def test_a_file_of_a_store_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path, memory: Any) -> None:
    for name, count in (("/odd/a[1].jsonl", 1), ("/odd/a1.jsonl", 3), ("/odd/b?.jsonl", 2), ("/odd/bb.jsonl", 3)):
        write_jsonl(tmp_path / "q.jsonl", rows(count))
        memory.put_file(str(tmp_path / "q.jsonl"), name)
    assert answer_file(FirstWord(), "memory://odd/a[1].jsonl", tmp_path / "a.jsonl").answered == 1
    assert answer_file(FirstWord(), "memory://odd/b?.jsonl", tmp_path / "b.jsonl").answered == 2
    assert answer_dataset(FirstWord(), "memory://odd/a[1].jsonl", tmp_path / "out").answered == 1
    assert answer_file(FirstWord(), "memory://odd/b[b].jsonl", tmp_path / "bb.jsonl").answered == 3


def test_a_file_of_a_store_is_answered_into_a_file(tmp_path: Path, memory: Any) -> None:
    assert answer_file(FirstWord(), "memory://in/day=0/q.parquet", tmp_path / "a.jsonl").answered == 12
    write_jsonl(tmp_path / "q.jsonl", rows(3))
    assert answer_file(FirstWord(), f"file://{tmp_path}/q.jsonl", "memory://b.csv").answered == 3
    assert memory.cat_file("/b.csv").count(b"\n") == 4
    assert answer_file(FirstWord(), "memory://in/day=0/*", "memory://a.jsonl").answered == 12
    assert memory.cat_file("/a.jsonl") == (tmp_path / "a.jsonl").read_bytes()
    memory.pipe_file("/q.jsonl.gz", gzip.compress(write_jsonl(tmp_path / "q", rows(9)).read_bytes()))
    assert answer_file(FirstWord(), "memory://q.jsonl.gz", f"file://{tmp_path}/c.csv").answered == 9
    assert len(read_table(tmp_path / "c.csv")) == 9
    with pytest.raises(BadTarget, match="would replace the questions"):
        answer_file(FirstWord(), "memory://q.jsonl.gz", "memory://q.jsonl.gz", answers_format="jsonl")


PROGRAM = """
import json, sys
from bulk_files import FirstWord, kill_at
from qabuild.qa.bulk import answer_dataset
source, target, shard, number = json.loads(sys.argv[1])
answer_dataset(FirstWord(3, kill_at(number)), source, target, part_rows=4, shard=tuple(shard))
"""


def started(source: str, target: str, shard: tuple[int, int] = (0, 1), kill: int = -1) -> subprocess.Popen[bytes]:
    """A new process: drivers of stores have threads, which a fork lacks."""
    import bulk_files

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(bulk_files.__file__).parent), *sys.path])}
    arguments = json.dumps([source, target, shard, kill])
    return subprocess.Popen([sys.executable, "-c", PROGRAM, arguments], env=environment)


@pytest.mark.scale
def test_shards_in_s3_are_killed_and_go_on(tmp_path: Path, questions: Path) -> None:
    with s3.bucket("bucket") as bucket:
        bucket.put(f"{questions}/", "bucket/in", recursive=True)
        whole = tmp_path / "whole"
        answer_dataset(FirstWord(), questions, whole, part_rows=4)

        assert started("s3://bucket/in/", "s3://bucket/out/", kill=14).wait() == -signal.SIGKILL
        done = bucket.find("bucket/out/_parts")
        assert 2 < len(done) < 7
        shards = [started("s3://bucket/in/", "s3://bucket/out/", (number, 2)) for number in range(2)]
        assert [shard.wait() for shard in shards] == [0, 0]
        bucket.get("bucket/out/", str(tmp_path / "fetched"), recursive=True)
        assert names(tmp_path / "fetched") == names(whole)
        assert answered(tmp_path / "fetched") == answered(whole)

        with pytest.raises(BadTarget, match=r"s3://no-bucket/in/: there is no such file, folder or bucket"):
            answer_dataset(FirstWord(), "s3://no-bucket/in/", tmp_path / "out")
        with pytest.raises(BadTarget, match=r"s3://no-bucket/out/.*: there is no such file, folder or bucket"):
            answer_dataset(FirstWord(), "s3://bucket/in/", "s3://no-bucket/out/")
        bucket.pipe_file("bucket/in/day=0/q.parquet", b"")
        with pytest.raises(UntrustedInput, match=r"day=0/q\.parquet: not Parquet"):
            answer_dataset(FirstWord(), "s3://bucket/in/", "s3://bucket/out/", part_rows=4)
