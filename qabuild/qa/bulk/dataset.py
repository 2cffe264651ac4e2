"""A data set of questions in, a folder of answers out, part by part, by any number of processes.

The folder's manifest lists the parts. Each is written atomically, and then its record in `_parts/`, which makes it
complete: a run makes the parts that are not, and shard I of N those whose number modulo N is I.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from qabuild.errors import BadTarget, QABuildError
from qabuild.qa import answer_formats
from qabuild.qa.answer_formats import AnswersFormat, Record
from qabuild.qa.bulk import run_manifest
from qabuild.qa.bulk.answers import answer_rows
from qabuild.qa.bulk.parts import Part, cut, measure
from qabuild.qa.bulk.run_manifest import Run, RunManifest
from qabuild.qa.bulk.tally import Summary, Tally, counted
from qabuild.qa.data import question_files
from qabuild.qa.data.dataset_ref import Columns, columns_of
from qabuild.qa.data.question_files import QuestionFiles
from qabuild.qa.data.records import QuestionsFormat, read_records
from qabuild.qa.data.rows import Row, row_of
from qabuild.system import files, storage
from qabuild.system.frozen import Frozen
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.sealed import require_outside
from qabuild.system.storage import FileState, Location

PART_ROWS = 100_000
"""Rows of a part: minutes of work, and a file of a few megabytes."""
_FORMATS: dict[QuestionsFormat, AnswersFormat] = {"squad": "jsonl", "jsonl": "jsonl", "csv": "csv", "tsv": "tsv"}
_PARTS = "_parts"


class PartRecord(Frozen):
    """What `_parts/part-NNNNN.json` holds of a complete part."""

    answers: FileState
    rows: int
    bad: int
    truncated: int
    problems: list[str]
    """The first ones."""


def answer_dataset(
    pipeline: Callable[..., Any],
    questions: str | os.PathLike[str],
    answers: str | os.PathLike[str],
    *,
    answers_format: AnswersFormat | None = None,
    columns: Mapping[str, str] | None = None,
    part_rows: int = PART_ROWS,
    shard: tuple[int, int] = (0, 1),
    answered_by: str = "",
    parameters: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Summary:
    """Answer the questions of any number of files into a folder, which is resumed and can be shared.

    `questions` is a file, a folder or a glob, `answers` a folder; each can be a URL that fsspec opens. The other
    arguments are those of `answer_file`. The folder gets a file for each part: `part_rows` rows of a Parquet file, or a
    whole file of another format. `answers_format` is jsonl, csv, tsv or parquet, by default that of the questions.
    `shard`, (I, N), makes the parts whose number modulo N is I.

    A second run makes only the parts that are missing or damaged. Memory does not grow with the number of rows.

    Raises BadTarget if there are no questions, or the folder holds the answers of another run, UntrustedInput for
    damaged files, MissingEnvironment without the driver of a store, QABuildError if a store fails or a file changes.
    """
    if part_rows < 1:
        raise BadTarget(f"part_rows: {part_rows}", "give at least 1")
    if answers_format not in (None, *_FORMATS.values(), "parquet", "predictions"):
        raise BadTarget(f"answers_format: {answers_format!r}", "name jsonl, csv, tsv or parquet")
    found, folder = require_dataset(str(questions), str(answers), shard, answers_format)
    columns_named = columns_of(columns or {})
    run = Run(
        artifact=answered_by,
        parameters=json.loads(json.dumps(dict(parameters or {}), default=repr)),
        columns=dict(columns or {}),
        questions_format=found.format,
        answers_format=answers_format or _FORMATS.get(found.format, "parquet"),
        part_rows=part_rows,
        files=dict(found.states),
    )

    def planned() -> RunManifest:
        lengths, integer_ids = measure(found, columns_named)
        return run_manifest.new(run, cut(lengths, part_rows), integer_ids)

    manifest = run_manifest.settled(folder, run, planned)
    return _Dataset(
        pipeline=pipeline,
        files=found,
        folder=folder,
        manifest=manifest,
        columns=columns_named,
        parameters=dict(parameters or {}),
        reporter=reporter,
    ).answer(manifest.parts[shard[0] :: shard[1]])


def require_dataset(
    source: str, target: str, shard: tuple[int, int], answers_format: AnswersFormat | None
) -> tuple[QuestionFiles, Location]:
    """The files of `source` and the folder `target`. Raises BadTarget if the one cannot be answered into the other."""
    index, count = shard
    if not 0 <= index < count:
        known = f"from 0/{count} to {count - 1}/{count}" if count > 0 else "as 0/4"
        raise BadTarget(f"shard {index}/{count}: there is none", f"name one {known}, counting from 0")
    if answers_format == "predictions":
        raise BadTarget(f"{target}: SQuAD's predictions are one file", "name a .json file, or another format")
    found = question_files.find(source)
    folder = storage.locate(target.rstrip("/") or "/")
    if folder.local:
        require_outside(Path(folder.path) / run_manifest.NAME)
        if folder.local.exists() and not folder.local.is_dir():
            raise BadTarget(f"{target}: is a file", "name a folder for the answers")
    inside = found.recursive and found.root.contains(folder)
    if inside or any(found.root.child(name).parent().path == folder.path for name in found.states):
        raise BadTarget(f"{target}: lies in the folder of the questions, as which it would be read", "name another one")
    return found, folder


@dataclass(frozen=True, kw_only=True)
class _Dataset:
    pipeline: Callable[..., Any]
    files: QuestionFiles
    folder: Location
    manifest: RunManifest
    columns: Columns
    parameters: Mapping[str, Any]
    reporter: Reporter

    def answer(self, parts: tuple[Part, ...]) -> Summary:
        tally, complete = Tally(), 0
        lengths = [part.rows for part in parts]
        total = 0 if None in lengths else sum(filter(None, lengths))
        try:
            with self.reporter.progress("answering", total) as advance:
                for part in parts:
                    if made := self._complete(part):
                        advance(made.rows)
                    tally.merge(made or self._make(part, advance))
                    complete += 1
        finally:
            if complete < len(parts):
                self.reporter.say(f"{complete} of {len(parts)} parts are complete; the same command makes the others")
            if tally.bad:
                self.reporter.say(tally.complaint())
        return tally.summary()

    def _complete(self, part: Part) -> Tally | None:
        """The counts of a part that an earlier run completed; None if it is missing or damaged."""
        content = self._record(part).read()
        if content is None:
            return None
        try:
            record = PartRecord.model_validate_json(content)
        except ValidationError:
            return None
        if _content_state(self._answers(part)) != record.answers:
            self.reporter.say(f"{self._answers(part).shown}: is damaged or missing, and made again")
            return None
        counts = record.model_dump(exclude={"answers"})
        return Tally(**counts, resumed=record.rows)

    def _make(self, part: Part, advance: Callable[[int], None]) -> Tally:
        tally = Tally()
        place = self._answers(part)
        self._require_unchanged(part)
        with place.writing() as file:
            records = counted(answer_rows(self.pipeline, self._rows(part), self.parameters), tally, advance)
            try:
                _write(file, records, self.manifest.run.answers_format, self.manifest.integer_ids)
            finally:  # also where a file that is being replaced could not be read
                self._require_unchanged(part)
        tally.problems = [f"{self.files.address(part.file)}: {problem}" for problem in tally.problems]
        state = _content_state(place)
        if state is None:
            raise QABuildError(f"{place.shown}: was removed", "run the same command again")
        record = PartRecord(
            answers=state, rows=tally.rows, bad=tally.bad, truncated=tally.truncated, problems=tally.problems
        )
        self._record(part).write(record.model_dump_json().encode())
        return tally

    def _rows(self, part: Part) -> Iterator[Row]:
        address = self.files.address(part.file)
        for record in read_records(address, self.files.format, first=part.first, count=part.rows):
            yield row_of(record, self.columns)

    def _require_unchanged(self, part: Part) -> None:
        if self.files.root.child(part.file).state() != self.manifest.run.files[part.file]:
            raise QABuildError(
                f"{self.files.address(part.file)}: has changed since the run began",
                "restore it, or answer the new questions into another folder",
            )

    def _answers(self, part: Part) -> Location:
        return self.folder.child(f"{part.name}.{self.manifest.run.answers_format}")

    def _record(self, part: Part) -> Location:
        return self.folder.child(_PARTS).child(f"{part.name}.json")


def _content_state(place: Location) -> FileState | None:
    """The state of a file of answers: of a local one, by its content."""
    state = place.state()
    return replace(state, version=f"sha256 {files.sha256(place.local)}") if state and place.local else state


def _write(file: IO[bytes], records: Iterable[Record], form: AnswersFormat, integer_ids: bool) -> None:
    if form == "parquet":
        answer_formats.write_parquet(file, records, integer_ids)
    elif form == "jsonl":
        file.writelines(map(answer_formats.line_of, records))
    else:
        answer_formats.write_csv(file, records, "\t" if form == "tsv" else ",")
