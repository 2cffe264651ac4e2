"""Compares the logits of a compiled model with the checkpoint's. `compile` runs it after every stage."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qabuild.errors import VerificationFailed
from qabuild.models.checkpoint.interface import positions
from qabuild.system.quiet import quiet_logging

SHAPES = ((2, 48), (1, 48), (1, 11), (3, 29), (2, 160), (5, 17))
"""Batch size and maximum length of each probe. The first is the example input for tracing: two rows, one padded."""

LONGEST = max(length for _, length in SHAPES)


@dataclass(frozen=True)
class Tolerance:
    """A logit may differ by `absolute + relative * abs(logit)`."""

    absolute: float
    relative: float


TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(1e-3, 1e-3),
    "fp16": Tolerance(0.1, 0.02),
    "bf16": Tolerance(1.0, 0.05),
    "int8": Tolerance(5.0, 0.5),
}
"""By dtype. That of int8 only catches nonsense: the verification measures what quantisation costs in F1. In bf16, which
has 8 significant bits, logits of random tokens moved by 0.8 in a MiniLM that was trained after it was pruned."""


def probes(tokenizer: Any, names: Sequence[str], config: Any) -> Iterator[dict[str, Any]]:
    """Inputs `names` of `SHAPES`, torch.int64 [batch, sequence], of random tokens drawn with a fixed random seed.

    None is longer than the model's positions. In every batch of two rows or more, all rows but the first are padded,
    on the tokenizer's padding side.
    """
    generator = random.Random(0)
    vocabulary = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    limit = min(tokenizer.model_max_length, positions(config) or LONGEST)

    def row(length: int) -> dict[str, Any]:
        """Truncated to `length`, since a decoded text seldom tokenizes to the same number of tokens."""
        question, context = (tokenizer.decode(generator.choices(vocabulary, k=size)) for size in (4, 2 * length))
        return dict(tokenizer(question, context, truncation=True, max_length=length, return_attention_mask=True))

    for batch_size, longest in SHAPES:
        length = min(longest, limit)
        rows = [row(length if number == 0 else length // 2) for number in range(batch_size)]
        with quiet_logging():  # the tokenizer advises padding in its call
            yield dict(tokenizer.pad({name: [row[name] for row in rows] for name in names}, return_tensors="pt"))


def outputs_of(model: Callable[..., Any], inputs: Sequence[dict[str, Any]]) -> list[Any]:
    """The outputs of a torch model for each batch of `inputs`."""
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
    """The largest absolute difference of a logit, where the mask is 1, between `expected` and `compiled` on `inputs`.

    Raises VerificationFailed, naming `what`, if `compiled` fails on a shape, or if a logit is not finite or differs by
    more than `tolerance`.
    """
    return max(
        _difference(reference, _run(compiled, batch, what), batch, tolerance, what)
        for reference, batch in zip(expected, inputs, strict=True)
    )


def _difference(expected: Any, output: Any, batch: dict[str, Any], tolerance: Tolerance, what: str) -> float:
    import torch

    attended = batch["attention_mask"].bool()
    reference, compiled = (
        torch.stack([logits["start_logits"], logits["end_logits"]]).float().cpu()[:, attended]
        for logits in (expected, output)
    )
    difference = (reference - compiled).abs()
    allowed = tolerance.absolute + tolerance.relative * reference.abs()
    if bool((difference <= allowed).all()) and bool(torch.isfinite(compiled).all()):
        return float(difference.max())
    raise VerificationFailed(
        f"{what} differs from the checkpoint: with inputs of shape {list(attended.shape)}, "
        f"logits are off by {float(difference.max()):.3g}",
        "try runtime.dtype = 'fp32', another backend, or other versions of the packages that compile",
    )


def _run(compiled: Callable[..., Any], batch: dict[str, Any], what: str) -> Any:
    """Run a batch. A runtime raises an exception of its own if the graph has a fixed shape."""
    device = getattr(compiled, "device", "cpu")
    try:
        return compiled(**{name: tensor.to(device) for name, tensor in batch.items()})
    except Exception as error:
        raise VerificationFailed(
            f"{what} cannot take inputs of shape {list(batch['input_ids'].shape)}: {str(error).strip()[-200:]}",
            "the compiler fixed a shape: try another backend",
        ) from error
