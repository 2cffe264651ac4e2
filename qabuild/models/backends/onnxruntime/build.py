"""Builds an ONNX graph in stages: export, optimise, convert the dtype. Each stage is compared with PyTorch.

Imports torch on import: import it inside functions only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.models.backends.logit_check import TOLERANCES, outputs_of, probes, require_same
from qabuild.models.backends.onnxruntime import export, export_optimum, graphs
from qabuild.models.backends.onnxruntime.fusions import check_fused, count_fused
from qabuild.models.backends.onnxruntime.graphs import FILE, to_fp16, to_int8, write
from qabuild.models.backends.onnxruntime.model import load
from qabuild.models.backends.onnxruntime.session import comparison_provider
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.models.pruning.compact import load_compact
from qabuild.models.runtime import Runtime
from qabuild.qa.model_inputs import input_names

if TYPE_CHECKING:
    from qabuild.models.backends.onnxruntime.options import Options
    from qabuild.models.checkpoint.resolve import Checkpoint


def build(checkpoint: Checkpoint, options: Options, runtime: Runtime, scratch: Path, directory: Path) -> dict[str, Any]:
    """Write `model.onnx` into `directory`, with the stages in `scratch`; return the manifest's record."""
    source = Source(checkpoint)
    comparison = Comparison(source, runtime)
    record: dict[str, Any] = {}

    stage = export_stage(source, options, scratch / "exported")
    differences = {"exported": comparison.compare(stage, "the exported graph", "fp32")}
    if options.level > 0:
        stage = optimise_stage(stage, scratch / "optimised", source, options, runtime)
        differences["optimised"] = comparison.compare(stage, "the optimised graph", "fp32")
        record |= check_fused(source.model.config, count_fused(stage / FILE), options.allow_missing_fusions)
    if runtime.dtype != "fp32":
        stage = (to_fp16 if runtime.dtype == "fp16" else to_int8)(stage, scratch / runtime.dtype)
        differences[runtime.dtype] = comparison.compare(stage, f"the {runtime.dtype} graph", runtime.dtype)
    write(stage / FILE, directory / FILE)
    return {
        **record,
        "padding_side": source.tokenizer.padding_side,
        "largest_differences": differences,
        "compared_on": comparison.provider,
    }


class Source:
    """The checkpoint in PyTorch, and the probes that trace and compare it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = load_compact(checkpoint, attention=export.attention(checkpoint.config))
        self.tokenizer = load_tokenizer(checkpoint.directory)
        self.inputs = input_names(self.model, self.tokenizer)
        self.probes = list(probes(self.tokenizer, self.inputs, self.model.config))


def export_stage(source: Source, options: Options, stage: Path) -> Path:
    """Export the checkpoint's graph in fp32 into the new folder `stage`, with the exporter of the options."""
    if options.exporter == "optimum":
        return export_optimum.export(source.checkpoint, stage)
    return export.export(source.model, source.inputs, source.probes[0], stage)


def optimise_stage(exported: Path, stage: Path, source: Source, options: Options, runtime: Runtime) -> Path:
    """Optimise the graph in `exported` into the new folder `stage`, at the level of the options."""
    side = source.tokenizer.padding_side
    if options.exporter == "optimum":
        return export_optimum.optimise(exported, stage, options.level, runtime, side)
    return graphs.optimise(exported, stage, source.model.config, options.level, runtime, side)


class Comparison:
    """The PyTorch model's outputs for the probes, which graphs are compared with."""

    def __init__(self, source: Source, runtime: Runtime) -> None:
        self.config, self.inputs = source.model.config, source.probes
        self.expected = outputs_of(source.model, source.probes)
        self.provider = comparison_provider(runtime)

    def compare(self, stage: Path, name: str, dtype: str) -> float:
        """The largest logit difference of the stage's graph. Raises VerificationFailed if it exceeds the tolerance."""
        graph = load(stage, self.config, self.provider)
        return require_same(self.expected, graph, self.inputs, TOLERANCES[dtype], name)
