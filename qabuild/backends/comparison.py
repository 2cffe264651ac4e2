"""Does a compiled model still answer like the one it came from? Asked inside `compile`, before anything is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qabuild.errors import VerificationFailed

SHAPES = ((2, 48), (1, 48), (1, 11), (3, 29), (2, 160), (5, 17))
"""Batch size and greatest length of the probes. The first is the one to trace with: two rows, one of them padded."""


@dataclass(frozen=True)
class Tolerance:
    """A logit may be off by `absolute`, and by `relative` of its own size more."""

    absolute: float
    relative: float


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, 1e-3),
    "fp16": Tolerance(5e-2, 2e-2),
    "bf16": Tolerance(3e-1, 5e-2),
}
"""By the numbers that the compiled model computes in, against the same model in PyTorch."""


def probes(tokenizer: Any, names: Sequence[str], config: Any) -> Iterator[dict[str, Any]]:
    """Inputs of `SHAPES`, torch.int64 [batch, sequence], made of random vocabulary; the same ones every time.

    No probe is longer than the model's positions. In every batch of two rows or more, all but the first are padded.
    """
    import random

    chance = random.Random(0)
    # RoBERTa-type models number their positions from pad_token_id + 1
    positions = (getattr(config, "max_position_embeddings", None) or 512) - 1 - (config.pad_token_id or 0)
    limit = min(tokenizer.model_max_length, positions)
    vocabulary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    for batch_size, length in SHAPES:
        texts = [
            [tokenizer.decode(chance.choices(vocabulary, k=size)) for size in (4, length if row == 0 else length // 3)]
            for row in range(batch_size)
        ]
        encoded = tokenizer(
            *map(list, zip(*texts, strict=True)),
            truncation=True,
            max_length=min(length, limit),
            padding=True,
            return_tensors="pt",
        )
        yield {name: encoded[name] for name in names}


def require_same(
    expected: Callable[..., Any],
    compiled: Callable[..., Any],
    inputs: Sequence[dict[str, Any]],
    tolerance: Tolerance,
    stage: str,
) -> float:
    """The largest difference of a logit where the mask is 1, over all `inputs`, between two models.

    Raises VerificationFailed where one is beyond `tolerance` or not finite; `stage` says in the message which model.
    """
    import torch

    worst = 0.0
    for batch in inputs:
        attended = batch["attention_mask"].bool()
        with torch.inference_mode():
            pairs = list(zip(expected(**batch)[:2], compiled(**batch)[:2], strict=True))
        for reference, logits in pairs:
            reference, logits = (one.float().cpu()[attended] for one in (reference, logits))
            difference = (reference - logits).abs()
            if not bool((difference <= tolerance.absolute + tolerance.relative * reference.abs()).all()):
                raise VerificationFailed(
                    f"{stage} does not compute what the checkpoint does: for inputs of shape "
                    f"{list(attended.shape)} a logit is off by {difference.max().item():.3g}",
                    "this is a defect of the compiler or of the target's dtype: try another backend, or fp32",
                )
            worst = max(worst, difference.max().item())
    return worst
