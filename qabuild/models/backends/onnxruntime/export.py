"""Exports a model to ONNX with torch's exporter of TorchScript graphs. Imports torch on import."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from qabuild.models.backends.onnxruntime.graphs import FILE, OUTPUTS, save, state_heads
from qabuild.models.backends.torch_model import Positional

OPSET = 18


def attention(config: Mapping[str, Any]) -> Literal["eager", "sdpa"]:
    """The implementation of attention whose graph ONNX Runtime fuses: eager, which every architecture has.

    The exception is the eager DistilBERT of transformers 4.57. It fills masked scores in place of adding a mask, and
    ONNX Runtime's fusion (1.28 to 1.32) looks for the value added in a node that fills.
    """
    from transformers.models.distilbert import modeling_distilbert

    fills = config.get("model_type") == "distilbert" and hasattr(modeling_distilbert, "MultiHeadSelfAttention")
    return "sdpa" if fills else "eager"


def export(model: Any, inputs: Sequence[str], example: Mapping[str, Any], stage: Path) -> Path:
    """Export the model as an fp32 graph into the new folder `stage`.

    Its inputs are those of `inputs` that the result depends on, int64; its outputs the logits, float32; all of them
    [batch, sequence]. `example` is a batch of several padded rows.
    """
    import onnx

    axes = {0: "batch", 1: "sequence"}
    exported = stage / "exported"
    exported.mkdir(parents=True)
    with torch.no_grad():
        torch.onnx.export(
            Positional(model, inputs).eval(),
            tuple(example[name] for name in inputs),
            str(exported / FILE),  # beyond 2 GiB, a Path is refused
            input_names=list(inputs),
            output_names=list(OUTPUTS),
            dynamic_axes=dict.fromkeys((*inputs, *OUTPUTS), axes),
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(exported / FILE)  # beyond 2 GiB, each tensor has a file of its own
    state_heads(graph)
    save(graph, stage / FILE)
    shutil.rmtree(exported)
    return stage
