"""Options of the OpenVINO backend, and the precision and instructions that they imply."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qabuild.models.calibration import Calibrated
from qabuild.models.runtime import Runtime

FILE = "openvino_model.xml"
"""The graph, under the name that optimum-intel expects; the weights are in openvino_model.bin."""


class Options(Calibrated):
    """How the graph is quantised to int8; fp32 and bf16 have no options."""

    name: Literal["openvino"] = Field("openvino", description="an OpenVINO graph, converted from PyTorch")
    preset: Literal["mixed", "performance"] = Field(
        "mixed", description="int8: ranges of activations: mixed takes them as they are, performance symmetric"
    )
    smooth_quant_alpha: float = Field(
        0.75, ge=0, le=1, description="int8: how much of the outliers of activations SmoothQuant moves into weights"
    )
    rest: Literal["fp32", "bf16"] = Field("fp32", description="int8: numbers of what is not quantised: fp32, bf16")
    overflow_fix: bool = Field(
        False, description="int8: weights in 7 bits, for processors without VNNI, whose sums of 8 bits overflow"
    )
    accuracy_drop: float | None = Field(
        None, gt=0, description="int8: most points of F1 that may be lost on held-back training questions"
    )


def needs(options: Options, runtime: Runtime) -> list[str]:
    """The keys of `qabuild.system.machine.FAST` whose instructions an x86 processor must have."""
    dtypes = []
    if runtime.dtype == "int8" and not options.overflow_fix:
        dtypes.append("int8")
    if "bf16" in (runtime.dtype, options.rest):
        dtypes.append("bf16")
    return dtypes


def precision(options: Options, runtime: Runtime) -> str:
    """OpenVINO's name for the dtype of unquantised operations."""
    return "bf16" if "bf16" in (runtime.dtype, options.rest) else "f32"
