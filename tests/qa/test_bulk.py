"""Bulk answering of question files: formats, bad rows, pipes, and killed runs that resume."""

from __future__ import annotations

import csv
import gzip
import io
import json
import multiprocessing
import os
import random
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from bulk_files import FirstWord, RecordingReporter, kill_at, read_jsonl, read_table, rows, write_jsonl, write_table
from pyarrow import parquet

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa.bulk import Summary, answer_dataset, answer_file


def squad(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """A SQuAD document: two questions a paragraph, with the first one's context, and two paragraphs an article."""
    pairs = [examples[start : start + 2] for start in range(0, len(examples), 2)]
    paragraphs = [
        {"qas": [{"id": row["id"], "question": row["question"]} for row in pair], "context": pair[0]["context"]}
        for pair in pairs
    ]
    articles = [{"title": "[{", "paragraphs": paragraphs[start : start + 2]} for start in range(0, len(paragraphs), 2)]
    return {"version": "1.1", "data": articles, "more": {"data": [1]}}


# --- formats --------------------------------------------------------------------------------------------------------


def test_jsonl_in_jsonl_out(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "questions.jsonl", [*rows(11), "", {**rows(1)[0], "id": 7, "answers": []}])
    reporter = RecordingReporter()
    summary = answer_file(FirstWord(), questions, tmp_path / "answers.jsonl", reporter=reporter)
    assert summary == Summary(rows=12, answered=12, bad=0, resumed=0)
    answers = read_jsonl(tmp_path / "answers.jsonl")
    assert answers[3] == {"id": "q3", "answer": "été3", "score": 1.0, "start": 0, "end": 1}
    assert [answer["id"] for answer in answers] == [*(f"q{n}" for n in range(11)), 7]
    assert (reporter.messages, reporter.done, reporter.total) == ([], 12, 12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "questions.jsonl"]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("compressed", [False, True])
def test_squad_in_predictions_out(tmp_path: Path, indent: int | None, compressed: bool) -> None:
    questions = tmp_path / f"questions.json{'.gz' * compressed}"
    content = ("\ufeff" + json.dumps(squad(rows(11)), indent=indent)).encode()
    questions.write_bytes(gzip.compress(content) if compressed else content)
    summary = answer_file(FirstWord(), questions, tmp_path / "predictions.json")
    assert summary.answered == 11
    predictions = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))
    assert predictions == {f"q{n}": f"été{n - n % 2}" for n in range(11)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictions.json", questions.name]


def test_formats_are_set_by_arguments_where_names_have_no_extension(tmp_path: Path) -> None:
    (tmp_path / "q").write_text(json.dumps(squad(rows(3))))
    answer_file(FirstWord(), tmp_path / "q", tmp_path / "a", questions_format="squad", answers_format="predictions")
    assert json.loads((tmp_path / "a").read_text()) == {"q0": "été0", "q1": "été0", "q2": "été2"}


def test_top_k_writes_several_answers_a_question(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [*rows(1), {"id": "one", "question": "?", "context": "word"}])
    answer_file(FirstWord(), questions, tmp_path / "a.jsonl", parameters={"top_k": 2})
    first, second = read_jsonl(tmp_path / "a.jsonl")
    assert [answer["answer"] for answer in first["answers"]] == ["été0", "東京"]
    assert second == {"id": "one", "answers": [{"answer": "word", "score": 1.0, "start": 0, "end": 1}]}
    with pytest.raises(BadTarget, match="hold one answer"):
        answer_file(FirstWord(), questions, tmp_path / "a.json", parameters={"top_k": 2})


@pytest.mark.parametrize(("place", "problem"), [("nowhere/a.jsonl", "there is no folder"), (".", "is a folder")])
def test_an_unusable_answers_path_is_refused_before_answering(tmp_path: Path, place: str, problem: str) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", rows(1))
    with pytest.raises(BadTarget, match=problem):
        answer_file(FirstWord(), questions, tmp_path / place)


def test_answers_inside_an_artifact_are_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    questions = write_jsonl(tmp_path / "q.jsonl", rows(1))
    (tmp_path / "folder").mkdir()
    for place in ("a.jsonl", "folder/a.jsonl"):
        with pytest.raises(BadTarget, match=r"lies in the artifact .*, which is sealed"):
            answer_file(FirstWord(), questions, tmp_path / place)


@pytest.mark.parametrize("size", [1, 2, 7, 1 << 16])
def test_squad_documents_are_parsed_with_any_read_size(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qabuild.qa.data.json_reader.READ_CHARACTERS", size)
    numbers = {f"n{n}": 10**n for n in range(50)}
    document = {"data": [], **numbers, "n": -12.5e3, "null": None, "s": 'a]}"\\', **squad(rows(9))}
    (tmp_path / "q.json").write_text(json.dumps(document, ensure_ascii=False, indent=3), encoding="utf-8")
    assert answer_file(FirstWord(), tmp_path / "q.json", tmp_path / "a.jsonl").answered == 9
    assert [answer["id"] for answer in read_jsonl(tmp_path / "a.jsonl")] == [f"q{n}" for n in range(9)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "is empty"),
        ("[", "not JSON"),
        ("[] 1", "not JSON"),
        ('{"data": [{"paragraphs": []}', "not JSON"),
        ('{"data": [{"paragraphs": []}, {"par', "not JSON"),
        ('{"data" [] }', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"data": []} 7', "not JSON"),
        ("{7: []}", "not JSON"),
        (b'{"data": [{"title": "\xff"}]}', "UTF-8"),
        (gzip.compress(json.dumps(squad(rows(50))).encode())[:-20], "gzip"),
    ],
)
def test_an_invalid_squad_document_is_refused(tmp_path: Path, content: str | bytes, problem: str) -> None:
    (tmp_path / "q.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UntrustedInput, match=problem):
        answer_file(FirstWord(), tmp_path / "q.json", tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_a_damaged_gzip_file_a_missing_file_and_equal_paths_are_refused(tmp_path: Path) -> None:
    content = gzip.compress(json.dumps(rows(1)[0]).encode() * 100)
    (tmp_path / "q.jsonl.gz").write_bytes(content[:-9])
    with pytest.raises(UntrustedInput, match="gzip"):
        answer_file(FirstWord(), tmp_path / "q.jsonl.gz", tmp_path / "a.jsonl")
    with pytest.raises(BadTarget, match="no such file"):
        answer_file(FirstWord(), tmp_path / "none.jsonl", tmp_path / "a.jsonl")
    with pytest.raises(BadTarget, match="replace the questions"):
        answer_file(FirstWord(), tmp_path / "q.jsonl.gz", tmp_path / "q.jsonl.gz")


# --- bad rows -------------------------------------------------------------------------------------------------------

BAD: list[tuple[Any, str]] = [
    ("{", "line 2 is not JSON"),
    ("[" * 100_000, "line 2 is not JSON"),
    ("[1]", "line 2 is not an object"),
    ({"id": "x", "question": "?"}, "line 2 has no 'context'"),
    ({"id": "x", "question": None, "context": "c"}, "line 2.question is blank"),
    ({"id": "x", "question": 7, "context": "c"}, "line 2.question is not a string"),
    ({"id": True, "question": "?", "context": "c"}, "line 2.id is neither a string nor a number"),
    ({"id": [1], "question": "?", "context": "c"}, "line 2.id is neither a string nor a number"),
    ({"id": "x", "question": " ", "context": "c"}, "line 2.question is blank"),
    ({"id": "x", "question": "?", "context": "\ud800"}, "line 2 holds characters"),
    ({"id": "\ud800", "question": "?"}, "line 2 has no 'context'"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_a_bad_row_is_reported_with_its_line_and_the_run_continues(tmp_path: Path, bad: Any, problem: str) -> None:
    good = rows(8)
    questions = write_jsonl(tmp_path / "q.jsonl", [good[0], bad, *good[1:]])
    reporter = RecordingReporter()
    summary = answer_file(FirstWord(), questions, tmp_path / "a.jsonl", reporter=reporter)
    assert summary == Summary(rows=9, answered=8, bad=1, resumed=0)
    (message,) = reporter.messages
    assert message.startswith(f"{questions}: ")
    assert problem in message
    answers = read_jsonl(tmp_path / "a.jsonl")
    assert [answer["answer"] for answer in answers if "answer" in answer] == [f"été{n}" for n in range(8)]
    assert problem in answers[1]["error"]
    assert answers[1]["at"] == "line 2"
    answer_file(FirstWord(), questions, tmp_path / "a.json")
    assert len(json.loads((tmp_path / "a.json").read_text())) == 8


def test_malformed_parts_of_a_squad_document_are_reported_once_each(tmp_path: Path) -> None:
    document = squad(rows(8))
    document["data"][0]["paragraphs"][0]["qas"][1] = {"id": "q1"}
    del document["data"][0]["paragraphs"][1]["context"]
    document["data"][1]["paragraphs"][0] = {"context": "no questions"}
    document["data"].append({"title": "no paragraphs"})
    (tmp_path / "q.json").write_text(json.dumps(document))
    reporter = RecordingReporter()
    summary = answer_file(FirstWord(), tmp_path / "q.json", tmp_path / "a.json", reporter=reporter)
    assert json.loads((tmp_path / "a.json").read_text()) == {"q0": "été0", "q6": "été6", "q7": "été6"}
    assert (summary.answered, summary.bad) == (3, 6 - 1)
    (message,) = reporter.messages
    assert message.startswith(f"{tmp_path / 'q.json'}: 5 of 8 rows are bad: ")
    for place in ("data[0].paragraphs[0].qas[1]", "data[0].paragraphs[1].qas[0]", "data[0].paragraphs[1].qas[1]"):
        assert message.count(f"{place} has no") == 1
    answer_file(FirstWord(), tmp_path / "q.json", tmp_path / "a.jsonl")
    errors = [record["error"] for record in read_jsonl(tmp_path / "a.jsonl") if "error" in record]
    for place in ("data[1].paragraphs[0]", "data[2]"):
        assert sum(error.startswith(f"{place} has no") for error in errors) == 1


def test_a_row_on_which_the_pipeline_raises_becomes_a_bad_row(tmp_path: Path) -> None:
    def answering(question: str) -> None:
        if question in ("What is 7?", "What is 13?"):
            raise IndexError("index out of range in self")

    questions = write_jsonl(tmp_path / "q.jsonl", ["{", *rows(30)])
    reporter = RecordingReporter()
    summary = answer_file(FirstWord(answering=answering), questions, tmp_path / "a.jsonl", reporter=reporter)
    assert (summary.answered, summary.bad) == (28, 3)
    answers = read_jsonl(tmp_path / "a.jsonl")
    assert [answer["id"] for answer in answers] == [None, *(f"q{n}" for n in range(30))]
    assert "line 9 cannot be answered (IndexError: index out of range in self)" in answers[8]["error"]
    (message,) = reporter.messages
    assert message.startswith(f"{questions}: 3 of 31 rows are bad: line 1 is not JSON")


def test_a_pipeline_that_raises_on_every_row_ends_the_run(tmp_path: Path) -> None:
    calls = 0

    def answering(question: str) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("the device is gone")

    questions = write_jsonl(tmp_path / "q.jsonl", rows(30))
    with pytest.raises(RuntimeError, match="the device is gone"):
        answer_file(FirstWord(3, answering), questions, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    assert answer_file(FirstWord(), questions, tmp_path / "a.jsonl").resumed == 3


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_row_that_fails_alone_does_not_end_the_run(tmp_path: Path, at_once: int) -> None:
    def answering(question: str) -> None:
        if question == "What is 6?":
            raise RuntimeError("too long")

    questions = write_jsonl(tmp_path / "q.jsonl", rows(7))
    summary = answer_file(FirstWord(at_once, answering), questions, tmp_path / "a.jsonl")
    assert summary == Summary(rows=7, answered=6, bad=1, resumed=0)
    assert "too long" in read_jsonl(tmp_path / "a.jsonl")[6]["error"]


def test_a_permanent_device_failure_ends_the_run_without_bad_rows(tmp_path: Path) -> None:
    calls = 0

    def answering(question: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 8 or calls > 20:
            raise RuntimeError("the device is gone")

    questions = write_jsonl(tmp_path / "q.jsonl", rows(200))
    with pytest.raises(RuntimeError, match="the device is gone"):
        answer_file(FirstWord(100, answering), questions, tmp_path / "a.jsonl")
    calls = -1000
    assert answer_file(FirstWord(100, answering), questions, tmp_path / "a.jsonl").answered == 200


def test_a_nan_score_makes_a_bad_row(tmp_path: Path) -> None:
    def pipeline(stream: Iterator[Any]) -> Iterator[Any]:
        for number, _ in enumerate(stream):
            yield {"score": float("nan") if number else 0.5, "start": 0, "end": 1, "answer": "a"}

    summary = answer_file(pipeline, write_jsonl(tmp_path / "q.jsonl", rows(2)), tmp_path / "a.jsonl")
    assert (summary.answered, summary.bad) == (1, 1)
    assert "NaN" not in (tmp_path / "a.jsonl").read_text()


def test_predictions_hold_the_first_answer_of_a_duplicate_id(tmp_path: Path) -> None:
    first, second, third = rows(3)
    questions = write_jsonl(tmp_path / "q.jsonl", [first, {**second, "id": first["id"]}, third])
    reporter = RecordingReporter()
    summary = answer_file(FirstWord(), questions, tmp_path / "a.json", reporter=reporter)
    assert json.loads((tmp_path / "a.json").read_text()) == {"q0": "été0", "q2": "été2"}
    assert (summary.answered, summary.bad, len(reporter.messages)) == (2, 1, 1)
    assert "'q0'" in reporter.messages[0]


# --- pipes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def write(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content))))

    return write


WriteStdin = Callable[[bytes], None]


def test_from_pipe_to_pipe(stdin: WriteStdin, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    stdin("".join(json.dumps(row) + "\n" for row in [*rows(3), "bad"]).encode())
    summary = answer_file(FirstWord(), "-", "-")
    assert (summary.answered, summary.bad) == (3, 1)
    answers = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [answer.get("answer") for answer in answers] == ["été0", "été1", "été2", None]


def test_gzipped_squad_from_a_pipe_to_predictions_on_a_pipe(
    stdin: WriteStdin, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    stdin(gzip.compress(json.dumps(squad(rows(3))).encode()))
    answer_file(FirstWord(), "-", "-", questions_format="squad", answers_format="predictions")
    assert json.loads(capsysbinary.readouterr().out) == {"q0": "été0", "q1": "été0", "q2": "été2"}


def test_a_run_that_reads_a_pipe_is_not_resumed(stdin: WriteStdin, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.partial").write_text('{"id": "of another run"}\n')
    stdin(json.dumps(rows(1)[0]).encode())
    assert answer_file(FirstWord(), "-", tmp_path / "a.jsonl").resumed == 0
    assert [answer["id"] for answer in read_jsonl(tmp_path / "a.jsonl")] == ["q0"]


@pytest.mark.parametrize("problem", ["disk", "gzip"])
def test_a_read_error_of_a_pipe_ends_the_run(
    problem: str, stdin: WriteStdin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = "".join(json.dumps({**row, "pad": random.Random(n).random()}) + "\n" for n, row in enumerate(rows(9999)))
    if problem == "gzip":
        stdin(gzip.compress(content.encode())[:-9])
    else:
        stdin(b"")
        monkeypatch.setattr(sys.stdin, "buffer", io.BufferedReader(Failing(content.encode()[:20_000])))
    with pytest.raises(UntrustedInput if problem == "gzip" else OSError, match=problem):
        answer_file(FirstWord(), "-", tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


class Failing(io.BytesIO):
    """Bytes followed by a read error."""

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if not count:
            raise OSError(5, "the disk is gone")
        return count


def test_a_symbolic_link_is_followed_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("real.jsonl")
    answer_file(FirstWord(), write_jsonl(tmp_path / "q.jsonl", rows(3)), tmp_path / "a.jsonl")
    assert (tmp_path / "a.jsonl").is_symlink()
    assert len(read_jsonl(tmp_path / "real.jsonl")) == 3


def test_a_pipe_by_path_and_a_device_are_not_replaced_by_files(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", rows(3))
    assert answer_file(FirstWord(), questions, "/dev/null").answered == 3
    assert Path("/dev/null").is_char_device()
    reading, writing = os.pipe()
    os.write(writing, questions.read_bytes())
    os.close(writing)
    assert answer_file(FirstWord(), f"/dev/fd/{reading}", tmp_path / "a.jsonl").answered == 3
    os.close(reading)


def test_a_reader_that_closes_the_pipe_ends_the_run(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", rows(2000))
    reading, writing = os.pipe()
    os.close(reading)
    pipeline = FirstWord()
    with pytest.raises(QABuildError, match=r"^the reader of the answers closed its pipe after \d+ rows?$"):
        answer_file(pipeline, questions, f"/dev/fd/{writing}")
    assert len(pipeline.answered) < 2000
    os.close(writing)


# --- killed and resumed runs ----------------------------------------------------------------------------------------

COUNT = 23


def killed_run(*args: Any, answering: Callable[[str], None] | None = None, at_event: int | None = None) -> int | None:
    """Run `answer_file` in a process that may kill itself with SIGKILL, and return its exit code.

    `at_event` is the number of the file operation (open, truncate, rename, remove, lock) before which it does so.
    """

    def run() -> None:
        if at_event is not None:
            events = iter(range(1, 1000))

            def hook(event: str, details: tuple[Any, ...]) -> None:
                is_file_operation = event in ("open", "os.truncate", "os.rename", "os.remove", "fcntl.flock")
                if is_file_operation and next(events) == at_event:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
        answer_file(FirstWord(3, answering or (lambda question: None)), *args)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(params=["a.jsonl", "a.json"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, bytes]:
    """Paths of questions and answers, and the answers that an uninterrupted run writes."""
    questions = write_jsonl(tmp_path / "q.jsonl", [*rows(9), "{", *rows(COUNT)[9:]])
    answers = tmp_path / request.param
    answer_file(FirstWord(3), questions, answers)
    expected = answers.read_bytes()
    answers.unlink()
    return questions, answers, expected


def test_a_run_killed_before_any_answer_is_resumed_where_it_stopped(files: tuple[Path, Path, bytes]) -> None:
    questions, answers, expected = files
    for number in range(COUNT):
        assert killed_run(questions, answers, answering=kill_at(number)) == -signal.SIGKILL
        assert not answers.exists()
        pipeline = FirstWord(3)
        summary = answer_file(pipeline, questions, answers)
        assert answers.read_bytes() == expected
        assert summary.resumed >= number // 3 * 3 > summary.resumed - 5
        assert len(pipeline.answered) + summary.resumed - (summary.resumed > 9) == COUNT
        assert summary == Summary(rows=COUNT + 1, answered=COUNT, bad=1, resumed=summary.resumed)
        answers.unlink()


def test_a_run_killed_repeatedly_completes(files: tuple[Path, Path, bytes]) -> None:
    questions, answers, expected = files
    kills = [killed_run(questions, answers, answering=kill_at(number)) for number in range(2, COUNT, 4)]
    assert set(kills) == {-signal.SIGKILL}
    assert answer_file(FirstWord(), questions, answers).resumed > COUNT // 2
    assert answers.read_bytes() == expected


def test_a_run_killed_before_any_file_operation_is_resumed(files: tuple[Path, Path, bytes]) -> None:
    questions, answers, expected = files
    for number in range(1, 1000):
        code = killed_run(questions, answers, at_event=number)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert not answers.exists() or answers.read_bytes() == expected
        answer_file(FirstWord(), questions, answers)
        assert answers.read_bytes() == expected
        answers.unlink()
    assert number > 5
    assert sorted(path.name for path in answers.parent.iterdir()) == sorted([answers.name, questions.name])


def test_a_truncated_line_is_answered_again(files: tuple[Path, Path, bytes]) -> None:
    questions, answers, expected = files
    killed_run(questions, answers, answering=kill_at(COUNT - 1))
    (partial,) = answers.parent.glob("*.partial")
    content = partial.read_bytes()
    lengths = {*range(len(content) - 130, len(content) + 1), *random.Random(0).sample(range(len(content)), 60)}
    for length in sorted(lengths):
        partial.write_bytes(content[:length])
        summary = answer_file(FirstWord(), questions, answers)
        assert answers.read_bytes() == expected
        assert summary.resumed == content[:length].count(b"\n")


def test_only_a_run_with_the_same_inputs_is_resumed(tmp_path: Path) -> None:
    questions, answers = write_jsonl(tmp_path / "q.jsonl", rows(9)), tmp_path / "a.jsonl"

    def resumed(**named: Any) -> int:
        assert killed_run(questions, answers, answering=kill_at(7)) == -signal.SIGKILL
        try:
            return answer_file(FirstWord(), questions, answers, **named).resumed
        finally:
            for partial in tmp_path.glob("*.partial"):
                partial.unlink()

    assert resumed() == 6
    assert resumed(answered_by="another model") == 0
    assert resumed(parameters={"top_k": 3}) == 0
    assert killed_run(questions, answers, answering=kill_at(7)) == -signal.SIGKILL
    write_jsonl(questions, rows(10))
    assert answer_file(FirstWord(), questions, answers).resumed == 0


def test_an_interruption_reports_the_saved_rows_and_the_next_run_repeats_bad_rows(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", ["{", *rows(9)])
    answers, first = tmp_path / "a.jsonl", RecordingReporter()

    def interrupt(question: str) -> None:
        if question == "What is 7?":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_file(FirstWord(answering=interrupt), questions, answers, reporter=first)
    (partial,) = tmp_path.glob("*.partial")
    saved = len(read_jsonl(partial))
    assert saved > 1
    assert first.messages[-1] == f"saved {saved} rows in {partial}; the same command resumes after them"
    assert answer_file(FirstWord(), questions, answers, reporter=(second := RecordingReporter())).resumed == saved
    assert second.messages == [f"resuming after {saved} rows of an earlier run", first.messages[0]]
    assert "line 1 is not JSON" in first.messages[0]


def test_nothing_is_written_through_a_link_in_the_place_of_a_temporary_file(tmp_path: Path) -> None:
    questions, answers, victim = write_jsonl(tmp_path / "q.jsonl", rows(3)), tmp_path / "a.json", tmp_path / "victim"
    victim.write_text("precious")
    assert killed_run(questions, answers, answering=kill_at(2)) == -signal.SIGKILL
    (partial,) = tmp_path.glob("*.partial")
    partial.with_suffix(".whole").symlink_to(victim)
    answer_file(FirstWord(), questions, answers)
    assert set(json.loads(answers.read_text())) == {"q0", "q1", "q2"}
    partial.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        answer_file(FirstWord(), questions, answers)
    assert victim.read_text() == "precious"


def test_existing_answers_are_replaced_when_the_run_completes(tmp_path: Path) -> None:
    questions, answers = write_jsonl(tmp_path / "q.jsonl", rows(3)), tmp_path / "a.jsonl"
    answers.write_text("answers of another model\n")
    assert killed_run(questions, answers, answering=kill_at(2)) == -signal.SIGKILL
    assert answers.read_text() == "answers of another model\n"
    assert answer_file(FirstWord(), questions, answers).rows == 3
    assert len(read_jsonl(answers)) == 3


def test_concurrent_runs_on_the_same_answers_are_refused(tmp_path: Path) -> None:
    questions, answers = write_jsonl(tmp_path / "q.jsonl", rows(3)), tmp_path / "a.jsonl"

    def answering(question: str) -> None:
        if question == "What is 1?":
            with pytest.raises(QABuildError, match="another run"):
                answer_file(FirstWord(), questions, answers)

    assert answer_file(FirstWord(answering=answering), questions, answers).answered == 3


# --- memory and the real pipeline -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [False, True])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path, bad: bool) -> None:
    def peak(count: int) -> int:
        questions = write_jsonl(tmp_path / "q.jsonl", ["{"] * count if bad else rows(count))
        pipeline = FirstWord()
        pipeline.answered = SimpleNamespace(append=lambda question: None)  # type: ignore[assignment]
        tracemalloc.start()
        answer_file(pipeline, questions, tmp_path / "a.jsonl")
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    peak(100)
    assert peak(6000) < peak(2500) + 50_000


def test_a_squad_document_is_held_one_article_at_a_time(tmp_path: Path) -> None:
    text = "word " * 4000
    article = {"paragraphs": [{"context": text, "qas": [{"id": "q", "question": "?"}]}]}
    (tmp_path / "q.json").write_text(json.dumps({"data": [article] * 150}))
    tracemalloc.start()
    answer_file(FirstWord(1), tmp_path / "q.json", tmp_path / "a.jsonl")
    assert tracemalloc.get_traced_memory()[1] < 30 * len(text)
    tracemalloc.stop()


def test_the_real_pipeline_answers_a_file(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    folder = tiny_checkpoint("bert")
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    pipeline = QuestionAnsweringPipeline(model, AutoTokenizer.from_pretrained(folder))
    examples = rows(40)
    questions = write_jsonl(tmp_path / "q.jsonl", [*examples[:20], "{", *examples[20:]])
    summary = answer_file(pipeline, questions, tmp_path / "a.jsonl", parameters={"top_k": 2, "max_answer_len": 3})
    assert summary == Summary(rows=41, answered=40, bad=1, resumed=0)
    answered = [answer for answer in read_jsonl(tmp_path / "a.jsonl") if "answers" in answer]
    for example, answer in zip(examples, answered, strict=True):
        assert answer["id"] == example.pop("id")
        expected = pipeline(**example, top_k=2, max_answer_len=3)
        assert [candidate["answer"] for candidate in answer["answers"]] == [result["answer"] for result in expected]


def test_the_whole_squad_development_set_is_answered(tmp_path: Path, squad_dev: Path) -> None:
    reporter = RecordingReporter()
    summary = answer_file(FirstWord(1000), squad_dev, tmp_path / "a.json", reporter=reporter)
    assert summary == Summary(rows=10570, answered=10570, bad=0, resumed=0)
    assert len(json.loads((tmp_path / "a.json").read_text())) == 10570
    assert reporter.done == reporter.total == 10570


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("questions", ["q.csv", "q.tsv", "q.parquet", "q.jsonl"])
@pytest.mark.parametrize("answers", ["a.csv", "a.tsv", "a.parquet"])
def test_tables_in_and_out(tmp_path: Path, questions: str, answers: str) -> None:
    asked = [{**row, "context": f'"{row["id"]}", \n and more\t'} for row in rows(5)]
    source = tmp_path / questions
    (write_jsonl if source.suffix == ".jsonl" else write_table)(source, asked)
    summary = answer_file(FirstWord(), source, tmp_path / answers)
    assert summary == Summary(rows=5, answered=5, bad=0, resumed=0)
    answered = read_table(tmp_path / answers)
    assert [(row["id"], row["answer"], int(row["start"])) for row in answered] == [
        (f"q{number}", f'"q{number}",', 0) for number in range(5)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([answers, questions])


@pytest.mark.parametrize("answers", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("odd", ["\r", "\n", "\r\n", '"', "\t", ",", "\u2028"])
def test_a_cell_may_hold_what_separates_cells(tmp_path: Path, answers: str, odd: str) -> None:
    def pipeline(examples: Iterator[dict[str, str]]) -> Iterator[Any]:
        for example in examples:
            yield {"answer": example["context"], "score": 0.5, "start": 0, "end": 1}

    asked = [{**row, "id": f"x{odd}{n}", "context": f"Ann{odd}Vole{odd}"} for n, row in enumerate(rows(3))]
    answer_file(pipeline, write_jsonl(tmp_path / "q.jsonl", asked), tmp_path / answers)
    with open(tmp_path / answers, encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file, delimiter="\t" if answers.endswith("tsv") else ","))
    assert [(row["id"], row["answer"]) for row in read] == [(row["id"], row["context"]) for row in asked]
    assert b"\r\n" not in (tmp_path / answers).read_bytes() or odd == "\r\n"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["q.tsv", "q.csv"])
@pytest.mark.parametrize("closing", [3, 4, 5])
def test_a_quote_of_a_text_that_makes_one_cell_of_several_rows_is_refused(
    tmp_path: Path, name: str, ending: str, closing: int
) -> None:
    lines = ["id\tquestion\tcontext", "1\tWho built it?\tAnn."]
    lines += [f"{number}\tWho came?\tBob came." for number in range(2, 6)]
    lines[2] = '2\tWho built the mill?\t"Ann Vole built the mill,'
    lines[closing] = f'{closing}\tWho left?\tand Ida left."'
    (tmp_path / name).write_bytes(ending.join([*lines, ""]).encode())
    with pytest.raises(UntrustedInput, match=f"line 3: a quote begins a cell that ends in line {closing + 1}, with"):
        answer_file(FirstWord(), tmp_path / name, tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.parquet"])
@pytest.mark.parametrize("into", ["a.jsonl", "out/"])
def test_two_columns_of_the_name_that_is_read_are_refused(tmp_path: Path, name: str, into: str) -> None:
    names = ["id", "question", "text", "text"]
    if name.endswith("parquet"):
        table = pyarrow.Table.from_arrays([pyarrow.array([value]) for value in ("1", "Who?", "Ann", "Bo")], names)
        parquet.write_table(table, tmp_path / name)
    else:
        delimiter = "\t" if name.endswith("tsv") else ","
        (tmp_path / name).write_text(f"{delimiter.join(names)}\n{delimiter.join(['1', 'Who?', 'Ann', 'Bo'])}\n")
    answer: Any = answer_dataset if into.endswith("/") else answer_file
    with pytest.raises(UntrustedInput, match=f"{name}: has several columns 'text'\n  give each a name of its own"):
        answer(FirstWord(), tmp_path / name, tmp_path / into, columns={"context": "text"})


@pytest.mark.parametrize("name", ["q.csv", "q.parquet"])
@pytest.mark.parametrize("into", ["a.jsonl", "out/"])
def test_two_columns_of_a_name_that_is_not_read_are_ignored(tmp_path: Path, name: str, into: str) -> None:
    names = ["id", "question", "context", "note", "note"]
    values = ("1", "Who?", "Ann", "a", "b")
    if name.endswith("parquet"):
        parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([v]) for v in values], names), tmp_path / name)
    else:
        (tmp_path / name).write_text(f"{','.join(names)}\n{','.join(values)}\n")
    answer: Any = answer_dataset if into.endswith("/") else answer_file
    assert answer(FirstWord(), tmp_path / name, tmp_path / into).answered == 1


@pytest.mark.parametrize("key", ["data", "paragraphs"])
def test_a_question_with_a_list_of_its_own_is_answered(tmp_path: Path, key: str) -> None:
    asked = [{**row, key: []} for row in rows(2)]
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, asked)))
    assert answer_file(FirstWord(), tmp_path / "q.json", tmp_path / "a.jsonl").answered == 2


@pytest.mark.parametrize("answers", ["a.csv", "a.parquet"])
def test_bad_rows_and_several_answers_are_rows_of_a_table(tmp_path: Path, answers: str) -> None:
    good, other = rows(2)
    questions = write_jsonl(tmp_path / "q.jsonl", [{**good, "context": "one two"}, {"id": "\ud800"}, other])
    summary = answer_file(FirstWord(), questions, tmp_path / answers, parameters={"top_k": 2})
    assert (summary.answered, summary.bad) == (2, 1)
    table = read_table(tmp_path / answers)
    assert [row.get("answer") for row in table] == ["one", "two", None, "été1", "東京"]
    assert table[2]["error"] == "line 2 has no 'question', only id"


@pytest.mark.parametrize("answers", ["a.csv", "a.parquet", "a.jsonl"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_truncated_questions_are_marked_and_counted(tmp_path: Path, answers: str, top_k: int) -> None:
    def pipeline(examples: Iterator[dict[str, str]], **parameters: Any) -> Iterator[Any]:
        for number, result in enumerate(FirstWord()(examples, **parameters)):
            found = result if isinstance(result, list) else [result]
            yield [{**one, "question_truncated": True} if number else one for one in found]

    questions = write_jsonl(tmp_path / "q.jsonl", rows(3))
    summary = answer_file(pipeline, questions, tmp_path / answers, parameters={"top_k": top_k})
    assert summary == Summary(rows=3, answered=3, bad=0, resumed=0, truncated=2)
    if answers == "a.jsonl":
        table = [one for row in read_jsonl(tmp_path / answers) for one in row["answers"]]
    else:
        table = read_table(tmp_path / answers)
    marked = [str(row.get("question_truncated", False)) for row in table]
    assert marked == sorted(marked)
    assert (marked[0], marked[-1]) == ("False", "True")


@pytest.mark.parametrize(("ids", "kind"), [([1, 2], int), ([1, "b"], str), ([1, 2**63], str)])
def test_integer_ids_stay_integers_where_all_are(tmp_path: Path, ids: list[Any], kind: type) -> None:
    asked = [{**row, "id": name} for row, name in zip(rows(2), ids, strict=True)]
    answer_file(FirstWord(), write_jsonl(tmp_path / "q.jsonl", asked), tmp_path / "a.parquet")
    answer_file(FirstWord(), tmp_path / "q.jsonl", tmp_path / "a.jsonl")
    assert [row["id"] for row in read_table(tmp_path / "a.parquet")] == [kind(name) for name in ids]
    assert [row["id"] for row in read_jsonl(tmp_path / "a.jsonl")] == ids


def test_rows_without_ids_get_them_from_their_texts(tmp_path: Path) -> None:
    asked = [{"question": row["question"], "context": row["context"]} for row in rows(3)]
    answer_file(FirstWord(), write_jsonl(tmp_path / "q.jsonl", asked), tmp_path / "a.jsonl")
    answer_file(FirstWord(), write_jsonl(tmp_path / "r.jsonl", asked[::-1]), tmp_path / "b.jsonl")
    first, second = ([row["id"] for row in read_jsonl(tmp_path / name)] for name in ("a.jsonl", "b.jsonl"))
    assert first == second[::-1]
    assert len(set(first)) == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.json"])
def test_questions_in_any_marked_encoding_are_answered(tmp_path: Path, name: str, encoding: str) -> None:
    source = tmp_path / name
    if source.suffix == ".csv":
        write_table(source, rows(3))
    elif source.suffix == ".json":
        source.write_text(json.dumps(rows(3), ensure_ascii=False), encoding="utf-8")
    else:
        write_jsonl(source, rows(3))
    source.write_bytes(source.read_text(encoding="utf-8").replace("\n", "\r\n").encode(encoding))
    answer_file(FirstWord(), source, tmp_path / "a.jsonl")
    assert [row["answer"] for row in read_jsonl(tmp_path / "a.jsonl")] == ["été0", "été1", "été2"]


def test_questions_in_another_encoding_are_refused_before_any_is_answered(tmp_path: Path) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(20)).replace("東京 😀", "")
    (tmp_path / "q.jsonl").write_bytes(content.encode("cp1252"))
    with pytest.raises(UntrustedInput, match=r"q\.jsonl: not UTF-8 text, it looks like Windows-1252: byte 0xE9 after"):
        answer_file(FirstWord(), tmp_path / "q.jsonl", tmp_path / "a.jsonl")


def test_twenty_bad_rows_are_one_message_with_the_first_ones(tmp_path: Path) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", [*rows(5), *["{"] * 20])
    answer_file(FirstWord(), questions, tmp_path / "a.jsonl", reporter=(reporter := RecordingReporter()))
    (message,) = reporter.messages
    assert message.startswith(f"{questions}: 20 of 25 rows are bad: line 6 is not JSON")
    assert (message.count("is not JSON"), message.endswith("; ...")) == (3, True)


def test_columns_are_read_by_name(tmp_path: Path) -> None:
    questions = write_table(tmp_path / "q.csv", [{"nr": 7, "frage": "Wer?", "text": "Ada Crane"}])
    columns = {"id": "nr", "question": "frage", "context": "text"}
    answer_file(FirstWord(), questions, tmp_path / "a.json", columns=columns)
    assert json.loads((tmp_path / "a.json").read_text()) == {"7": "Ada"}
    with pytest.raises(BadTarget, match="write it the other way round: question=frage"):
        answer_file(FirstWord(), questions, tmp_path / "a.json", columns={"frage": "question"})


@pytest.mark.parametrize(
    ("questions", "answers", "problem"),
    [
        ("q.jsonl", "a.xlsx", r"a\.xlsx: its ending names no format of answers\n.*\.csv, \.tsv, \.parquet"),
        ("q.jsonl", "a", "names no format of answers"),
        ("q.jsonl", "a.csv.gz", "names no format of answers"),
        ("q.xlsx", "a.csv", r"q\.xlsx: its ending names no format of questions"),
        ("q.jsonl", os.devnull, ""),
    ],
)
def test_an_unknown_ending_is_refused_with_the_known_ones(
    tmp_path: Path, questions: str, answers: str, problem: str
) -> None:
    write_jsonl(tmp_path / questions, rows(1))
    if problem:
        with pytest.raises(BadTarget, match=problem):
            answer_file(FirstWord(), tmp_path / questions, tmp_path / answers)
    else:
        assert answer_file(FirstWord(), tmp_path / questions, answers).answered == 1


def test_a_table_is_written_to_a_pipe_and_parquet_is_not(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", rows(1))
    answer_file(FirstWord(), questions, "-", answers_format="csv")
    header, row = capsysbinary.readouterr().out.decode().splitlines()
    assert (header, row) == ("id,answer,score,start,end,question_truncated,error", "q0,été0,1.0,0,1,False,")
    with pytest.raises(BadTarget, match="Parquet is not written to a pipe"):
        answer_file(FirstWord(), questions, "-", answers_format="parquet")


@pytest.mark.parametrize("answers", ["a.csv", "a.parquet"])
def test_a_table_of_answers_is_resumed(tmp_path: Path, answers: str) -> None:
    questions = write_jsonl(tmp_path / "q.jsonl", rows(9))
    answer_file(FirstWord(3), questions, tmp_path / answers)
    expected = (tmp_path / answers).read_bytes()
    assert killed_run(questions, tmp_path / answers, answering=kill_at(7)) == -signal.SIGKILL
    summary = answer_file(FirstWord(3), questions, tmp_path / answers)
    assert summary == Summary(rows=9, answered=9, bad=0, resumed=6)
    assert (tmp_path / answers).read_bytes() == expected
