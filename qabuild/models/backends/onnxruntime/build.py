"""From a checkpoint to an ONNX graph: exported, optimised, then in fewer bits. Each is held against PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.models.backends import Runtime
from qabuild.models.backends.logit_check import TOLERANCES, answers, probes, require_same
from qabuild.models.backends.onnxruntime.fusions import check_fused, count_fused
from qabuild.models.backends.onnxruntime.graphs import FILE, export, optimise, to_fp16, to_int8, write
from qabuild.system import machine
from qabuild.system.quiet import quiet_logging

if TYPE_CHECKING:
    from qabuild.models.backends.onnxruntime import Options
    from qabuild.models.checkpoint.resolve import Checkpoint


def build(checkpoint: Checkpoint, options: Options, runtime: Runtime, scratch: Path, directory: Path) -> dict[str, Any]:
    """Write `model.onnx` into `directory`, with the stages in `scratch`; return what is to be recorded."""
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
    """What the PyTorch model answers to the probes, to hold graphs against it."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        from qabuild.models.backends.torch_model import inputs_of
        from qabuild.models.checkpoint.resolve import load_model, load_tokenizer

        model = load_model(checkpoint)
        self.config = model.config
        self.tokenizer = load_tokenizer(checkpoint.directory)
        self.inputs = list(probes(self.tokenizer, inputs_of(model, self.tokenizer), model.config))
        self.expected = answers(model, self.inputs)
        self.provider = provider_here(runtime)

    def compare(self, stage: Path, name: str, dtype: str) -> float:
        """Largest logit difference of that stage's graph. Raises VerificationFailed where it is beyond tolerance."""
        graph = load_graph(stage, self.provider)
        return require_same(self.expected, graph, self.inputs, TOLERANCES[dtype], name)


def load_graph(directory: Path, provider: str) -> Any:
    """The ORTModelForQuestionAnswering in `directory`, with errors as the only thing that its session logs."""
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForQuestionAnswering

    settings = SessionOptions()
    settings.log_severity_level = 3  # with CUDA, every session would warn of nodes that stay on the CPU
    # ONNX Runtime multiplies fp32 in TF32 unless told not to; PyTorch, that it is held against, does not.
    provider_options = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else None
    return ORTModelForQuestionAnswering.from_pretrained(
        directory,
        provider=provider,
        provider_options=provider_options,
        session_options=settings,
        local_files_only=True,
    )


def provider_here(runtime: Runtime) -> str:
    """The provider of the runtime's device where this machine has it, else the CPU's, which runs every graph.

    ONNX Runtime calls a provider available that it was built with, whether or not there is a device for it.
    """
    import onnxruntime

    if runtime.device == "cuda" and machine.gpus() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
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
