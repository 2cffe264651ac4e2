"""Does a compiled model compute what the checkpoint does? Asked in `compile`, of every stage, before it is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qabuild.errors import VerificationFailed

SHAPES = ((2, 48), (1, 48), (1, 11), (3, 29), (2, 160), (5, 17))
"""Batch size and greatest length of the probes. The first is the one to trace with: two rows, one of them padded."""


@dataclass(frozen=True)
class Tolerance:
    """A logit may be off by `absolute`, and by `relative` of its own size besides."""

    absolute: float
    relative: float


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, 1e-3),
    "fp16": Tolerance(0.1, 0.02),
    "bf16": Tolerance(0.3, 0.05),
    "int8": Tolerance(5.0, 0.5),
}
"""By the numbers computed in. What int8 costs in answers is for the verification to judge; here it must make sense."""


def probes(tokenizer: Any, names: Sequence[str], config: Any) -> Iterator[dict[str, Any]]:
    """Inputs of `SHAPES`, torch.int64 [batch, sequence], made of random vocabulary; the same ones every time.

    None is longer than the model's positions. In every batch of two rows or more, all but the first are padded, on
    the tokenizer's side.
    """
    chance = random.Random(0)
    vocabulary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    limit = min(tokenizer.model_max_length, _positions(config))
    for batch_size, length in SHAPES:
        sizes = [length, *[length // 3] * (batch_size - 1)]
        questions = [tokenizer.decode(chance.choices(vocabulary, k=4)) for _ in sizes]
        contexts = [tokenizer.decode(chance.choices(vocabulary, k=size)) for size in sizes]
        encoded = tokenizer(
            questions, contexts, truncation=True, max_length=min(length, limit), padding=True, return_tensors="pt"
        )
        yield {name: encoded[name] for name in names}


def _positions(config: Any) -> int:
    """How many tokens a row may have. RoBERTa's kind numbers its positions from pad_token_id + 1."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    return positions - 1 - (config.pad_token_id or 0) if positions > 0 else 512


def require_same(
    reference: Callable[..., Any],
    compiled: Callable[..., Any],
    inputs: Sequence[dict[str, Any]],
    tolerance: Tolerance,
    what: str,
) -> float:
    """The largest difference of a logit where the mask is 1, over all `inputs`, between two models.

    Raises VerificationFailed, naming `what`, where `compiled` cannot take a shape, gives a logit that is not finite,
    or one beyond `tolerance`.
    """
    import torch

    worst = 0.0
    for batch in inputs:
        shape = list(batch["input_ids"].shape)
        with torch.inference_mode():
            expected = reference(**batch)
            found = _run(compiled, batch, what)
        attended = batch["attention_mask"].bool()
        for name in ("start_logits", "end_logits"):
            wanted, given = (output[name].float().cpu()[attended] for output in (expected, found))
            difference = (wanted - given).abs()
            allowed = tolerance.absolute + tolerance.relative * wanted.abs()
            if not bool(torch.isfinite(given).all()) or bool((difference > allowed).any()):
                raise VerificationFailed(
                    f"{what} does not compute what the checkpoint does: with inputs of shape {shape}, "
                    f"{name} are off by {difference.max().item():.3g}",
                    "try runtime.dtype = 'fp32', another backend, or other versions of the packages that compile",
                )
            worst = max(worst, difference.max().item())
    return worst


def _run(compiled: Callable[..., Any], batch: dict[str, Any], what: str) -> Any:
    """Runtimes raise exceptions of their own for a graph that has a shape built in."""
    try:
        return compiled(**{name: tensor.to(getattr(compiled, "device", "cpu")) for name, tensor in batch.items()})
    except Exception as error:
        raise VerificationFailed(
            f"{what} cannot take inputs of shape {list(batch['input_ids'].shape)}: {str(error).strip()[-200:]}",
            "the compiler built a shape into it: try another backend",
        ) from error
