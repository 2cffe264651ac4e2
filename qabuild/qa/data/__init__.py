"""Questions with their contexts and gold answers, from the Hub, a SQuAD-layout file or the embedded sample.

Whatever the source, the same checks hold: ids are unique, texts are not blank, and every gold answer stands in its
context where it says. What passes them can be answered and scored without further looks.
"""

from __future__ import annotations

from pathlib import Path

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.qa.data.hub_datasets import load_table
from qabuild.qa.data.questions import (
    Question,
    QuestionSet,
    check,
    fingerprint,
    question_set,
    refuse_asked,
    select,
    subset,
    without_misplaced,
)
from qabuild.qa.data.squad_files import read_squad
from qabuild.system import hub

__all__ = [
    "DatasetRef",
    "Question",
    "QuestionSet",
    "check",
    "fingerprint",
    "load",
    "read_squad",
    "refuse_asked",
    "select",
    "subset",
]


def load(ref: DatasetRef, *, offline: bool = False) -> QuestionSet:
    """Read the questions that `ref` names; `offline` uses the cache only.

    Raises BadTarget for what is not there, UntrustedInput for questions that are damaged or of another fingerprint,
    QABuildError where the Hub or the disk fails.
    """
    source = ref.dataset
    if hub.is_id(source):
        found = load_table(str(source), ref.revision, ref.split, offline, ref.max_misplaced)
    elif ref.revision is not None:
        raise BadTarget(
            f"revision '{ref.revision}' is given for the data '{source}', which is not on the Hub",
            "leave out the revision, or name a Hub id",
        )
    else:
        found = _sample(ref.split) if source == hub.SAMPLE else _from_file(Path(source), ref.max_misplaced)
    if ref.fingerprint not in (None, found.fingerprint):
        raise UntrustedInput(
            f"{source}: the questions' fingerprint is {found.fingerprint}, pinned is {ref.fingerprint}",
            "give the data set that was pinned; if the change is wanted, lock the target again",
        )
    found = without_misplaced(found) if ref.max_misplaced else found
    return found if ref.samples is None else subset(found, ref.samples, ref.seed)


def _sample(split: str) -> QuestionSet:
    from qabuild.qa import sample

    files = {"train": sample.TRAIN, "validation": sample.HELDOUT}
    if split not in files:
        raise BadTarget(f"the sample has no split '{split}'", "ask for 'train' or 'validation'")
    return question_set(read_squad(Path(files[split])), hub.SAMPLE, None, split)


def _from_file(path: Path, max_misplaced: float) -> QuestionSet:
    path = path.expanduser()
    return question_set(read_squad(path, max_misplaced), path.name, None, None)
