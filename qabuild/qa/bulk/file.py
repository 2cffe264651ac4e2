"""One file of questions in, one file of answers out, resumed after an interruption.

Questions are what `qabuild.qa.data.records` reads, answers what `answer_formats` writes, in the questions' order.
Either side can be a pipe, written "-".

Answers are collected in `ANSWERS.<digest>.partial`. The digest covers the questions' bytes, the parameters and the
model, so that a killed run resumes where it stopped, and only a run with the same inputs does. The complete file is
renamed to ANSWERS, after it is converted where that is no JSON Lines. Answers at a URL are collected in a temporary
file and uploaded; those of a killed run are lost. Questions that change while they are read are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, get_args

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa import answer_formats
from qabuild.qa.answer_formats import AnswersFormat, Record, line_of
from qabuild.qa.bulk.answers import answer_rows
from qabuild.qa.bulk.tally import Summary, Tally, counted
from qabuild.qa.data import records
from qabuild.qa.data.dataset_ref import Columns, columns_of
from qabuild.qa.data.question_files import single
from qabuild.qa.data.records import QuestionsFormat
from qabuild.qa.data.rows import SHOWN_PROBLEMS, Row, row_of
from qabuild.qa.data.source import PIPE, is_pipe, opened
from qabuild.system import arguments, files, storage
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.sealed import require_outside
from qabuild.system.terminal import visible
from qabuild.system.units import count_of
from qabuild.system.version import VERSION


def answer_file(
    pipeline: Callable[..., Any],
    questions: str | os.PathLike[str],
    answers: str | os.PathLike[str],
    *,
    questions_format: QuestionsFormat | None = None,
    answers_format: AnswersFormat | None = None,
    columns: Mapping[str, str] | None = None,
    answered_by: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Summary:
    """Answer the questions of one file into another; `answer_dataset` answers any number of files into a folder.

    `pipeline` is a QuestionAnsweringPipeline, called with `parameters`; with a `top_k` above 1 a line of answers has
    a list `answers`. By default the names' endings decide the formats: questions are JSON in SQuAD's layout or flat
    (`.json`), JSON Lines (`.jsonl`), `.csv`, `.tsv` or `.parquet`, answers the same, but SQuAD's predictions in
    `.json`; pipes hold JSON Lines. `columns` maps id, question and context to the columns or keys that hold them under
    other names. `answered_by` identifies the model, so that only a run with the same one is resumed; by default it is
    the digest of the artifact that `qabuild.load` loaded. Runs that read a pipe, or write to a URL, are not resumed.
    URLs are what fsspec opens, as s3://bucket/q.csv.

    A bad row becomes a line with `error` (predictions have no entry for it), and the run continues; the first ones are
    reported at its end. Memory does not grow with the number of rows, except for a document of JSON and predictions:
    one article of the questions and all predictions are held in memory.

    Raises BadTarget for a missing file or an unknown format, UntrustedInput if the question file cannot be parsed or
    changes meanwhile, QABuildError if another run is writing the same answers or the reader of a pipe leaves, and the
    pipeline's exception if it fails on every row.
    """
    source = single(arguments.path("questions", questions))
    target = storage.plain(arguments.path("answers", answers))
    for name, given, known in (
        ("questions_format", questions_format, get_args(QuestionsFormat)),
        ("answers_format", answers_format, get_args(AnswersFormat)),
    ):
        if given is not None:
            arguments.word(name, given, known)
    run = _Run(
        pipeline=arguments.pipeline(pipeline),
        source=source,
        state=None if is_pipe(source) else storage.locate(source).state(),
        questions_format=questions_format or records.format_of(source),
        columns=columns_of(columns),
        parameters=arguments.parameters(parameters),
        reporter=reporter,
    )
    require_place(source, target)
    form = answers_format or _answers_format(target)
    if form == "predictions" and run.parameters.get("top_k", 1) > 1:
        raise BadTarget(f"{target}: SQuAD's predictions hold one answer each", "name a .jsonl file for several")
    if form == "parquet" and is_pipe(target):
        raise BadTarget(f"{target}: Parquet is not written to a pipe", "name a .parquet file")
    if target == PIPE:
        return run.to_stream(sys.stdout.buffer, form)
    if is_pipe(target):
        with open(target, "wb") as stream:
            return run.to_stream(stream, form)
    if storage.is_url(target):
        with tempfile.TemporaryDirectory(prefix="qabuild-") as folder:
            path = Path(folder) / "answers"
            summary = run.to_file(path, form, None)
            _upload(path, target)
        return summary
    return run.to_file(Path(target).resolve(), form, run.digest(identity(pipeline, answered_by)))


def identity(pipeline: Any, answered_by: str | None) -> str:
    """What identifies the model of a run: `answered_by` or else, where `qabuild.load` made the pipeline, its digest."""
    return str(getattr(pipeline, "digest", None) or "") if answered_by is None else answered_by


def _upload(answers: Path, target: str) -> None:
    """Upload the answers; where that fails, keep them in a local file that the error names."""
    try:
        storage.locate(target).put(answers)
    except QABuildError as error:
        descriptor, kept = tempfile.mkstemp(prefix="qabuild-answers-", suffix=Path(target).suffix)
        os.close(descriptor)
        shutil.move(answers, kept)
        error.hint = f"{error.hint}; the answers are in {kept}" if error.hint else f"the answers are in {kept}"
        raise


def _answers_format(target: str) -> AnswersFormat:
    return "jsonl" if is_pipe(target) else answer_formats.format_of(target)


@dataclass(frozen=True, kw_only=True)
class _Run:
    pipeline: Callable[..., Any]
    source: str
    state: storage.FileState | None
    """Of the source when the run began; None for a pipe."""
    questions_format: QuestionsFormat
    columns: Columns
    parameters: Mapping[str, Any]
    reporter: Reporter

    def to_stream(self, stream: IO[bytes], form: AnswersFormat) -> Summary:
        tally = Tally()
        try:
            with self._reported(tally):
                self._write(stream, self._records(0, tally), form, tally)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes to it again at exit
            raise QABuildError(
                f"the reader of the answers closed its pipe after {count_of(tally.rows, 'row')}"
            ) from None
        return tally.summary()

    def to_file(self, path: Path, form: AnswersFormat, digest: str | None) -> Summary:
        """Without a `digest`, the run is not resumed."""
        tally = Tally()
        with _partial(path, digest) as (partial, partial_path):
            for record in _complete_records(partial):
                tally.add(record, resumed=True)
            if tally.rows:
                self.reporter.say(f"resuming after {count_of(tally.rows, 'row')} of an earlier run")
            try:
                with self._reported(tally):
                    for record in self._records(tally.rows, tally):
                        partial.write(line_of(record))
                        partial.flush()
            except UntrustedInput:  # what is read once the file is repaired is another file
                partial_path.unlink()
                raise
            except KeyboardInterrupt:
                if digest and not storage.is_url(self.source) and self._has_changed():  # a store may not answer
                    partial_path.unlink()
                elif digest:
                    self.reporter.say(
                        f"saved {count_of(tally.rows, 'row')} in {partial_path}; the same command resumes after them"
                    )
                raise
            if form == "jsonl":
                files.sync(partial)
                os.replace(partial_path, path)
            else:
                complete = partial_path.with_suffix(".whole")
                complete.unlink(missing_ok=True)
                with open(complete, "xb") as file:
                    self._convert(partial, file, form, tally)
                    files.sync(file)
                os.replace(complete, path)
                partial_path.unlink()
        return tally.summary()

    def _convert(self, partial: IO[bytes], file: IO[bytes], form: AnswersFormat, tally: Tally) -> None:
        """Write the records of the partial file in another format."""
        partial.seek(0)
        if form == "parquet":
            whole_ids = answer_formats.has_whole_ids(map(json.loads, partial))
            partial.seek(0)
            answer_formats.write_parquet(file, map(json.loads, partial), whole_ids)
        else:
            self._write(file, map(json.loads, partial), form, tally)

    def _write(self, file: IO[bytes], answers: Iterable[Record], form: AnswersFormat, tally: Tally) -> None:
        if form == "predictions":
            content, ambiguous = answer_formats.predictions(answers)
            if ambiguous:
                tally.bad += len(ambiguous)
                self.reporter.say(
                    f"{count_of(len(ambiguous), 'question')} left out: of an id, the predictions "
                    "hold the first answer only: "
                    f"{', '.join(map(repr, ambiguous[:SHOWN_PROBLEMS]))}"
                )
            file.write(content)
        elif form == "jsonl":
            for record in answers:
                line = line_of(record)
                file.write(visible(line.decode()).encode() if file.isatty() else line)
                file.flush()
        else:
            answer_formats.write_csv(file, answers, "\t" if form == "tsv" else ",")

    @contextmanager
    def _reported(self, tally: Tally) -> Iterator[None]:
        """Report the bad rows at the end of the block, also of one that fails."""
        try:
            yield
        finally:
            if tally.bad:
                self.reporter.say(f"{self.source}: {tally.complaint()}")

    def _rows(self) -> Iterator[Row]:
        for record in records.read_records(self.source, self.questions_format, self.columns):
            yield row_of(record, self.columns)

    def _records(self, done: int, tally: Tally) -> Iterator[Record]:
        """The records of all rows after the first `done`, counted."""
        # A pipe is read once, and a URL should be.
        total = 0 if is_pipe(self.source) or storage.is_url(self.source) else sum(1 for _ in self._rows())
        rows = islice(self._rows(), done, None)
        with self.reporter.progress("answering", total) as advance:
            yield from counted(answer_rows(self.pipeline, rows, self.parameters), tally, advance)
        if self._has_changed():
            raise UntrustedInput(f"{self.source}: has changed while it was answered", "run the same command again")

    def _has_changed(self) -> bool:
        return self.state is not None and storage.locate(self.source).state() != self.state

    def digest(self, answered_by: str) -> str | None:
        """Digest of what determines the answers; None for a pipe, which cannot be resumed."""
        if is_pipe(self.source):
            return None
        if storage.is_url(self.source):
            content = str(self.state)
        else:
            with opened(self.source, unpack=False) as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        inputs = [VERSION, content, self.questions_format, self.columns.model_dump(), answered_by, self.parameters]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=repr).encode()).hexdigest()[:12]


# --- writing --------------------------------------------------------------------------------------------------------


def require_answerable(source: str, target: str, answers_format: AnswersFormat | None) -> None:
    """Raise BadTarget if the questions in `source` cannot be answered into the file `target`."""
    source, target = single(source), storage.plain(target)
    records.format_of(source)
    if answers_format is None:
        _answers_format(target)
    require_place(source, target)


def require_place(source: str, target: str) -> None:
    """Raise BadTarget if what comes of the questions in `source` cannot be written to the file `target`.

    Raises QABuildError where its folder is not writable.
    """
    if is_pipe(target):
        if os.path.isdir(target):
            raise BadTarget(f"{target}: is a folder", "name a file in it")
        return
    if storage.is_url(target):
        if storage.is_url(source) and storage.locate(source).contains(storage.locate(target)):
            raise BadTarget(f"{target}: this would replace the questions", "name another file")
        return
    require_outside(Path(target))
    files.require_creatable(Path(target))
    if os.path.exists(target) and source != PIPE and os.path.exists(source) and os.path.samefile(source, target):
        raise BadTarget(f"{target}: this would replace the questions", "name another file")


@contextmanager
def _partial(path: Path, digest: str | None) -> Iterator[tuple[IO[bytes], Path]]:
    """The locked partial file and its path. Without a digest it is truncated."""
    partial_path = path.with_name(f"{path.name}.{digest}.partial" if digest else f"{path.name}.partial")
    try:
        with files.exclusive(partial_path) as file:
            if digest is None:
                file.truncate(0)
            yield file, partial_path
    except BlockingIOError:
        raise QABuildError(
            f"{path}: another run is answering these questions", "wait for it, or name another file for the answers"
        ) from None


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
