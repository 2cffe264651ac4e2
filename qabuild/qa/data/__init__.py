"""Questions with their contexts and gold answers, from the Hub, a file or the embedded sample.

Every source is read by the same rules (`rows`) and passes the same checks: ids are unique, texts are not blank, and
every gold answer occurs in its context at its `answer_start`. Questions that pass need no further checks to be answered
and scored.
"""

from __future__ import annotations

import os
from pathlib import Path

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.data.dataset_ref import SAME_NAMES, Columns, DatasetRef
from qabuild.qa.data.hub_datasets import load_table
from qabuild.qa.data.questions import (
    Question,
    QuestionSet,
    check,
    fingerprint,
    question_set,
    refuse_leakage,
    select,
    subset,
    without_misplaced,
)
from qabuild.qa.data.records import format_of, read_records
from qabuild.qa.data.rows import questions_of
from qabuild.qa.data.source import is_pipe
from qabuild.system import hub

__all__ = [
    "Columns",
    "DatasetRef",
    "Question",
    "QuestionSet",
    "check",
    "fingerprint",
    "load",
    "read",
    "refuse_leakage",
    "require_fingerprint",
    "select",
    "subset",
]


def load(ref: DatasetRef, *, offline: bool = False) -> QuestionSet:
    """Load the questions that `ref` names; with `offline`, from the cache only.

    Raises BadTarget for a missing file, data set, configuration, revision or split, UntrustedInput for damaged
    questions or another fingerprint, QABuildError if the Hub or the disk fails.
    """
    source = ref.dataset
    if hub.is_id(source):
        questions = load_table(ref, offline)
    elif ref.revision is not None or ref.configuration is not None:
        given = "configuration" if ref.revision is None else "revision"
        raise BadTarget(
            f"{given} '{getattr(ref, given)}' is given for the data '{source}', which is not on the Hub",
            f"leave out the {given}, or name a Hub id",
        )
    else:
        questions = _sample(ref.split) if source == hub.SAMPLE else _of_file(ref)
    require_fingerprint(ref, questions.fingerprint)
    questions = without_misplaced(questions) if ref.max_misplaced else questions
    return questions if ref.samples is None else subset(questions, ref.samples, ref.seed)


def require_fingerprint(ref: DatasetRef, found: str) -> None:
    """Raise UntrustedInput if `ref` pins another fingerprint than the one of its whole split, `found`."""
    if ref.fingerprint not in (None, found):
        raise UntrustedInput(
            f"{ref.dataset}: the questions' fingerprint is {found}, pinned is {ref.fingerprint}",
            "use the pinned data set; if the change is intended, lock the target again, or pin it anew",
        )


def _sample(split: str) -> QuestionSet:
    from qabuild.qa import sample

    files = {"train": sample.TRAIN, "validation": sample.HELDOUT}
    if split not in files:
        raise BadTarget(f"the sample has no split '{split}'", "use 'train' or 'validation'")
    return question_set(read(Path(files[split])), hub.SAMPLE, split=split)


def _of_file(ref: DatasetRef) -> QuestionSet:
    path = Path(os.path.expanduser(ref.dataset))
    return question_set(read(path, ref.max_misplaced, ref.columns), path.name)


def read(path: Path, max_misplaced: float = 0.0, columns: Columns = SAME_NAMES) -> tuple[Question, ...]:
    """Read the questions of a file, in its order; its name's ending tells the format.

    `max_misplaced` is the share of questions that may have an answer not at its `answer_start`.

    Raises BadTarget if there is no such file, UntrustedInput naming file and place if its content is invalid.
    """
    where = str(path)
    if is_pipe(where):
        raise BadTarget(f"{path}: cannot be read (not a regular file)", "give a file of questions")
    questions = questions_of(read_records(where, format_of(where), columns), columns, where)
    check(questions, where, max_misplaced)
    return questions
