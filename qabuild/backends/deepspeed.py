"""DeepSpeed-Inference: the checkpoint, and how `deepspeed.init_inference` is to take it over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qabuild.backends import Frozen, Runtime
from qabuild.backends.architectures import check_architecture
from qabuild.errors import BadTarget

if TYPE_CHECKING:
    from qabuild.checkpoint import Checkpoint

CONFIG = "deepspeed.json"

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Options(Frozen):
    """What `deepspeed.init_inference` is told."""

    name: Literal["deepspeed"] = Field("deepspeed", description="DeepSpeed-Inference")
    replace_with_kernel_inject: bool = Field(
        False, description="replace transformer layers by DeepSpeed's CUDA kernels; cuda only"
    )
    tensor_parallel: int = Field(1, ge=1, description="how many GPUs share each layer's weights")


PACKAGES = ("torch", "transformers", "deepspeed")


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for kernel injection or tensor parallelism off the GPU, int8, and unsupported architectures."""
    if runtime.dtype == "int8":
        raise BadTarget(
            "runtime.dtype = 'int8' needs backend.name = 'onnxruntime'", "use fp32, bf16 or fp16 with deepspeed"
        )
    if runtime.device == "cpu" and options.replace_with_kernel_inject:
        raise BadTarget(
            "backend.replace_with_kernel_inject = true needs a GPU: DeepSpeed has no such kernels for the CPU",
            "set backend.replace_with_kernel_inject = false, or runtime.device = 'cuda'",
        )
    check_architecture("deepspeed", config)


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Copy config, weights and tokenizer byte for byte and write `deepspeed.json` beside them."""
    from qabuild.backends._torch import copy_checkpoint
    from qabuild.checkpoint import copy_tokenizer

    check(checkpoint.config, options, runtime)
    settings = {
        "dtype": DTYPES[runtime.dtype],
        "replace_with_kernel_inject": options.replace_with_kernel_inject,
        "tensor_parallel": {"tp_size": options.tensor_parallel},
    }
    copy_checkpoint(checkpoint.directory, directory)
    copy_tokenizer(checkpoint, directory)
    (directory / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return {"init_inference": settings}


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """The model inside DeepSpeed's inference engine. Raises MissingEnvironment without the device."""
    raise NotImplementedError
