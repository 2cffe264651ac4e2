"""Which encoder architectures each backend supports: one literal table, measured, not guessed.

`tests/test_backends.py` builds every cell of it and holds the result against the eager model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.errors import BadTarget

ORT, OPTIMISED, FP16, TRACED = "onnxruntime", "onnxruntime with level > 0", "onnxruntime in fp16", "torchscript"
OPENVINO = "openvino"
WAYS = ("eager", TRACED, ORT, OPTIMISED, FP16, "deepspeed", OPENVINO)
"""The ways of running that the table tells apart."""

_FULL: dict[str, str] = {}
_NOT_EXPORTED = {ORT: "optimum cannot export it for question answering"}
_NOT_OPTIMISED = {OPTIMISED: "the graph optimiser does not know it; backend.level = 0 exports it as it is"}

ARCHITECTURES: dict[str, dict[str, str]] = {
    "albert": _FULL,
    "bert": _FULL,
    # A graph has full attention at any length, as PyTorch has it up to 704 tokens.
    "big_bird": {FP16: "it sets logits of the question to -1e6, which half precision cannot hold"},
    "camembert": _FULL,
    "convbert": _NOT_OPTIMISED,
    "data2vec-text": _NOT_OPTIMISED,
    "deberta": _FULL,
    "deberta-v2": _FULL,
    "distilbert": _FULL,
    "electra": _FULL,
    "ernie": _NOT_EXPORTED,
    "ibert": _NOT_OPTIMISED,
    "longformer": {
        TRACED: "a trace cannot hold its sliding windows",
        ORT: "the exporter cannot trace it",
        OPENVINO: "a trace cannot hold its sliding windows",
    },
    "megatron-bert": _NOT_OPTIMISED,
    "mobilebert": _NOT_OPTIMISED,
    "modernbert": _NOT_EXPORTED,
    "mpnet": _FULL,
    "nystromformer": _FULL,
    "rembert": _NOT_OPTIMISED,
    "roberta": _FULL,
    "roberta-prelayernorm": _NOT_EXPORTED,
    "roformer": _NOT_OPTIMISED,
    "splinter": _NOT_OPTIMISED,
    "squeezebert": _NOT_OPTIMISED,
    "xlm-roberta": _FULL,
    "xlm-roberta-xl": _NOT_EXPORTED,
}
"""Model type, as config.json states it, to the ways that do not work with it and why. What it lacks is refused."""

KERNEL_INJECTION = ("bert", "roberta")
"""Model types whose layers DeepSpeed replaces rightly. For distilbert it has kernels too, but takes the fourth
positional argument, `output_attentions`, for the mask, so that padding is attended to."""


def check_architecture(way: str, config: Mapping[str, Any]) -> None:
    """Raise BadTarget where the table says that this one of `WAYS` does not support the config's model type.

    An empty config, of a checkpoint that is not looked at yet, passes.
    """
    if not config:
        return
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise BadTarget(
            f"the checkpoint's model_type {model_type!r} is not one of the encoders that qabuild supports",
            f"supported are {', '.join(ARCHITECTURES)}",
        )
    if reason := ARCHITECTURES[model_type].get(way):
        raise BadTarget(
            f"the backend {way} does not support model_type {model_type!r}: {reason}",
            f"these do: {', '.join(other for other in WAYS if supports(other, model_type))}",
        )


def supports(way: str, model_type: str) -> bool:
    """Whether that one of `WAYS` supports the model type; without export, no graph in any form."""
    reasons = ARCHITECTURES[model_type]
    return way not in reasons and not (way in (OPTIMISED, FP16) and ORT in reasons)


def markdown() -> str:
    """The table for people, in Markdown."""
    rows = [("model type", *WAYS), ("---", *(":-:" for _ in WAYS))]
    rows += [(name, *("yes" if supports(way, name) else "no" for way in WAYS)) for name in ARCHITECTURES]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
