"""Builds an ONNX graph in stages: export, optimise, convert the dtype. Each stage is compared with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.models.backends.logit_check import TOLERANCES, outputs_of, probes, require_same
from qabuild.models.backends.onnxruntime.export_optimum import export
from qabuild.models.backends.onnxruntime.fusions import check_fused, count_fused
from qabuild.models.backends.onnxruntime.graphs import FILE, optimise, to_fp16, to_int8, write
from qabuild.models.backends.onnxruntime.session import comparison_provider, load_graph
from qabuild.models.runtime import Runtime

if TYPE_CHECKING:
    from qabuild.models.backends.onnxruntime.options import Options
    from qabuild.models.checkpoint.resolve import Checkpoint


def build(checkpoint: Checkpoint, options: Options, runtime: Runtime, scratch: Path, directory: Path) -> dict[str, Any]:
    """Write `model.onnx` into `directory`, with the stages in `scratch`; return the manifest's record."""
    comparison = Comparison(checkpoint, runtime)
    config = comparison.config
    record: dict[str, Any] = {}

    stage = export(checkpoint.directory, scratch / "exported")
    differences = {"exported": comparison.compare(stage, "the exported graph", "fp32")}
    if options.level > 0:
        stage = optimise(stage, scratch / "optimised", options.level, runtime, comparison.tokenizer.padding_side)
        differences["optimised"] = comparison.compare(stage, "the optimised graph", "fp32")
        fused = count_fused(stage / FILE)
        record |= check_fused(config.model_type, config.num_hidden_layers, fused, options.allow_missing_fusions)
    if runtime.dtype != "fp32":
        stage = (to_fp16 if runtime.dtype == "fp16" else to_int8)(stage, scratch / runtime.dtype)
        differences[runtime.dtype] = comparison.compare(stage, f"the {runtime.dtype} graph", runtime.dtype)
    write(stage / FILE, directory / FILE)
    return {
        **record,
        "padding_side": comparison.tokenizer.padding_side,
        "largest_differences": differences,
        "compared_on": comparison.provider,
    }


class Comparison:
    """The PyTorch model's outputs for the probes, which graphs are compared with."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        from qabuild.models.checkpoint.load import load_model, load_tokenizer
        from qabuild.qa.model_inputs import input_names

        model = load_model(checkpoint)
        self.config = model.config
        self.tokenizer = load_tokenizer(checkpoint.directory)
        self.inputs = list(probes(self.tokenizer, input_names(model, self.tokenizer), model.config))
        self.expected = outputs_of(model, self.inputs)
        self.provider = comparison_provider(runtime)

    def compare(self, stage: Path, name: str, dtype: str) -> float:
        """The largest logit difference of the stage's graph. Raises VerificationFailed if it exceeds the tolerance."""
        graph = load_graph(stage, self.provider)
        return require_same(self.expected, graph, self.inputs, TOLERANCES[dtype], name)
