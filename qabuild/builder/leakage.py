"""The questions that prove an artifact, and that nothing was learnt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from qabuild.errors import QABuildError
from qabuild.models import calibration
from qabuild.models.training import examples
from qabuild.models.training.options import Train
from qabuild.qa import data
from qabuild.qa.data import QuestionSet
from qabuild.system import hub
from qabuild.target.lineage import trainings
from qabuild.target.model import Target


def questions(target: Target, *, offline: bool) -> QuestionSet:
    """The questions that prove what is built from `target`. Raises what `qabuild.qa.data.load` raises."""
    verify = target.verify
    with _named(target, "verify.dataset"):
        return data.load(
            verify.dataset,
            revision=verify.revision,
            split=verify.split,
            samples=verify.samples,
            seed=verify.seed,
            fingerprint=verify.fingerprint,
            offline=offline,
        )


def refuse_learnt(target: Target, *, offline: bool, here_only: bool = False) -> None:
    """Refuse to train or calibrate on what the verification asks.

    What is wrong with any of these questions is told here too, and all that compiling reads is fetched: it has no
    network. With `here_only`, what is on the Hub is passed over.

    Raises what `qabuild.qa.data.load` and `qabuild.qa.data.refuse_asked` raise.
    """

    def passed_over(source: str) -> bool:
        return here_only and hub.is_id(source)

    asked = None if passed_over(target.verify.dataset) else questions(target, offline=offline).questions
    for key, source, read in _learnt(target, offline):
        if not passed_over(source):
            with _named(target, key):
                data.refuse_asked(read().questions, asked or ())


@contextmanager
def _named(target: Target, key: str) -> Iterator[None]:
    """Inside the block, what is wrong with a data set, or with what is asked of it, is told with target and key."""
    try:
        yield
    except QABuildError as error:
        error.message = f"{target.name}: {key}: {error.message}"
        raise


def _of_training(train: Train, offline: bool) -> QuestionSet:
    found = examples.questions_of(train, offline=offline)
    examples.hold_out(found.questions, train.held_out, train.seed)  # which is refused where nothing is left
    return found


def _learnt(target: Target, offline: bool) -> Iterator[tuple[str, str, Callable[[], QuestionSet]]]:
    """The target's key, the source, and how to read it, of all questions that are learnt from."""
    for each in trainings(target.origin):
        yield "train.dataset", each.train.dataset, partial(_of_training, each.train, offline)
    if options := target.calibrated:
        everything = partial(calibration.questions, options, offline=offline)
        yield "backend.calibration", options.calibration, lambda: calibration.draw(options, everything())
