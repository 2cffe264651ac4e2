"""Options of backends that quantise by questions: which they are, and where they come from. Imports no runtime."""

from __future__ import annotations

from pydantic import Field

from qabuild.backends import Frozen, Runtime


class Calibrated(Frozen):
    """The keys that say which training questions activations are measured on."""

    calibration: str = Field(
        "rajpurkar/squad",
        min_length=1,
        description="int8: questions to measure activations on: a Hub id or 'sample', of which the training split is "
        "taken, or a SQuAD-layout file as in verify.dataset",
    )
    calibration_revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    calibration_samples: int = Field(300, ge=1, description="how many questions, drawn by `calibration_seed`")
    calibration_seed: int = Field(0, ge=0, description="seed of that draw, a whole number from 0")

    def calibrates(self, runtime: Runtime) -> bool:
        """Whether compiling reads those questions at all."""
        return runtime.dtype == "int8"
