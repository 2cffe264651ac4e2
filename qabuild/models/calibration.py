"""Calibration data for int8: training questions whose activations set the quantisation ranges. Imports no runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from qabuild.models.runtime import Runtime
from qabuild.qa.data.dataset_ref import SAME_NAMES, Columns, DatasetRef, Share
from qabuild.system import hub
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.qa.data import QuestionSet

SPLIT = "train"


class Calibrated(Frozen):
    """Options of a backend that calibrates int8 on training questions: which data set, how many, which random seed."""

    calibration: str = Field(
        "rajpurkar/squad",
        min_length=1,
        description="int8: data whose training questions tell the range of activations: a Hub id, a file that "
        "begins with ./, ../, / or ~, or 'sample'; the default is train.dataset, where the target trains",
    )
    calibration_configuration: str | None = Field(
        None, min_length=1, description="configuration of a Hub data set that has several"
    )
    calibration_revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    calibration_fingerprint: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="what the fingerprint of the whole split must be, in 64 hex digits"
    )
    calibration_samples: int = Field(300, ge=1, description="how many of its questions, drawn by `calibration_seed`")
    calibration_seed: int = Field(0, ge=0, description="seed of that draw, a whole number from 0")
    calibration_max_misplaced: Share = Field(
        0.0, description="share of the questions that may have an answer that is not in place; they are left out"
    )
    calibration_columns: Columns | None = Field(
        None, description="names of the columns or keys that are called otherwise, as in `[train.columns]`"
    )

    @property
    def data(self) -> DatasetRef:
        """The training split that these options name."""
        return DatasetRef(
            self.calibration,
            self.calibration_configuration,
            self.calibration_revision,
            SPLIT,
            fingerprint=self.calibration_fingerprint,
            max_misplaced=self.calibration_max_misplaced,
            columns=self.calibration_columns or SAME_NAMES,
        )

    def with_data(self, data: DatasetRef) -> Self:
        """These options, pinned to the revision and fingerprint of `data`."""
        pins = {"calibration_revision": data.revision, "calibration_fingerprint": data.fingerprint}
        return self.model_copy(update=pins)

    def calibrates(self, runtime: Runtime) -> bool:
        """Whether compiling for `runtime` reads the calibration data."""
        return runtime.dtype == "int8"


def options_record(options: Frozen) -> dict[str, Any]:
    """The options as JSON values for keys and manifests; a path is reduced to its file name.

    `calibration_fingerprint` is left out: it only pins the data, whose fingerprint keys and manifests hold anyway.
    """
    values = options.model_dump(mode="json", exclude={"calibration_fingerprint"})
    if isinstance(options, Calibrated) and hub.is_path(options.calibration):
        values["calibration"] = Path(options.calibration).name
    return values


def questions(options: Calibrated, *, offline: bool = False) -> QuestionSet:
    """The full training split that `options` name."""
    from qabuild.qa import data

    return data.load(options.data, offline=offline)


def draw(options: Calibrated, everything: QuestionSet) -> QuestionSet:
    """The calibration sample of `everything`. Raises BadTarget if there are fewer than `calibration_samples`."""
    from qabuild.qa import data

    return data.subset(everything, options.calibration_samples, options.calibration_seed)


def held_back(options: Calibrated, everything: QuestionSet, count: int) -> QuestionSet:
    """Up to `count` questions outside the calibration sample, to measure the F1 of the quantised model on."""
    from qabuild.qa import data

    sample = {question.id for question in draw(options, everything).questions}
    rest = data.select(everything, [question.id for question in everything.questions if question.id not in sample])
    return data.subset(rest, min(count, len(rest)), options.calibration_seed)


def windows(sample: QuestionSet, tokenizer: Any, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The model inputs `names` of every window of `sample`, cut as the pipeline does: int64 [1, tokens] each."""
    import numpy as np

    from qabuild.qa.pipeline.parameters import Parameters
    from qabuild.qa.pipeline.windows import WindowMaker

    pairs = [(question.question, question.context) for question in sample.questions]
    cut = WindowMaker(tokenizer)(pairs, Parameters().cut(tokenizer))
    return [cut.arrays(np.array([row]), int(cut.length[row]), names) for row in range(len(cut))]


def dataset_record(questions: QuestionSet) -> dict[str, Any]:
    """The manifest's record of a question set: data set, configuration, revision, number of questions, fingerprint."""
    return {
        "dataset": questions.name,
        "configuration": questions.configuration,
        "revision": questions.revision,
        "questions": len(questions),
        "fingerprint": questions.fingerprint,
    }
