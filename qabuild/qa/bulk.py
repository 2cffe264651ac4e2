"""Bulk answering: a file of questions in, a file of answers out, resumed after an interruption.

Questions are JSON Lines (one object with id, question and context a line) or a SQuAD document (v1.1 or v2.0), plain
or gzip. Answers are JSON Lines, one line a row in the questions' order, or the `{id: text}` of SQuAD's evaluation
scripts. Either side can be a pipe, written "-".

Answers are collected in `ANSWERS.<digest>.partial`. The digest covers the questions' bytes, the parameters and the
model, so that a killed run resumes where it stopped, and only a run with the same inputs does. The complete file is
renamed to ANSWERS.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from qabuild.errors import BadTarget, QABuildError
from qabuild.qa.question_stream import PIPE, QuestionsFormat, Row, bad_row, is_pipe, opened, read_rows
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.sealed import require_outside
from qabuild.system.terminal import visible

AnswersFormat = Literal["jsonl", "predictions"]
Record = dict[str, Any]
"""A line of answers: `id` and `answer`, `score`, `start`, `end`, and `question_truncated`, true, where it was; or `id`,
`at` and `error` for a bad row."""

PROGRESS_SECONDS = 0.1
MAX_CONSECUTIVE_FAILURES = 50
"""Consecutive failing rows after which the run ends; one paragraph has fewer questions."""
MAX_PENDING_BAD_ROWS = 1000
"""Bad rows held back until the rows before them are answered."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a file's rows."""

    rows: int
    answered: int
    bad: int
    """Rows without an answer, each reported."""
    resumed: int
    """Rows, answered or bad, that an earlier run had processed."""
    truncated: int = 0
    """Rows whose question has more tokens than are read; their answers have `question_truncated`."""


