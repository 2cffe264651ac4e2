"""Options of the DeepSpeed backend."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qabuild.system.frozen import Frozen

ROWS = 64
"""The maximum batch of the injected kernels, in windows: for RoBERTa-base in fp16, at 512 tokens each, their workspace
takes 2 GB."""


class Options(Frozen):
    """Options of `deepspeed.init_inference`."""

    name: Literal["deepspeed"] = Field("deepspeed", description="DeepSpeed-Inference")
    replace_with_kernel_inject: bool = Field(
        False, description="replace transformer layers by DeepSpeed's CUDA kernels; cuda only"
    )
    tensor_parallel: int = Field(1, ge=1, description="how many GPUs share each layer's weights")
