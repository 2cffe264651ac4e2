"""Questions, models and folders of answers that change during a bulk run, or between two runs of the same command."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pytest
from bulk_files import FirstWord, RecordingReporter, read_jsonl, rows, write_jsonl
from fsspec.implementations.memory import MemoryFileSystem

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa.bulk import answer_dataset, answer_file
from qabuild.system.version import VERSION

COUNT = 12


def old() -> list[dict[str, Any]]:
    return [{**row, "context": "old text"} for row in rows(COUNT)]


def new() -> list[dict[str, Any]]:
    """Other contexts, of the same size."""
    return [{**row, "context": "new text"} for row in rows(COUNT)]


def words(*files: Path) -> list[str]:
    return [line["answer"] for file in files for line in read_jsonl(file)]


def at_question(number: int, action: Callable[[], None]) -> Callable[[str], None]:
    def answering(question: str) -> None:
        if question == f"What is {number}?":
            action()

    return answering


def interrupted() -> None:
    raise KeyboardInterrupt


class Model(FirstWord):
    """A pipeline as `qabuild.load` makes it: it has the digest of its artifact."""

    def __init__(self, digest: str, **named: Any) -> None:
        super().__init__(**named)
        self.digest = digest


# --- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replace", [os.replace, shutil.copyfile])
@pytest.mark.parametrize("answers", ["a.jsonl", "a.csv", "a.parquet"])
def test_questions_that_change_while_they_are_answered_are_refused(
    tmp_path: Path, answers: str, replace: Callable[[Path, Path], object]
) -> None:
    questions, other = write_jsonl(tmp_path / "q.jsonl", old()), write_jsonl(tmp_path / "other.jsonl", new())
    pipeline = FirstWord(3, at_question(4, lambda: replace(other, questions)))
    with pytest.raises(UntrustedInput, match=r"q\.jsonl: has changed while it was answered\n  run the same command"):
        answer_file(pipeline, questions, tmp_path / answers)
    assert not list(tmp_path.glob("a.*"))
    assert answer_file(FirstWord(), questions, tmp_path / "a.jsonl").resumed == 0
    assert words(tmp_path / "a.jsonl") == ["new"] * COUNT


def test_questions_that_change_while_they_are_answered_to_a_pipe_are_told(tmp_path: Path, capfdbinary: Any) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", old())
    pipeline = FirstWord(3, at_question(4, lambda: os.utime(questions, (0, 0))))
    with pytest.raises(UntrustedInput, match="has changed while it was answered"):
        answer_file(pipeline, questions, "-")


def test_answers_of_questions_that_changed_before_an_interruption_are_not_resumed(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", old())
    shutil.copy2(questions, tmp_path / "kept.jsonl")

    def change() -> None:
        write_jsonl(questions, new())
        interrupted()

    with pytest.raises(KeyboardInterrupt):
        answer_file(FirstWord(3, at_question(7, change)), questions, tmp_path / "a.jsonl")
    shutil.copy2(tmp_path / "kept.jsonl", questions)
    assert answer_file(FirstWord(), questions, tmp_path / "a.jsonl").resumed == 0
    assert words(tmp_path / "a.jsonl") == ["old"] * COUNT


def test_a_file_is_resumed_by_the_artifact_that_began_it(tmp_path: Path) -> None:
    questions, answers = write_jsonl(tmp_path / "q.jsonl", old()), tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_file(Model("a" * 64, ahead=3, answering=at_question(7, interrupted)), questions, answers)
    (saved,) = tmp_path.glob("a.jsonl.*")
    assert answer_file(Model("b" * 64), questions, answers).resumed == 0
    assert saved.exists()
    assert answer_file(Model("a" * 64), questions, answers).resumed == 6


def test_a_file_is_resumed_by_the_qabuild_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions, answers = write_jsonl(tmp_path / "q.jsonl", old()), tmp_path / "a.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_file(FirstWord(3, at_question(7, interrupted)), questions, answers)
    monkeypatch.setattr("qabuild.qa.bulk.file.VERSION", "99.0")
    assert answer_file(FirstWord(), questions, answers).resumed == 0


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files of questions, three in each."""
    for number in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", old()[3 * number : 3 * number + 3])
    return tmp_path / "in"