def answer_file(
    pipeline: Callable[..., Any],
    questions: str | os.PathLike[str],
    answers: str | os.PathLike[str],
    *,
    questions_format: QuestionsFormat | None = None,
    answers_format: AnswersFormat | None = None,
    answered_by: str = "",
    parameters: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Summary:
    """Answer the questions of one file into another.

    `pipeline` is a QuestionAnsweringPipeline, called with `parameters`; with a `top_k` above 1 a line of answers has
    a list `answers`. By default the names decide the formats: questions are SQuAD's in `.json` and `.json.gz`,
    answers are predictions in `.json`; all else is JSON Lines. `answered_by` identifies the model, best by a digest,
    so that only a run with the same model is resumed. Runs that read a pipe are not resumed.

    A bad row is reported with its place and becomes a line with `error` (predictions have no entry for it); the run
    continues. Memory does not grow with the number of rows, except for SQuAD's layouts: one article of the questions
    and all predictions are held in memory.

    Raises BadTarget for a missing file, UntrustedInput if the question file cannot be parsed, QABuildError if another
    run is writing the same answers, and the pipeline's exception if it fails on every row.
    """
    source, target = str(questions), str(answers)
    run = _Run(
        pipeline=pipeline,
        source=source,
        questions_format=questions_format or ("squad" if source.removesuffix(".gz").endswith(".json") else "jsonl"),
        parameters=dict(parameters or {}),
        reporter=reporter,
    )
    form = answers_format or ("predictions" if target.endswith(".json") else "jsonl")
    if form == "predictions" and run.parameters.get("top_k", 1) > 1:
        raise BadTarget(f"{target}: SQuAD's predictions hold one answer each", "name a .jsonl file for several")
    require_place(source, target)
    if target == PIPE:
        return run.to_stream(sys.stdout.buffer, form)
    if is_pipe(target):
        with open(target, "wb") as stream:
            return run.to_stream(stream, form)
    return run.to_file(Path(target).resolve(), form, answered_by)


@dataclass(frozen=True, kw_only=True)
class _Run:
    pipeline: Callable[..., Any]
    source: str
    questions_format: QuestionsFormat
    parameters: Mapping[str, Any]
    reporter: Reporter

    def to_stream(self, stream: IO[bytes], form: AnswersFormat) -> Summary:
        tally = _Tally()
        records = self._records(0, tally)
        try:
            if form == "predictions":
                _write_predictions(stream, records, tally, self.reporter)
            else:
                for record in records:
                    line = _line(record)
                    stream.write(visible(line.decode()).encode() if stream.isatty() else line)
                    stream.flush()
        except BrokenPipeError:  # the reader closed the pipe; keep the interpreter from flushing to it again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return tally.summary()

    def to_file(self, path: Path, form: AnswersFormat, answered_by: str) -> Summary:
        tally = _Tally()
        with _partial(path, self._digest(answered_by)) as (partial, partial_path):
            for record in _complete_records(partial):
                self._count(tally, record, resumed=True)
            if tally.rows:
                self.reporter.say(f"resuming after {tally.rows} rows of an earlier run")
            try:
                for record in self._records(tally.rows, tally):
                    partial.write(_line(record))
                    partial.flush()
            except KeyboardInterrupt:
                if not is_pipe(self.source):
                    self.reporter.say(
                        f"{tally.rows} rows are saved in {partial_path}; the same command resumes after them"
                    )
                raise
            if form == "predictions":
                partial.seek(0)
                complete = partial_path.with_suffix(".whole")
                complete.unlink(missing_ok=True)
                with open(complete, "xb") as file:
                    _write_predictions(file, map(json.loads, partial), tally, self.reporter)
                    _sync(file)
                os.replace(complete, path)
                partial_path.unlink()
            else:
                _sync(partial)
                os.replace(partial_path, path)
        return tally.summary()

    def _records(self, done: int, tally: _Tally) -> Iterator[Record]:
        """The records of all rows after the first `done`, counted and reported."""
        total = 0 if is_pipe(self.source) else sum(1 for _ in read_rows(self.source, self.questions_format))
        rows = islice(read_rows(self.source, self.questions_format), done, None)
        with self.reporter.progress("answering", total) as advance:
            reported, reported_at = 0, 0.0
            for count, (row, result) in enumerate(_answered(self.pipeline, rows, self.parameters), done + 1):
                record = _record(row, result, self.parameters)
                self._count(tally, record)
                if time.monotonic() - reported_at > PROGRESS_SECONDS:
                    advance(count - reported)
                    reported, reported_at = count, time.monotonic()
                yield record
            advance(tally.rows - reported)

    def _count(self, tally: _Tally, record: Record, resumed: bool = False) -> None:
        tally.add(record, resumed)
        if "error" in record:
            self.reporter.say(f"{self.source}: {record['error']}")

    def _digest(self, answered_by: str) -> str | None:
        """Digest of what determines the answers; None for a pipe, which cannot be resumed."""
        if is_pipe(self.source):
            return None
        with opened(self.source, unpack=False) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        inputs = [content, self.questions_format, answered_by, self.parameters]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=repr).encode()).hexdigest()[:12]


@dataclass
class _Tally:
    """Counts of the rows processed so far."""

    rows: int = 0
    bad: int = 0
    resumed: int = 0
    truncated: int = 0

    def add(self, record: Record, resumed: bool = False) -> None:
        self.rows += 1
        self.bad += "error" in record
        self.resumed += resumed
        self.truncated += any("question_truncated" in answer for answer in record.get("answers", [record]))

    def summary(self) -> Summary:
        return Summary(answered=self.rows - self.bad, **vars(self))


# --- answering ------------------------------------------------------------------------------------------------------


def _answered(
    pipeline: Callable[..., Any], rows: Iterator[Row], parameters: Mapping[str, Any]
) -> Iterator[tuple[Row, Any]]:
    """Every row with its result, in order; bad rows with None. Raises what `rows` raises.

    The pipeline answers a stream. If it raises, the rows that it had read are answered one by one to find the failing
    row, and a new stream continues with the rest.
    """
    pending: deque[Row] = deque()
    more, unreadable = True, False

    def examples() -> Iterator[dict[str, str]]:
        nonlocal more, unreadable
        bad = 0
        try:
            for row in rows:
                pending.append(row)
                if row.problem is None:
                    yield {"question": row.question, "context": row.context}
                elif (bad := bad + 1) == MAX_PENDING_BAD_ROWS:
                    return
        except Exception:
            unreadable = True
            raise
        more = False

    while more:
        try:
            for result in pipeline(examples(), **parameters):
                while pending[0].problem is not None:
                    yield pending.popleft(), None
                yield pending.popleft(), result
        except Exception as error:
            if unreadable:
                raise
            yield from _one_by_one(pipeline, pending, parameters, error)
        else:
            yield from ((row, None) for row in pending)
        pending.clear()


