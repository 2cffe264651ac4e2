"""The fusions expected of the graph optimiser, by model type.

They are the least of transformers 4.57 and 5, measured at levels 1 and 2 and for a GPU, with 2 and 3 layers, by
`benchmarks/onnx_export.py`. Further ones, such as an activation with its bias, depend on the checkpoint's config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qabuild.errors import VerificationFailed

Expected = Callable[[int], dict[str, int]]
"""From the number of layers to the minimum counts of fused operators."""


def _attention(layers: int) -> dict[str, int]:
    return {"Attention": layers, "SkipLayerNormalization": 2 * layers}


def _all_but_first(layers: int) -> dict[str, int]:
    """One fewer: the first layer reads the embeddings with no norm between, where the attention fusion expects one."""
    return {"Attention": layers - 1, "SkipLayerNormalization": 2 * layers}


def _norms(layers: int) -> dict[str, int]:
    """There is no fused kernel for attention with relative positions, landmarks or convolutions."""
    return {"SkipLayerNormalization": 2 * layers}


def _gelu(layers: int) -> dict[str, int]:
    """Its norm consists of elementary operations in transformers 4.57, which no fusion recognises."""
    return {"BiasGelu": layers}


def _convolutions(layers: int) -> dict[str, int]:
    """Its linear layers and norms work on transposed tensors, as convolutions."""
    return {"Gelu": layers}


def _nothing(layers: int) -> dict[str, int]:
    """It scales in place of norms, and its activation is ReLU."""
    return {}


FUSIONS: dict[str, Expected] = {
    "albert": _all_but_first,
    "bert": _attention,
    "big_bird": _attention,
    "camembert": _attention,
    "convbert": _norms,
    "data2vec-text": _attention,
    "deberta": _gelu,
    "deberta-v2": _norms,
    "distilbert": _attention,
    "electra": _attention,
    "ernie": _attention,
    "ibert": _attention,
    "megatron-bert": _all_but_first,
    "mobilebert": _nothing,
    "modernbert": _norms,
    "mpnet": _norms,
    "nystromformer": _norms,
    "rembert": _attention,
    "roberta": _attention,
    "roberta-prelayernorm": _attention,
    "roformer": _norms,
    "splinter": _norms,
    "squeezebert": _convolutions,
    "xlm-roberta": _attention,
    "xlm-roberta-xl": _attention,
}


def count_fused(model: Path) -> dict[str, int]:
    """Count the nodes of ONNX Runtime's own operators in the graph, by operator: those are the fused ones."""
    import onnx

    nodes = onnx.load(model, load_external_data=False).graph.node
    counts = Counter(node.op_type for node in nodes if node.domain == "com.microsoft")
    return dict(sorted(counts.items()))


def check_fused(model_type: str, layers: int, fused: Mapping[str, int], waived: bool) -> dict[str, Any]:
    """Compare the counts with `FUSIONS`, and return both for the manifest.

    Raises VerificationFailed if a fusion is missing and that is not waived.
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
            "install other versions of transformers or onnxruntime; backend.allow_missing_fusions = true accepts this",
        )
    return {"fused": dict(fused), "fusions": {"missing": missing} if missing else "as expected"}
