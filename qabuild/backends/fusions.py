"""What the graph optimiser should have fused, by model type: measured at level 2 with 2 and 3 layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qabuild.errors import VerificationFailed

Expected = Callable[[int], dict[str, int]]
"""From the number of layers to the counts of fused operators."""


def _encoder(layers: int) -> dict[str, int]:
    return {"Attention": layers, "SkipLayerNormalization": 2 * layers}


def _albert(layers: int) -> dict[str, int]:
    """The first layer reads a projection, not a norm, where the fusion of attention looks for one."""
    return {"Attention": layers - 1, "SkipLayerNormalization": 2 * layers}


def _relative(layers: int) -> dict[str, int]:
    """Attention with relative positions is not fused."""
    return {"Attention": 0, "SkipLayerNormalization": 2 * layers}


FUSIONS: dict[str, Expected] = {
    "albert": _albert,
    "bert": _encoder,
    "big_bird": _encoder,
    "camembert": _encoder,
    "deberta-v2": _relative,
    "distilbert": _encoder,
    "electra": _encoder,
    "mpnet": _relative,
    "roberta": _encoder,
    "xlm-roberta": _encoder,
}

ALIKE = ("Gelu", "FastGelu", "BiasGelu", "EmbedLayerNormalization", "Attention", "SkipLayerNormalization")
"""Fused operators that are counted for the record."""


def count_fusions(model: Path) -> dict[str, int]:
    """How many nodes of each fused kind the graph in that file has."""
    import onnx

    nodes = onnx.load(model, load_external_data=False).graph.node
    return dict(sorted(Counter(node.op_type for node in nodes if node.domain == "com.microsoft").items()))


def require_fusions(config: Mapping[str, Any], fused: Mapping[str, int], waived: bool) -> dict[str, Any]:
    """What is to be recorded. Raises VerificationFailed where fusions are missing and that is not waived."""
    expected = FUSIONS.get(config["model_type"])
    if expected is None:
        return {"fused": dict(fused), "fusions": "unknown model type: not checked"}
    layers = config.get("num_hidden_layers", config.get("n_layers"))
    missing = {
        kind: f"{fused.get(kind, 0)} of {count}"
        for kind, count in expected(int(layers)).items()
        if fused.get(kind, 0) < count
    }
    if missing and not waived:
        raise VerificationFailed(
            f"the optimiser left out fusions of {config['model_type']}: "
            + ", ".join(f"{kind} {found}" for kind, found in missing.items()),
            "another version of onnxruntime or torch may fuse them; backend.allow_missing_fusions = true keeps the graph",
        )
    return {"fused": dict(fused), "fusions": f"missing: {missing}" if missing else "as expected"}