def _one_by_one(
    pipeline: Callable[..., Any], rows: Iterable[Row], parameters: Mapping[str, Any], error: Exception
) -> list[tuple[Row, Any]]:
    """Rows with their results. Raises `error` if all rows or many consecutive ones fail: no single row causes that."""
    answered = []
    failures = 0
    for row in rows:
        result = None
        if row.problem is None:
            try:
                result = pipeline(question=row.question, context=row.context, **parameters)
                failures = 0
            except Exception as problem:
                row = bad_row(row.at, f"{row.at} cannot be answered ({type(problem).__name__}: {problem})", row.id)
                failures += 1
        answered.append((row, result))
        if failures == MAX_CONSECUTIVE_FAILURES:
            raise error
    if all(result is None for _, result in answered):
        raise error
    return answered


def _record(row: Row, result: Any, parameters: Mapping[str, Any]) -> Record:
    if row.problem is not None:
        return {"id": row.id, "at": row.at, "error": row.problem}
    answers = [_ordered(answer) for answer in (result if isinstance(result, list) else [result])]
    if not all(math.isfinite(answer["score"]) for answer in answers):
        return {"id": row.id, "at": row.at, "error": f"{row.at}: the model's scores are not finite"}
    several = isinstance(result, list) or parameters.get("top_k", 1) > 1
    return {"id": row.id, "answers": answers} if several else {"id": row.id, **answers[0]}


def _ordered(answer: Mapping[str, Any]) -> Record:
    return {name: answer[name] for name in ("answer", "score", "start", "end", "question_truncated") if name in answer}


# --- writing --------------------------------------------------------------------------------------------------------


def require_place(source: str, target: str) -> None:
    """Raise BadTarget if the answers to the questions in `source` cannot be written to the file `target`."""
    if is_pipe(target):
        if os.path.isdir(target):
            raise BadTarget(f"{target}: is a folder", "name a file in it for the answers")
        return
    require_outside(Path(target))
    folder = Path(target).absolute().parent
    if not folder.is_dir():
        raise BadTarget(f"{target}: there is no folder {folder}", "create it, or name another file for the answers")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadTarget(f"{target}: the folder {folder} is not writable", "name a file in another folder")
    if os.path.exists(target) and source != PIPE and os.path.exists(source) and os.path.samefile(source, target):
        raise BadTarget(f"{target}: the answers would replace the questions", "name another file for the answers")


def _line(record: Record) -> bytes:
    return (
        json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    )  # lone surrogates as JSON escapes


@contextmanager
def _partial(path: Path, digest: str | None) -> Iterator[tuple[IO[bytes], Path]]:
    """The locked partial file and its path. Without a digest it is truncated."""
    import fcntl

    partial_path = path.with_name(f"{path.name}.{digest}.partial" if digest else f"{path.name}.partial")
    with open(partial_path, "a+b", opener=_open_no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise QABuildError(
                f"{path}: another run is answering these questions", "wait for it, or name another file for the answers"
            ) from None
        if digest is None:
            file.truncate(0)
        yield file, partial_path


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _complete_records(partial: IO[bytes]) -> Iterator[Record]:
    """The complete records of an earlier run; the file is truncated after the last one."""
    end = 0
    partial.seek(0)
    for line in partial:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        end += len(line)
        yield record
    partial.truncate(end)


def _write_predictions(file: IO[bytes], records: Iterable[Record], tally: _Tally, reporter: Reporter) -> None:
    """Write SQuAD's predictions, a text for each id; of rows that share an id the first counts."""
    texts: dict[str, str] = {}
    for record in records:
        if "error" in record:
            continue
        name = str(record["id"])
        if name in texts:
            tally.bad += 1
            reporter.say(f"duplicate id {name!r}: the predictions hold the first answer")
        else:
            texts[name] = (record["answers"][0] if "answers" in record else record)["answer"]
    file.write(json.dumps(texts, ensure_ascii=False, indent=4).encode() + b"\n")


def _sync(file: IO[bytes]) -> None:
    """Flush the file to the disk, before it is renamed."""
    file.flush()
    os.fsync(file.fileno())
