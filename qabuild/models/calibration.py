"""Calibration: the training questions that activations are measured on, so that 8 bits fit them. Imports no runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from qabuild.models.runtime import Runtime
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.system import hub
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.qa.data import QuestionSet

SPLIT = "train"


class Calibrated(Frozen):
    """Options of a backend that quantises by questions: which those are."""

    calibration: str = Field(
        "rajpurkar/squad",
        min_length=1,
        description="int8: data whose training questions tell the range of activations: a Hub id, a SQuAD-layout file "
        "that begins with ./, ../, / or ~, or 'sample'",
    )
    calibration_revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    calibration_fingerprint: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="what the fingerprint of the whole split must be"
    )
    calibration_samples: int = Field(300, ge=1, description="how many of its questions, drawn by `calibration_seed`")
    calibration_seed: int = Field(0, ge=0, description="seed of that draw, a whole number from 0")

    @property
    def data(self) -> DatasetRef:
        """All of the training questions that they name."""
        return DatasetRef(self.calibration, self.calibration_revision, SPLIT, fingerprint=self.calibration_fingerprint)

    def with_data(self, data: DatasetRef) -> Self:
        """These options at the revision and fingerprint of `data`."""
        pins = {"calibration_revision": data.revision, "calibration_fingerprint": data.fingerprint}
        return self.model_copy(update=pins)

    def calibrates(self, runtime: Runtime) -> bool:
        """Whether compiling reads those questions."""
        return runtime.dtype == "int8"


def sealed(options: Frozen) -> dict[str, Any]:
    """The options as JSON values for keys and manifests: a file goes by its name, wherever it lies.

    The fingerprint only refuses other bytes than those that keys and manifests tell of anyway.
    """
    values = options.model_dump(mode="json", exclude={"calibration_fingerprint"})
    if isinstance(options, Calibrated) and hub.is_path(options.calibration):
        values["calibration"] = Path(options.calibration).name
    return values


def questions(options: Calibrated, *, offline: bool = False) -> QuestionSet:
    """The whole set of training questions that `options` name."""
    from qabuild.qa import data

    return data.load(options.data, offline=offline)


def draw(options: Calibrated, everything: QuestionSet) -> QuestionSet:
    """Those to calibrate on. Raises BadTarget where there are fewer than asked for."""
    from qabuild.qa import data

    return data.subset(everything, options.calibration_samples, options.calibration_seed)


def held_back(options: Calibrated, everything: QuestionSet, count: int) -> QuestionSet:
    """Up to `count` others, to judge by what calibration made of the model."""
    from qabuild.qa import data

    drawn = {question.id for question in draw(options, everything).questions}
    others = data.select(everything, [question.id for question in everything.questions if question.id not in drawn])
    return data.subset(others, min(count, len(others)), options.calibration_seed)


def windows(drawn: QuestionSet, tokenizer: Any, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The inputs `names` of every window of those questions, as the pipeline cuts them: int64 [1, tokens] each."""
    import numpy as np

    from qabuild.qa.pipeline.parameters import Parameters
    from qabuild.qa.pipeline.windows import WindowMaker

    pairs = [(question.question, question.context) for question in drawn.questions]
    made = WindowMaker(tokenizer)(pairs, Parameters().cut(tokenizer))
    return [made.arrays(np.array([row]), int(made.length[row]), names) for row in range(len(made))]


def described(drawn: QuestionSet) -> dict[str, Any]:
    """What the manifest says of the questions that were used."""
    return {
        "dataset": drawn.name,
        "revision": drawn.revision,
        "questions": len(drawn),
        "fingerprint": drawn.fingerprint,
    }
