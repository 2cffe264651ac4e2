"""Writes the parts of a run: each atomically, and then its record, which makes it complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, Self

from pydantic import ValidationError

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa import answer_formats
from qabuild.qa.answer_formats import AnswersFormat, Record
from qabuild.qa.bulk import run_manifest
from qabuild.qa.bulk.answers import answer_rows
from qabuild.qa.bulk.parts import Part
from qabuild.qa.bulk.run_manifest import RunManifest
from qabuild.qa.bulk.tally import Tally, counted
from qabuild.qa.data.dataset_ref import Columns
from qabuild.qa.data.question_files import QuestionFiles
from qabuild.qa.data.records import read_records
from qabuild.qa.data.rows import Row, row_of
from qabuild.system import files
from qabuild.system.frozen import Frozen
from qabuild.system.reporter import Advance, Reporter
from qabuild.system.storage import FileState, Location

PARTS = "_parts"
"""The folder of the parts' records."""


class UnusableQuestions(UntrustedInput):
    """A file of questions is damaged, was changed or is gone: its parts cannot be made, all others can."""


class PartRecord(Frozen):
    """What `_parts/part-NNNNN.json` holds of a complete part."""

    run: str
    """The digest of the run that it belongs to."""
    questions: FileState
    """The file that they were read from."""
    answers: FileState
    rows: int
    bad: int
    truncated: int
    problems: list[str]
    """The first ones."""


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """Reads the questions of parts and writes their answers. It can be pickled, for a process on any machine."""

    files: QuestionFiles
    folder: Location
    manifest: RunManifest
    columns: Columns
    parameters: Mapping[str, Any]

    def completed(self, part: Part, reporter: Reporter) -> Tally | None:
        """The counts of a part that an earlier run completed; None if it is missing or damaged."""
        record = self._record(part)
        if record is None:
            return None
        state = _content_state(self._answers(part))
        if state != record.answers:
            reporter.say(f"{self._answers(part).shown}: is {'damaged' if state else 'missing'}, and made again")
            return None
        counts = record.model_dump(exclude={"run", "questions", "answers"})
        return Tally(**counts, resumed=record.rows)

    def write(self, pipeline: Callable[..., Any], part: Part, advance: Advance, *, wait_seconds: float = 0.0) -> Tally:
        """Answer a part.

        Raises UnusableQuestions if its questions cannot be read or have changed, QABuildError if another process writes
        it for longer than `wait_seconds`, BadTarget if the folder belongs to another run by then.
        """
        tally = Tally()
        place = self._answers(part)
        self._require_unchanged(part)
        with place.writing(wait_seconds) as file:
            records = counted(answer_rows(pipeline, self._rows(part), self.parameters), tally, advance)
            try:
                _write(file, records, self.manifest.run.answers_format, self.manifest.integer_ids)
            finally:  # also where a file that is being replaced could not be read
                self._require_unchanged(part)
            self._require_own_folder()
        if not place.local:  # an upload takes its time, and may have replaced what a later run put there
            self._require_unchanged(part)
            self._require_own_folder()
        tally.problems = [f"{self.address(part)}: {problem}" for problem in tally.problems]
        state = _content_state(place)
        if state is None:
            raise QABuildError(f"{place.shown}: was removed", "run the same command again")
        record = PartRecord(
            run=self.manifest.run_digest,
            questions=self._questions(part),
            answers=state,
            rows=tally.rows,
            bad=tally.bad,
            truncated=tally.truncated,
            problems=tally.problems,
        )
        self._record_place(part).write(record.model_dump_json().encode())
        return tally

    def elsewhere(self) -> Self:
        """The same writer for a process with another working directory: its paths are absolute."""
        root, folder = (replace(one, shown=one.path) if one.local else one for one in (self.files.root, self.folder))
        return replace(self, files=replace(self.files, root=root), folder=folder)

    def require_shared(self) -> None:
        """Raise BadTarget if the folder of answers that this process sees is not that of the run."""
        if run_manifest.read(self.folder) != self.manifest:
            raise BadTarget(
                f"{self.folder.shown}: a worker sees another folder there", "name one that all machines share, or a URL"
            )

    def _require_own_folder(self) -> None:
        """Raise BadTarget if the folder was emptied meanwhile, or taken by another run."""
        manifest = run_manifest.read(self.folder)
        if manifest is None or manifest.run_digest != self.manifest.run_digest:
            raise BadTarget(
                f"{self.folder.shown}: the answers of another run were begun there, or {run_manifest.NAME} was removed",
                "run the same command again, with another folder if there is another run",
            )

    def address(self, part: Part) -> str:
        """The file of its questions."""
        return self.files.address(part.file)

    def _rows(self, part: Part) -> Iterator[Row]:
        try:
            for record in read_records(
                self.address(part), self.files.format, self.columns, first=part.first, count=part.rows
            ):
                yield row_of(record, self.columns)
        except (BadTarget, UntrustedInput) as error:
            raise UnusableQuestions(error.message, error.hint) from error

    def _require_unchanged(self, part: Part) -> None:
        state = self.files.root.child(part.file).state()
        if state is None:
            raise UnusableQuestions(
                f"{self.address(part)}: there is no such file any more", "restore it, or name another folder"
            )
        if state != self._questions(part):
            raise UnusableQuestions(
                f"{self.address(part)}: has changed since the run began", "the same command answers it as it is now"
            )

    def _questions(self, part: Part) -> FileState:
        """The state of its file when the run began."""
        return self.manifest.run.files[part.file]

    def _answers(self, part: Part) -> Location:
        return self.folder.child(f"{part.name}.{self.manifest.run.answers_format}")

    def _record(self, part: Part) -> PartRecord | None:
        """The record of a complete part of this run and of these questions; None if there is none, or a damaged one."""
        content = self._record_place(part).read()
        try:
            record = PartRecord.model_validate_json(content or b"")
        except ValidationError:
            return None
        mine = (self.manifest.run_digest, self._questions(part))
        return record if (record.run, record.questions) == mine else None

    def _record_place(self, part: Part) -> Location:
        return self.folder.child(PARTS).child(f"{part.name}.json")


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
