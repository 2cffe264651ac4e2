"""A data set of questions in, a folder of answers out, part by part, by any number of processes.

The folder's manifest lists the parts. Each is written atomically, and then its record in `_parts/`, which makes it
complete: a run has its engine make the parts that are not, and shard I of N those whose number modulo N is I.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qabuild.errors import BadTarget
from qabuild.qa.answer_formats import AnswersFormat
from qabuild.qa.bulk import run_manifest
from qabuild.qa.bulk.engine import Engine, ThisProcess
from qabuild.qa.bulk.file import identity
from qabuild.qa.bulk.part_writer import PARTS, PartWriter, UnusableQuestions
from qabuild.qa.bulk.parts import Part, cut, explained, measure, name_of
from qabuild.qa.bulk.run_manifest import Run, RunManifest
from qabuild.qa.bulk.tally import Summary, Tally
from qabuild.qa.data import question_files
from qabuild.qa.data.dataset_ref import columns_of
from qabuild.qa.data.question_files import QuestionFiles
from qabuild.qa.data.records import QuestionsFormat
from qabuild.system import arguments, files, storage
from qabuild.system.reporter import SILENT, Advance, Reporter
from qabuild.system.sealed import require_outside
from qabuild.system.storage import Location

PART_ROWS = 100_000
"""Rows of a part: minutes of work, and a file of a few megabytes."""
_FORMATS: dict[QuestionsFormat, AnswersFormat] = {"squad": "jsonl", "jsonl": "jsonl", "csv": "csv", "tsv": "tsv"}


def answer_dataset(
    pipeline: Callable[..., Any] | Engine,
    questions: str | os.PathLike[str],
    answers: str | os.PathLike[str],
    *,
    answers_format: AnswersFormat | None = None,
    columns: Mapping[str, str] | None = None,
    part_rows: int = PART_ROWS,
    shard: tuple[int, int] = (0, 1),
    answered_by: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Summary:
    """Answer the questions of any number of files into a folder, which is resumed and can be shared.

    `questions` is a file, a folder or a glob, `answers` a folder; each can be a URL that fsspec opens. The other
    arguments are those of `answer_file`. The folder gets a file for each part: `part_rows` rows of a Parquet file, or a
    whole file of another format. `answers_format` is jsonl, csv, tsv or parquet, by default that of the questions.
    `shard`, (I, N), makes the parts whose number modulo N is I. Instead of a pipeline, an engine can make the parts.

    A second run makes only the parts that are missing or damaged, and those of files that have changed. A file that
    cannot be read, or changes meanwhile, keeps no part of another from being made. Memory does not grow with the number
    of rows.

    Raises BadTarget if there are no questions, or the folder holds the answers of another run, UntrustedInput for files
    that are damaged or have changed, MissingEnvironment without the driver of a store, QABuildError if a store fails.
    """
    engine = pipeline if isinstance(pipeline, Engine) else ThisProcess(arguments.pipeline(pipeline))
    part_rows = arguments.whole("part_rows", part_rows, 1, f"give at least 1, as in {PART_ROWS}")
    if answers_format not in (None, "predictions"):
        arguments.word("answers_format", answers_format, dict.fromkeys((*_FORMATS.values(), "parquet")))
    found, folder = require_dataset(
        arguments.path("questions", questions), arguments.path("answers", answers), shard, answers_format
    )
    columns_named = columns_of(columns)
    named = arguments.parameters(parameters)
    run = Run(
        artifact=identity(pipeline, answered_by),
        parameters=json.loads(json.dumps(named, default=repr)),
        columns=dict(columns or {}),
        questions_format=found.format,
        answers_format=_format(found, answers_format),
        part_rows=part_rows,
        files=dict(found.states),
    )

    def planned() -> RunManifest:
        lengths, integer_ids = measure(found, columns_named)
        return run_manifest.new(run, cut(lengths, part_rows), integer_ids)

    manifest = run_manifest.settled(folder, run, planned, reporter)
    writer = PartWriter(
        files=found,
        folder=folder,
        manifest=manifest,
        columns=columns_named,
        parameters=named,
    )
    return _make_parts(manifest.parts[shard[0] :: shard[1]], writer, engine, reporter)


def _format(questions: QuestionFiles, asked: AnswersFormat | None) -> AnswersFormat:
    """The format of the answers: by default that of the questions."""
    return asked or _FORMATS.get(questions.format, "parquet")


def _written(form: AnswersFormat) -> Iterator[str]:
    """Names of what a run writes; of so many parts that a glob which matches any matches one of them."""
    yield run_manifest.NAME
    for part in map(name_of, range(1000)):
        yield f"{part}.{form}"
        yield f"{PARTS}/{part}.json"


def _make_parts(parts: Sequence[Part], writer: PartWriter, engine: Engine, reporter: Reporter) -> Summary:
    tallies: dict[str, Tally] = {}
    unusable: dict[str, UnusableQuestions] = {}
    """By the address of the file."""
    lengths = [part.rows for part in parts]
    total = 0 if None in lengths else sum(filter(None, lengths))
    try:
        with reporter.progress("answering", total) as advance:
            missing = _missing(parts, writer, tallies, advance, reporter)
            with closing(engine.made(missing, writer, advance, reporter)) as made:
                for part, outcome in made:
                    if isinstance(outcome, Tally):
                        tallies[part.name] = outcome
                    else:
                        unusable[writer.address(part)] = outcome
    except BaseException:
        for error in unusable.values():  # else nobody would hear of them
            reporter.say(error.message)
        raise
    finally:
        tally = Tally()
        for part in parts:  # in their order, whichever an engine completed first
            tally.merge(tallies.get(part.name, Tally()))
        if len(tallies) < len(parts):
            others = "" if unusable else "; the same command makes the others"
            reporter.say(f"{len(tallies)} of {len(parts)} parts are complete{others}")
        if tally.bad:
            reporter.say(tally.complaint())
    if unusable:
        raise UnusableQuestions(*explained(dict(sorted(unusable.items()))))
    return tally.summary()


def _missing(
    parts: Iterable[Part], writer: PartWriter, tallies: dict[str, Tally], advance: Advance, reporter: Reporter
) -> Iterator[Part]:
    """The parts that are missing or damaged; the counts of the others are added to `tallies`."""
    for part in parts:
        tally = writer.completed(part, reporter)
        if tally is None:
            yield part
        else:
            tallies[part.name] = tally
            advance(tally.rows)


def require_dataset(
    source: str, target: str, shard: tuple[int, int], answers_format: AnswersFormat | None
) -> tuple[QuestionFiles, Location]:
    """The files of `source` and the folder `target`. Raises BadTarget if the one cannot be answered into the other."""
    if not isinstance(shard, tuple) or len(shard) != 2 or not all(isinstance(each, int) for each in shard):
        raise BadTarget(f"shard: {shard!r} is no pair of whole numbers", "give a tuple, as in (0, 4)")
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
        files.require_writable(folder.local, "the folder", "make it writable, or name another for the answers")
    beside = any(found.root.child(name).parent().path == folder.path for name in found.states)
    if beside or found.would_hold(folder, _written(_format(found, answers_format))):
        raise BadTarget(f"{target}: lies in the folder of the questions, as which it would be read", "name another one")
    return found, folder