def test_parts_of_another_run_do_not_count_where_the_manifest_was_removed(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    answer_dataset(FirstWord(), folder, out, shard=(1, 2), parameters={"top_k": 2})
    (out / "_manifest.json").unlink()
    assert answer_dataset(FirstWord(), folder, out).resumed == 0
    assert words(*sorted(out.glob("part*"))) == ["old"] * COUNT


def test_a_folder_is_answered_by_one_artifact(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    answer_dataset(Model("a" * 64), folder, out, shard=(0, 2))
    with pytest.raises(BadTarget, match="holds the answers of another run: artifact aaaaaaaaaaaa, now bbbbbbbbbbbb"):
        answer_dataset(Model("b" * 64), folder, out)
    assert answer_dataset(Model("a" * 64), folder, out).resumed == 6


def test_a_folder_is_answered_by_one_version_of_qabuild(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_dataset(FirstWord(), folder, tmp_path / "out", shard=(0, 2))
    monkeypatch.setattr("qabuild.qa.bulk.run_manifest.VERSION", "99.0")
    with pytest.raises(BadTarget, match=f"holds the answers of another run: qabuild {VERSION}, now 99.0"):
        answer_dataset(FirstWord(), folder, tmp_path / "out")


@pytest.mark.parametrize("begin_another", [True, False])
def test_a_run_whose_folder_was_emptied_or_taken_by_another_leaves_no_part_there(
    tmp_path: Path, folder: Path, begin_another: bool
) -> None:
    out = tmp_path / "out"

    def take() -> None:
        for path in out.rglob("*"):
            if path.is_file() and not path.name.endswith(".partial"):
                path.unlink()
        if begin_another:
            answer_dataset(FirstWord(), folder, out, shard=(0, 2))

    earlier = FirstWord(answering=at_question(4, take))
    with pytest.raises(BadTarget, match=r"out: the answers of another run were begun there, or _manifest\.json was"):
        answer_dataset(earlier, folder, out, parameters={"top_k": 2})
    made = ["part-00000.jsonl", "part-00002.jsonl"] if begin_another else []
    assert sorted(path.name for path in out.glob("part*")) == made
    assert answer_dataset(FirstWord(), folder, out).resumed == 3 * len(made)
    assert words(*sorted(out.glob("part*"))) == ["old"] * COUNT


def test_an_upload_that_arrives_after_those_of_a_later_run_is_told(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaced answers of that run, so neither has all; who runs the same command again has."""
    filesystem = fsspec.filesystem("memory")
    put = MemoryFileSystem.put_file

    def late(self: Any, source: str, path: str, **options: Any) -> None:
        monkeypatch.setattr(MemoryFileSystem, "put_file", put)
        write_jsonl(sorted(folder.iterdir())[0], new()[1:])
        answer_dataset(FirstWord(), folder, "memory://late")
        put(self, source, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", late)
    try:
        with pytest.raises(UntrustedInput, match="has changed since the run began"):
            answer_dataset(FirstWord(), folder, "memory://late")
        reporter = RecordingReporter()
        answer_dataset(FirstWord(), folder, "memory://late", reporter=reporter)
        assert [message for message in reporter.messages if "is damaged, and made again" in message]
    finally:
        filesystem.rm("/late", recursive=True)


# --- questions at a plain HTTP server -------------------------------------------------------------------------------


class Undated(SimpleHTTPRequestHandler):
    """Tells neither a hash nor a time of a file."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)

    def log_message(self, *args: Any) -> None:
        pass


class Dated(Undated):
    def send_header(self, keyword: str, value: str) -> None:
        SimpleHTTPRequestHandler.send_header(self, keyword, value)


@contextmanager
def served(directory: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(directory)))
    Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def change(file: Path, content: list[dict[str, Any]]) -> None:
    write_jsonl(file, content)
    os.utime(file, (time.time() + 60,) * 2)  # servers tell seconds


@pytest.mark.parametrize("handler", [Dated, Undated])
def test_a_changed_file_at_a_server_without_etags_is_answered_again(
    tmp_path: Path, folder: Path, handler: type[SimpleHTTPRequestHandler]
) -> None:
    with served(folder, handler) as address:
        out = tmp_path / "out"
        assert answer_dataset(FirstWord(), f"{address}/0.jsonl", out).answered == 3
        assert answer_dataset(FirstWord(), f"{address}/0.jsonl", out).resumed == 3
        change(folder / "0.jsonl", new()[:3])
        assert answer_dataset(FirstWord(), f"{address}/0.jsonl", out).resumed == 0
        assert words(out / "part-00000.jsonl") == ["new"] * 3


@pytest.mark.parametrize("handler", [Dated, Undated])
def test_a_changed_file_at_a_server_without_etags_is_not_resumed(
    tmp_path: Path, handler: type[SimpleHTTPRequestHandler]
) -> None:
    (tmp_path / "web").mkdir()
    file, answers = tmp_path / "web" / "q.jsonl", tmp_path / "a.jsonl"
    write_jsonl(file, old())
    with served(file.parent, handler) as address:
        with pytest.raises(KeyboardInterrupt):
            answer_file(FirstWord(3, at_question(7, interrupted)), f"{address}/q.jsonl", answers)
        change(file, new())
        assert answer_file(FirstWord(), f"{address}/q.jsonl", answers).resumed == 0
    assert words(answers) == ["new"] * COUNT


@pytest.mark.parametrize("handler", [Dated, Undated])
@pytest.mark.parametrize("name", ["", "*.jsonl"])
def test_a_folder_of_a_server_is_answered(
    tmp_path: Path, folder: Path, name: str, handler: type[SimpleHTTPRequestHandler]
) -> None:
    with served(folder, handler) as address:
        assert answer_dataset(FirstWord(), f"{address}/{name}", tmp_path / "out").answered == COUNT
        assert answer_dataset(FirstWord(), f"{address}/{name}", tmp_path / "out").resumed == COUNT


def test_a_large_file_at_a_server_that_sends_whole_files_only_is_explained(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    text = "é" * 3_000_000
    write_jsonl(tmp_path / "web" / "q.jsonl", [{"id": n, "question": "Who?", "context": text} for n in range(2)])
    with served(tmp_path / "web", Dated) as address, pytest.raises(QABuildError) as refusal:
        answer_file(FirstWord(), f"{address}/q.jsonl", tmp_path / "a.jsonl")
    assert re.match(rf"{address}/q\.jsonl: .*range requests.*\n  download it", str(refusal.value))
    assert refusal.value.exit_status == 5


# --- answers that cannot be uploaded --------------------------------------------------------------------------------


def test_answers_that_cannot_be_uploaded_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", old())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "web").mkdir()
    with served(tmp_path / "web", Dated) as address, pytest.raises(QABuildError) as refusal:
        answer_file(FirstWord(), questions, f"{address}/a.jsonl")
    (kept,) = tmp_path.glob("qabuild-answers-*.jsonl")
    assert f"the answers are in {kept}" in str(refusal.value)
    assert [json.loads(line)["id"] for line in kept.read_text().splitlines()] == [row["id"] for row in old()]
    assert not list(tmp_path.glob("qabuild-[!a]*"))
