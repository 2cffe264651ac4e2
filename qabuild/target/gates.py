"""Gates: how closely an artifact must match the answers of its checkpoint."""

from __future__ import annotations

from pydantic import Field

from qabuild.models.runtime import Dtype
from qabuild.system.frozen import Frozen


class Gates(Frozen):
    """How closely the artifact must match the checkpoint; a failed gate fails the build."""

    min_f1_retention: float = Field(
        0.99, ge=0, le=1, description="least F1 of the artifact over F1 of the checkpoint, 0 to 1"
    )
    max_f1_drop: float | None = Field(
        None, ge=0, le=100, description="most points of F1 that the artifact may lose against the checkpoint"
    )
    max_f1_drop_from_original: float | None = Field(
        None,
        ge=0,
        le=100,
        description="most points of F1 that the artifact may lose against the teacher or, without one, against the "
        "checkpoint before its training",
    )
    confidence: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="confidence level of an interval, such as 0.95; min_f1_retention, max_f1_drop and "
        "max_f1_drop_from_original must then hold for the interval's worse end, not only for what was measured",
    )
    min_agreement: float | None = Field(
        None, ge=0, le=1, description="least share of questions with the same answer, 0 to 1; the default is by dtype"
    )
    max_logit_difference: float | None = Field(
        None,
        ge=0,
        description="largest difference of a logit on the sealed probe inputs; the default is by dtype",
    )
    min_speedup: float | None = Field(
        None, gt=0, description="least samples/s of the artifact over that of the checkpoint, in the same run"
    )
    min_teacher_f1_retention: float | None = Field(
        None, ge=0, le=1, description="least F1 of the distilled checkpoint over F1 of its teacher, 0 to 1"
    )

    def by_dtype(self, dtype: Dtype) -> Gates:
        """These gates, with unset limits filled in from the defaults of `dtype`."""
        agreement, difference = GATES_BY_DTYPE[dtype]
        return self.model_copy(
            update={
                "min_agreement": agreement if self.min_agreement is None else self.min_agreement,
                "max_logit_difference": difference if self.max_logit_difference is None else self.max_logit_difference,
            }
        )


# Least agreement and largest logit difference. fp32 differs only by the order of summation; fp16 has 11 significant
# bits and bf16 has 8, at logits of about 10; int8 is judged by its F1 alone.
GATES_BY_DTYPE: dict[Dtype, tuple[float | None, float | None]] = {
    "fp32": (0.995, 1e-3),
    "fp16": (0.99, 0.1),
    "bf16": (0.97, 1.0),
    "int8": (None, None),
}
