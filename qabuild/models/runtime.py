"""Device and dtype of a compiled model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qabuild.system.frozen import Frozen

Device = Literal["cpu", "cuda"]
Dtype = Literal["fp32", "fp16", "bf16", "int8"]


class Runtime(Frozen):
    """The device a compiled model runs on, and the dtype it computes in."""

    device: Device = Field("cpu", description="where the compiled model runs: cpu, cuda")
    dtype: Dtype = Field("fp32", description="numbers it computes in: fp32, fp16, bf16, int8; see the backends")
