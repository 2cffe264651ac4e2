"""Attention for a training on a CPU, where moving memory takes longer than multiplying. Imports torch at once.

torch's own attention for CPUs makes no matrix of scores, and its backward pass takes longer for that than all it saves;
transformers' eager one makes that matrix anew with every operation, some of them in fp32. This one makes it twice, in
the numbers of the autocast.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

torchs = functional.scaled_dot_product_attention


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
    """softmax(scale * query @ key^T + mask) @ value, [batch, heads, tokens, width], as torch's function has it.

    What no encoder asks for, a causal or boolean mask, shared keys, mixed numbers, is left to torch.
    """
    boolean = attn_mask is not None and not attn_mask.is_floating_point()
    if is_causal or enable_gqa or boolean or not query.dtype == key.dtype == value.dtype:
        return torchs(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scale = 1 / math.sqrt(query.size(-1)) if scale is None else scale
    with torch.autocast("cpu", enabled=False):  # it would have the softmax in fp32
        scores = (query * scale) @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores += attn_mask.to(scores.dtype)
        shares = torch.softmax(scores, dim=-1)
        return functional.dropout(shares, dropout_p) @ value if dropout_p else shares @ value


@contextlib.contextmanager
def frugal_attention() -> Iterator[None]:
    """Let models attend by `attention`, those that attend by torch's function at all."""
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = torchs
