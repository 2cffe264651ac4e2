"""Which SDPA (scaled dot-product attention) kernels torch may use."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


def of_any_shape(device: str) -> AbstractContextManager[None]:
    """Inside the block, restrict SDPA to kernels that run a batch of a new shape as fast as one of a known shape.

    On recent GPUs torch prefers cuDNN's kernel in half precision, which builds an execution plan for each new shape. On
    an H200 with torch 2.11, batches of eight questions took four times as long under fp16 autocast as in fp32; the
    plans are the likely cause.
    """
    if device != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    without_cudnn: AbstractContextManager[None] = sdpa_kernel(kernels)
    return without_cudnn
