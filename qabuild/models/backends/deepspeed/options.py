"""Options of the DeepSpeed backend."""

from __future__ import annotations

from typing import Literal, NotRequired

from pydantic import Field, with_config
from typing_extensions import TypedDict

from qabuild.system.documents import CLOSED, Count
from qabuild.system.frozen import Frozen

ROWS = 64
"""The maximum batch of the injected kernels, in windows: for RoBERTa-base in fp16, at 512 tokens each, their workspace
takes 2 GB."""


@with_config(CLOSED)
class Settings(TypedDict):
    """The arguments of `deepspeed.init_inference` that are sealed; others could make it read further files."""

    dtype: Literal["float32", "float16", "bfloat16"]
    replace_with_kernel_inject: bool
    tensor_parallel: dict[Literal["tp_size"], Count]
    keep_module_on_host: bool
    max_out_tokens: NotRequired[Count]
    min_out_tokens: NotRequired[Count]


class Options(Frozen):
    """Options of `deepspeed.init_inference`."""

    name: Literal["deepspeed"] = Field("deepspeed", description="DeepSpeed-Inference")
    replace_with_kernel_inject: bool = Field(
        False, description="replace transformer layers by DeepSpeed's CUDA kernels; cuda only"
    )
    tensor_parallel: int = Field(1, ge=1, description="how many GPUs share each layer's weights")
