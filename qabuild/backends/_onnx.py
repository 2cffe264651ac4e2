"""From a checkpoint to an ONNX graph: exported, optimised, then in fewer bits. Each is held against PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.backends import Runtime
from qabuild.backends._graphs import FILE, export, optimise, to_fp16, to_int8, write
from qabuild.backends._quiet import quiet_logging
from qabuild.backends.comparison import TOLERANCES, probes, require_same
from qabuild.backends.fusions import check_fused, count_fused

if TYPE_CHECKING:
    from qabuild.backends.onnxruntime import Options
    from qabuild.checkpoint import Checkpoint


def build(checkpoint: Checkpoint, options: Options, runtime: Runtime, scratch: Path, directory: Path) -> dict[str, Any]:
    """Write `model.onnx` into `directory`, with the stages in `scratch`; return what is to be recorded."""
    comparison = Comparison(checkpoint, runtime)
    config = comparison.reference.config
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
    """The PyTorch model, and inputs to hold graphs against it."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        from qabuild.backends._torch import inputs_of
        from qabuild.checkpoint import load_model, load_tokenizer

        self.reference = load_model(checkpoint)
        self.tokenizer = load_tokenizer(checkpoint.directory)
        names = inputs_of(self.reference, self.tokenizer)
        self.inputs = list(probes(self.tokenizer, names, self.reference.config))
        self.provider = provider_here(runtime)

    def compare(self, stage: Path, name: str, dtype: str) -> float:
        """Largest logit difference of that stage's graph. Raises VerificationFailed where it is beyond tolerance."""
        from optimum.onnxruntime import ORTModelForQuestionAnswering

        graph = ORTModelForQuestionAnswering.from_pretrained(stage, provider=self.provider, local_files_only=True)
        return require_same(self.reference, graph, self.inputs, TOLERANCES[dtype], name)


def provider_here(runtime: Runtime) -> str:
    """The provider of the runtime's device where this machine has it, else the CPU's, which runs every graph."""
    import onnxruntime

    if runtime.device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return "CUDAExecutionProvider"
    return "CPUExecutionProvider"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporter, optimiser and quantiser say on their way; errors are raised, not logged."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        with quiet_logging(logging.ERROR), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)
