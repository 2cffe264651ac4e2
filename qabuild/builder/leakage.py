"""Train/test leakage: the questions that verify an artifact must not be among those that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from qabuild.errors import QABuildError
from qabuild.models import calibration
from qabuild.models.training import examples
from qabuild.models.training.options import Fit
from qabuild.qa import data
from qabuild.qa.data import DatasetRef, QuestionSet
from qabuild.system import hub
from qabuild.system.frozen import Frozen
from qabuild.target.lineage import derivations
from qabuild.target.model import Target


def questions_of(target: Target, *, offline: bool) -> QuestionSet:
    """The questions that verify what is built from `target`. Raises what `qabuild.qa.data.load` raises."""
    with _named(target, "verify.dataset"):
        return data.load(target.verify.data, offline=offline)


def refuse_leakage(target: Target, *, offline: bool, here_only: bool = False) -> None:
    """Refuse to train or calibrate on what the verification asks.

    What is wrong with any of these questions is reported here too, and all that compiling reads is fetched: it has no
    network. With `here_only`, what is on the Hub is passed over.

    Raises what `qabuild.qa.data.load` and `qabuild.qa.data.refuse_leakage` raise.
    """

    def passed_over(source: DatasetRef) -> bool:
        return here_only and hub.is_id(source.dataset)

    verified = target.verify.data
    asked = None if passed_over(verified) else questions_of(target, offline=offline).questions
    for key, source, read in _training_questions(target, offline):
        if not passed_over(source):
            with _named(target, key):
                data.refuse_leakage(read().questions, asked or ())


@contextmanager
def _named(target: Target, key: str) -> Iterator[None]:
    """Inside the block, errors about a data set name the target and its key."""
    try:
        yield
    except QABuildError as error:
        error.message = f"{target.name}: {key}: {error.message}"
        raise


def _training_questions(target: Target, offline: bool) -> Iterator[tuple[str, DatasetRef, Callable[[], QuestionSet]]]:
    """The target's key, the data set, and how to read it, of all questions that are learnt from."""
    for derived in derivations(target.origin):
        for key, source in derived.target.stage_datasets(derived.stage).items():
            yield key, source, partial(_of_stage, derived.table, source, offline)
    if options := target.calibrated:
        everything = partial(calibration.questions, options, offline=offline)
        yield "backend.calibration", options.data, lambda: calibration.draw(options, everything())


def _of_stage(table: Frozen, source: DatasetRef, offline: bool) -> QuestionSet:
    questions = data.load(source, offline=offline)
    if isinstance(table, Fit):
        examples.hold_out(questions.questions, table)  # which is refused where nothing is left
    return questions
