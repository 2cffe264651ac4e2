"""References to questions: a data set, its configuration, revision and split, and a sample of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.system import arguments, documents
from qabuild.system.frozen import Frozen
from qabuild.system.hub import check_id, is_id, is_path

Share = Annotated[float, Field(ge=0, le=1)]
FINGERPRINT = "^[0-9a-f]{64}$"
SOURCE = "a Hub id, a file (.json, .jsonl, .csv, .tsv or .parquet) that begins with ./, ../, / or ~, or 'sample'"


def require_source(source: str | os.PathLike[str]) -> None:
    """Raise BadTarget where `source` names a file that is not here, or cannot be a Hub id; asks no Hub."""
    if is_id(source):
        check_id(str(source), None, "dataset")
    elif is_path(source) and not Path(os.path.expanduser(source)).is_file():
        problem = "is a folder" if Path(os.path.expanduser(source)).is_dir() else "there is no such file"
        raise BadTarget(f"{source}: {problem}", "name a file of questions, or a data set on the Hub")


class Columns(Frozen):
    """The columns of a table, or keys of JSON rows, that have other names than here."""

    id: str | None = Field(None, min_length=1, description="any string or number; made from the texts where absent")
    question: str | None = Field(None, min_length=1, description="the question")
    context: str | None = Field(None, min_length=1, description="the text that holds the answers")
    answers: str | None = Field(None, min_length=1, description="the gold answers, each with text and answer_start")
    answer_text: str | None = Field(None, min_length=1, description="the gold answer, where it has a column of its own")
    answer_start: str | None = Field(None, min_length=1, description="where `answer_text` starts, in characters")
    is_impossible: str | None = Field(None, min_length=1, description="whether the question is unanswerable")

    def require_unambiguous(self, names: Sequence[str], where: str) -> None:
        """Raise UntrustedInput for a table in which several columns have the name of one of these."""
        for part in type(self).model_fields:
            name = getattr(self, part) or part
            if names.count(name) > 1:
                raise UntrustedInput(f"{where}: has several columns '{name}'", "give each a name of its own")


SAME_NAMES = Columns()


def columns_of(names: Mapping[str, str] | None) -> Columns:
    """The columns that have other `names`. Raises BadTarget for an unknown one, and for what is no dictionary."""
    given = arguments.mapping("columns", names, 'as in {"question": "frage"}: a part of a question, and its column')
    known = ", ".join(Columns.model_fields)
    for name in given:
        if name not in Columns.model_fields:
            turned = given[name] in list(Columns.model_fields)  # which also takes what has no hash
            raise BadTarget(
                f"columns: '{name}' is no part of a question",
                f"write it the other way round: {given[name]}={name}" if turned else f"name columns of {known}",
            )
    try:
        return Columns(**given)
    except ValidationError as error:
        raise BadTarget(f"columns: {documents.first_mistake(error)}", f"name columns of {known}") from None


@dataclass(frozen=True)
class DatasetRef:
    """A reference to questions; it names the same ones everywhere once its revision is a commit."""

    dataset: str | os.PathLike[str]
    """"sample", a path (text that begins with '/', '.' or '~', or a path object) or a Hub id."""
    configuration: str | None = None
    """Of a Hub id: one of the tables that its repository holds; None: its default one."""
    revision: str | None = None
    """Of a Hub id: a branch, tag or commit sha; None: the main branch."""
    split: str = "validation"
    """Of a Hub id and of the sample; a file is one split."""
    samples: int | None = None
    """Number of questions to draw; None: all."""
    seed: int = 0
    """Random seed of the draw."""
    fingerprint: str | None = None
    """The required fingerprint of the whole split; None: any."""
    max_misplaced: float = 0.0
    """Share of the questions that may have an answer not at its `answer_start`; these are left out."""
    columns: Columns = SAME_NAMES
    """Names of its columns."""

    def whole(self) -> Self:
        """All questions of the split, whatever their fingerprint."""
        return replace(self, samples=None, seed=0, fingerprint=None)

    def pinned(self, revision: str | None, fingerprint: str | None) -> Self:
        """The same questions, at that commit and with that fingerprint."""
        return replace(self, revision=revision, fingerprint=fingerprint)

    @property
    def shown(self) -> str:
        """The data set's name, without the folder of a file, which differs between machines."""
        return Path(self.dataset).name if is_path(self.dataset) else str(self.dataset)


class DatasetTable(Frozen):
    """A table of a target that names questions."""

    dataset: str = Field("rajpurkar/squad", min_length=1, description=SOURCE)
    configuration: str | None = Field(
        None, min_length=1, description="configuration of a Hub data set that has several, such as xquad.de"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    fingerprint: str | None = Field(
        None, pattern=FINGERPRINT, description="what the fingerprint of the whole split must be, in 64 hex digits"
    )
    split: str = Field("train", min_length=1, description="split of the data set")
    samples: int | None = Field(None, ge=1, description="how many questions, drawn by `seed`; all where it is absent")
    seed: int = Field(0, ge=0, description="seed of that draw, a whole number from 0")
    max_misplaced: Share = Field(
        0.0, description="share of the questions that may have an answer that is not in place; they are left out"
    )
    columns: Columns | None = Field(None, description="names of the columns or keys that are called otherwise")

    @property
    def data(self) -> DatasetRef:
        return DatasetRef(
            self.dataset,
            self.configuration,
            self.revision,
            self.split,
            self.samples,
            self.seed,
            self.fingerprint,
            self.max_misplaced,
            self.columns or SAME_NAMES,
        )

    def with_data(self, data: DatasetRef) -> Self:
        """This table with the revision and fingerprint of `data`."""
        return self.model_copy(update={"revision": data.revision, "fingerprint": data.fingerprint})
