"""Attention for training on a CPU, where memory bandwidth is the bottleneck. Imports torch on import.

torch's SDPA kernel for CPUs does not materialise the matrix of scores; for that, its backward pass takes longer than it
saves. transformers' eager attention allocates the matrix anew for every operation, some of them in fp32. This one
allocates it twice, in the dtype of the autocast.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

torch_attention = functional.scaled_dot_product_attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale * query @ key^T + mask) @ value, [batch, heads, tokens, width], with torch's signature.

    Cases that no encoder needs (a causal or boolean mask, grouped-query attention, mixed dtypes) are left to torch.
    """
    boolean = attn_mask is not None and not attn_mask.is_floating_point()
    if is_causal or enable_gqa or boolean or not query.dtype == key.dtype == value.dtype:
        return torch_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    with torch.autocast("cpu", enabled=False):  # it would compute the softmax in fp32
        scores = (query * scale) @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores += attn_mask.to(scores.dtype)
        weights = torch.softmax(scores, dim=-1)
        return functional.dropout(weights, dropout_p) @ value if dropout_p else weights @ value


@contextlib.contextmanager
def frugal_attention() -> Iterator[None]:
    """Inside the block, `attention` replaces torch's scaled_dot_product_attention."""
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = torch_attention
