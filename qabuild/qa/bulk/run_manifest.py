"""`_manifest.json` in a folder of answers: what they were asked with, of which input, in which parts.

All processes that write to the folder compare their own run with it, and each part's record names its run, so that the
folder never mixes the answers of two.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.answer_formats import AnswersFormat
from qabuild.qa.bulk.parts import Part
from qabuild.qa.data.records import QuestionsFormat
from qabuild.system import documents
from qabuild.system.frozen import Frozen
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.storage import FileState, Location
from qabuild.system.version import VERSION

NAME = "_manifest.json"
MANIFEST_VERSION = 1
_SHOWN = 3
_LISTED = 20
"""Names of files in a message."""


class Run(Frozen):
    """What determines the answers, and how they are cut and written."""

    artifact: str
    """What identifies the model: the digest of the artifact's manifest."""
    parameters: dict[str, Any]
    columns: dict[str, str]
    questions_format: QuestionsFormat
    answers_format: AnswersFormat
    part_rows: int
    files: dict[str, FileState]
    """The input, by name within its folder."""


class RunManifest(Frozen):
    manifest_version: int
    qabuild: str
    run: Run
    integer_ids: bool
    """Whether the ids of all parts in Parquet are int64, not strings."""
    parts: tuple[Part, ...]

    @functools.cached_property  # asked for each part
    def run_digest(self) -> str:
        """Of all but the states of the files: of one that changes, the parts alone are made again."""
        determined = self.model_dump(mode="json")
        determined["run"]["files"] = sorted(self.run.files)
        return hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()


def new(run: Run, parts: tuple[Part, ...], integer_ids: bool) -> RunManifest:
    return RunManifest(
        manifest_version=MANIFEST_VERSION, qabuild=VERSION, run=run, integer_ids=integer_ids, parts=parts
    )


def settled(folder: Location, run: Run, planned: Callable[[], RunManifest], reporter: Reporter = SILENT) -> RunManifest:
    """The folder's manifest, which is `planned()` if there was none.

    Files of questions that have changed since are answered again: the manifest gets their new states, so that the
    records of their parts do not count any more. Raises BadTarget if it describes another run, or a file that changed
    has other rows, by which parts are numbered; UntrustedInput if it is damaged.
    """
    place = folder.child(NAME)
    # Asked first: a process that starts at the same time writes the manifest before its parts.
    is_used = folder.child(f"part-00000.{run.answers_format}").exists()
    manifest = read(folder)
    if manifest is None:
        if is_used:
            raise BadTarget(f"{folder.shown}: holds parts without a {NAME}", "name another folder, or empty it")
        place.create(_content(planned()))
        manifest = _parsed(place.read() or b"", place.shown)
    different = list(_differences(manifest.run, run))
    if manifest.qabuild != VERSION:
        different.insert(0, f"qabuild {manifest.qabuild}, now {VERSION}")
    if not different and (changed := [name for name, state in manifest.run.files.items() if run.files[name] != state]):
        now = planned()
        if (now.parts, now.integer_ids) == (manifest.parts, manifest.integer_ids):
            reporter.say(f"changed since an earlier run: {_listed(changed)}")
            place.write(_content(now))
            return now
        different = [f"{_listed(changed)}: changed to other rows, or ids of another type"]
    if different:
        more = f"; and {len(different) - _SHOWN} more" * (len(different) > _SHOWN)
        raise BadTarget(
            f"{folder.shown}: holds the answers of another run: {'; '.join(different[:_SHOWN])}{more}",
            "name another folder, or repeat that run",
        )
    return manifest


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" * (len(names) > _LISTED)
    return f"{', '.join(names[:_LISTED])}{more}"


def read(folder: Location) -> RunManifest | None:
    """The folder's manifest; None if there is none. Raises UntrustedInput if it is damaged."""
    place = folder.child(NAME)
    content = place.read()
    return None if content is None else _parsed(content, place.shown)


def _content(manifest: RunManifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode() + b"\n"


def _parsed(content: bytes, where: str) -> RunManifest:
    try:
        document = json.loads(content)
        version = document["manifest_version"]
        if isinstance(version, int) and version > MANIFEST_VERSION:
            raise BadTarget(
                f"{where}: was written by a newer qabuild, {document.get('qabuild')}", "update qabuild to go on with it"
            )
        return RunManifest.model_validate_json(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = documents.first_mistake(error) if isinstance(error, ValidationError) else error
        raise UntrustedInput(f"{where}: is damaged ({problem})", "restore it, or name another folder") from error


def _differences(theirs: Run, mine: Run) -> Iterator[str]:
    """What differs but the states of files, in words; the folder's value first."""
    if theirs.artifact != mine.artifact:
        yield f"artifact {theirs.artifact[:12]}, now {mine.artifact[:12]}"
    for name in sorted({*theirs.parameters, *mine.parameters}):
        if (before := theirs.parameters.get(name)) != (now := mine.parameters.get(name)):
            yield f"{name} {before}, now {now}"
    for name in ("columns", "questions_format", "answers_format", "part_rows"):
        if (before := getattr(theirs, name)) != (now := getattr(mine, name)):
            yield f"{name} {before}, now {now}"
    for name in sorted({*theirs.files, *mine.files}):
        if name not in mine.files:
            yield f"the input had {name}"
        elif name not in theirs.files:
            yield f"the input had no {name}"
