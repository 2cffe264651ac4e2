"""Does a compiled model compute what the checkpoint does? Asked in `compile`, of every stage, before it is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qabuild.errors import VerificationFailed
from qabuild.system.quiet import quiet_logging

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

    def row(length: int) -> dict[str, Any]:
        """Truncated, not counted: a tokenizer seldom makes of a decoded text the tokens that it was decoded from."""
        question, context = (tokenizer.decode(chance.choices(vocabulary, k=size)) for size in (4, 2 * length))
        return dict(tokenizer(question, context, truncation=True, max_length=length, return_attention_mask=True))

    for batch_size, greatest in SHAPES:
        length = min(greatest, limit)
        rows = [row(length if number == 0 else length // 2) for number in range(batch_size)]
        with quiet_logging():  # it advises to pad in one go
            yield dict(tokenizer.pad({name: [row[name] for row in rows] for name in names}, return_tensors="pt"))


def _positions(config: Any) -> int:
    """How many tokens a row may have. RoBERTa's kind numbers its positions from pad_token_id + 1."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    return positions - 1 - (config.pad_token_id or 0) if positions > 0 else 512


def answers(model: Callable[..., Any], inputs: Sequence[dict[str, Any]]) -> list[Any]:
    """What a model of torch gives for each of `inputs`."""
    import torch

    with torch.inference_mode():
        return [model(**batch) for batch in inputs]


def require_same(
    expected: Sequence[Any],
    compiled: Callable[..., Any],
    inputs: Sequence[dict[str, Any]],
    tolerance: Tolerance,
    what: str,
) -> float:
    """The largest difference of a logit where the mask is 1, between `expected` and what `compiled` makes of `inputs`.

    Raises VerificationFailed, naming `what`, where `compiled` cannot take a shape, gives a logit that is not finite,
    or one beyond `tolerance`.
    """
    return max(
        _difference(output, _run(compiled, batch, what), batch, tolerance, what)
        for output, batch in zip(expected, inputs, strict=True)
    )


def _difference(expected: Any, found: Any, batch: dict[str, Any], tolerance: Tolerance, what: str) -> float:
    import torch

    attended = batch["attention_mask"].bool()
    wanted, given = (
        torch.stack([output["start_logits"], output["end_logits"]]).float().cpu()[:, attended]
        for output in (expected, found)
    )
    difference = (wanted - given).abs()
    allowed = tolerance.absolute + tolerance.relative * wanted.abs()
    if bool((difference <= allowed).all()) and bool(torch.isfinite(given).all()):
        return float(difference.max())
    raise VerificationFailed(
        f"{what} does not compute what the checkpoint does: with inputs of shape {list(attended.shape)}, "
        f"logits are off by {float(difference.max()):.3g}",
        "try runtime.dtype = 'fp32', another backend, or other versions of the packages that compile",
    )


def _run(compiled: Callable[..., Any], batch: dict[str, Any], what: str) -> Any:
    """Runtimes raise exceptions of their own for a graph that has a shape built in."""
    device = getattr(compiled, "device", "cpu")
    try:
        return compiled(**{name: tensor.to(device) for name, tensor in batch.items()})
    except Exception as error:
        raise VerificationFailed(
            f"{what} cannot take inputs of shape {list(batch['input_ids'].shape)}: {str(error).strip()[-200:]}",
            "the compiler built a shape into it: try another backend",
        ) from error
