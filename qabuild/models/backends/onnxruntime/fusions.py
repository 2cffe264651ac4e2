"""What the graph optimiser fuses, by model type: measured at level 2 with 2 and 3 layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qabuild.errors import VerificationFailed

Expected = Callable[[int], dict[str, int]]
"""From the number of layers to the least counts of fused operators."""


def _attention(layers: int) -> dict[str, int]:
    return {"Attention": layers, "SkipLayerNormalization": 2 * layers}


def _albert(layers: int) -> dict[str, int]:
    """The first layer reads a projection of the embeddings, where the fusion of attention looks for a norm."""
    return {"Attention": layers - 1, "SkipLayerNormalization": 2 * layers}


def _norms(layers: int) -> dict[str, int]:
    """No kernel has this attention: it has relative positions, or landmarks."""
    return {"SkipLayerNormalization": 2 * layers}


def _deberta(layers: int) -> dict[str, int]:
    """Its norm is written out in elementary operations, which no fusion recognises."""
    return {"BiasGelu": layers}


FUSIONS: dict[str, Expected] = {
    "albert": _albert,
    "bert": _attention,
    "big_bird": _attention,
    "camembert": _attention,
    "deberta": _deberta,
    "deberta-v2": _norms,
    "distilbert": _attention,
    "electra": _attention,
    "mpnet": _norms,
    "nystromformer": _norms,
    "roberta": _attention,
    "xlm-roberta": _attention,
}


def count_fused(model: Path) -> dict[str, int]:
    """How many nodes of each kind the graph in that file has that only ONNX Runtime knows: those are fused ones."""
    import onnx

    nodes = onnx.load(model, load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes if node.domain == "com.microsoft")
    return dict(sorted(counts.items()))


def check_fused(model_type: str, layers: int, fused: Mapping[str, int], waived: bool) -> dict[str, Any]:
    """What is to be recorded: the counts, and how they compare with the table.

    Raises VerificationFailed where a fusion is missing and that is not waived.
    """
    if model_type not in FUSIONS:
        return {"fused": dict(fused), "fusions": "unknown model type: not checked"}
    missing = {
        kind: f"{fused.get(kind, 0)} of {least}"
        for kind, least in FUSIONS[model_type](layers).items()
        if fused.get(kind, 0) < least
    }
    if missing and not waived:
        counts = ", ".join(f"{kind} {count}" for kind, count in missing.items())
        raise VerificationFailed(
            f"the optimiser left out fusions that a {model_type} with {layers} layers should have: {counts}",
            "compare the versions of torch, optimum and onnxruntime; backend.allow_missing_fusions = true goes on",
        )
    return {"fused": dict(fused), "fusions": {"missing": missing} if missing else "as expected"}
