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

Expected = Callable[[Any], dict[str, int]]
"""From transformers' config of a model to the minimum counts of fused operators."""


def _attention(config: Any) -> dict[str, int]:
    relative = getattr(config, "position_embedding_type", None) not in (None, "absolute")
    return _norms(config) if relative else {"Attention": config.num_hidden_layers, **_norms(config)}


def _all_but_first(config: Any) -> dict[str, int]:
    """One fewer: the first layer reads the embeddings with no norm between, where the attention fusion expects one."""
    expected = _attention(config)
    return expected | {"Attention": expected["Attention"] - 1} if "Attention" in expected else expected


def _norms(config: Any) -> dict[str, int]:
    """There is no fused kernel for attention with relative positions, landmarks or convolutions."""
    return {"SkipLayerNormalization": 2 * config.num_hidden_layers}


def _norms_unless_convolved(config: Any) -> dict[str, int]:
    """With the convolution that larger ones have beside their first layer, ONNX Runtime fuses no norm."""
    return {} if getattr(config, "conv_kernel_size", 0) else _norms(config)


def _gelu(config: Any) -> dict[str, int]:
    """Its norm consists of elementary operations in transformers 4.57, which no fusion recognises."""
    return {"BiasGelu": config.num_hidden_layers} if config.hidden_act == "gelu" else {}


def _convolutions(config: Any) -> dict[str, int]:
    """Its linear layers and norms work on transposed tensors, as convolutions."""
    return {"Gelu": config.num_hidden_layers} if config.hidden_act == "gelu" else {}


def _nothing(config: Any) -> dict[str, int]:
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
    "deberta-v2": _norms_unless_convolved,
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


def check_fused(config: Any, fused: Mapping[str, int], waived: bool) -> dict[str, Any]:
    """Compare the counts with `FUSIONS` for transformers' `config`, and return both for the manifest.

    Raises VerificationFailed if a fusion is missing and that is not waived.
    """
    model_type, layers = config.model_type, config.num_hidden_layers
    if model_type not in FUSIONS:
        return {"fused": dict(fused), "fusions": "unknown model type: not checked"}
    missing = {
        kind: f"{fused.get(kind, 0)} of {least}"
        for kind, least in FUSIONS[model_type](config).items()
        if fused.get(kind, 0) < least
    }
    if missing and not waived:
        counts = ", ".join(f"{kind} {count}" for kind, count in missing.items())
        raise VerificationFailed(
            f"the optimiser left out fusions that a {model_type} with {layers} layers should have: {counts}",
            "install other versions of transformers or onnxruntime; backend.allow_missing_fusions = true accepts this",
        )
    return {"fused": dict(fused), "fusions": {"missing": missing} if missing else "as expected"}
