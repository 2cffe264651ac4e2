"""Which encoder architectures each backend supports, in one literal table; measured, not guessed.

`tests/test_backends.py` holds every line of it against the eager model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.errors import BadTarget

_NOT_OPTIMISED = "the graph optimiser does not implement it; backend.level = 0 exports it as it is"

ARCHITECTURES: dict[str, dict[str, str]] = {
    "albert": {},
    "bert": {},
    "big_bird": {},
    "camembert": {},
    "convbert": {"onnxruntime, optimised": _NOT_OPTIMISED},
    "deberta-v2": {},
    "distilbert": {},
    "electra": {},
    "longformer": {
        "onnxruntime": "the exporter cannot trace it",
        "torchscript": "its sliding windows cannot be traced",
    },
    "mobilebert": {"onnxruntime, optimised": _NOT_OPTIMISED},
    "mpnet": {},
    "roberta": {},
    "xlm-roberta": {},
}
"""Model type (as config.json states it) to what does not work with it and why; empty where all of it works."""


def check_architecture(way: str, config: Mapping[str, Any]) -> None:
    """Raise BadTarget where the table says that this way of running does not support the config's model type.

    `way` is a backend's name, or one of its modes as the table names it. An empty config, of a checkpoint that is
    not known yet, passes.
    """
    model_type = config.get("model_type")
    if not config:
        return
    if model_type not in ARCHITECTURES:
        raise BadTarget(
            f"the checkpoint's model type {model_type!r} is not an encoder that qabuild supports",
            f"supported are {', '.join(ARCHITECTURES)}",
        )
    if reason := ARCHITECTURES[model_type].get(way):
        raise BadTarget(
            f"backend {way} does not support model type {model_type!r}: {reason}",
            "backend.name = 'eager' runs every supported architecture",
        )
