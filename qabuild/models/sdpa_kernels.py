"""Which of torch's kernels compute attention."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def of_any_shape(device: str) -> AbstractContextManager[None]:
    """Attention, inside the block, by kernels that take a batch of a new shape as fast as one of a known shape.

    On recent GPUs torch prefers cuDNN's in half precision, which plans anew for each shape. On an H200 with torch 2.11,
    batches of eight questions took four times as long under fp16 autocast as in fp32, and that is the likely cause.
    """
    if device != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    without_cudnn: AbstractContextManager[None] = sdpa_kernel(kernels)
    return without_cudnn
