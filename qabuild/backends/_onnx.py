"""The stages of an ONNX graph: exported, optimised, then in fewer bits. Each is held against PyTorch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.backends import Runtime
from qabuild.backends.comparison import TOLERANCES, Tolerance, probes, require_same
from qabuild.backends.fusions import count_fusions, require_fusions

if TYPE_CHECKING:
    from qabuild.backends.onnxruntime import Options
    from qabuild.checkpoint import Checkpoint

FILE = "model.onnx"

EXTERNAL_FROM = 2**31 - 2**20
"""Bytes of weights from which they go into a file of their own: protobuf ends at 2 GiB."""

INT8_TOLERANCE = Tolerance(float("inf"), 0.0)
"""Dynamic int8 moves logits by amounts that only answers can judge; here they need to be finite."""


def build(checkpoint: Checkpoint, options: Options, runtime: Runtime, scratch: Path, directory: Path) -> dict[str, Any]:
    """Write `model.onnx` into `directory`, with the stages in `scratch`; return what is to be recorded."""
    from qabuild.checkpoint import load_model, load_tokenizer

    tokenizer = load_tokenizer(checkpoint.directory)
    stages = Comparison(load_model(checkpoint), tokenizer)
    record: dict[str, Any] = {"differences": {}, "fused": {}}

    stage = export(checkpoint.directory, scratch / "exported")
    record["differences"]["exported"] = stages.compare(stage, "the exported graph", "fp32")
    if options.level > 0:
        stage = optimise(stage, scratch / "optimised", options.level, runtime, tokenizer.padding_side)
        record["differences"]["optimised"] = stages.compare(stage, "the optimised graph", "fp32")
        record |= require_fusions(checkpoint.config, count_fusions(stage / FILE), options.allow_missing_fusions)
    if runtime.dtype != "fp32":
        narrow = {"fp16": to_fp16, "int8": to_int8}[runtime.dtype]
        stage = narrow(stage, scratch / runtime.dtype)
        record["differences"][runtime.dtype] = stages.compare(stage, f"the {runtime.dtype} graph", runtime.dtype)
    write(stage / FILE, directory / FILE)
    return record


class Comparison:
    """The PyTorch model, and inputs to hold graphs against it."""

    def __init__(self, reference: Any, tokenizer: Any) -> None:
        from qabuild.backends._torch import inputs_of

        self.reference = reference
        self.config = reference.config
        self.inputs = list(probes(tokenizer, inputs_of(reference, tokenizer), self.config))

    def compare(self, stage: Path, name: str, dtype: str) -> float:
        """Largest logit difference of that stage's graph, run on the CPU. Raises VerificationFailed beyond tolerance."""
        from optimum.onnxruntime import ORTModelForQuestionAnswering

        graph = ORTModelForQuestionAnswering.from_pretrained(stage, local_files_only=True)
        return require_same(self.reference, graph, self.inputs, TOLERANCES.get(dtype, INT8_TOLERANCE), name)


def export(checkpoint: Path, stage: Path) -> Path:
    """The checkpoint as an ONNX graph in fp32. optimum's own validation only warns, so it is left out."""
    from optimum.exporters.onnx import main_export

    main_export(
        str(checkpoint),
        output=stage,
        task="question-answering",
        library_name="transformers",
        do_validation=False,
        no_post_process=True,
        local_files_only=True,
    )
    return stage


def optimise(exported: Path, stage: Path, level: int, runtime: Runtime, padding_side: str) -> Path:
    """Fuse what ONNX Runtime has fused kernels for.

    Attention's default mask is a count of tokens from the left, which only fits padding on the right.
    """
    from optimum.onnxruntime import OptimizationConfig, ORTOptimizer

    config = OptimizationConfig(
        optimization_level=level,
        optimize_for_gpu=runtime.device == "cuda",
        use_raw_attention_mask=padding_side == "left",
    )
    ORTOptimizer.from_pretrained(exported).optimize(config, save_dir=stage, file_suffix=None)
    return stage


def to_fp16(before: Path, stage: Path) -> Path:
    """Weights and computation in half precision; inputs stay int64, logits float32."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = OnnxModel(onnx.load(before / FILE))
    graph.convert_float_to_float16(use_symbolic_shape_infer=True, keep_io_types=True)
    return _stage(graph.model, before, stage)


def to_int8(before: Path, stage: Path) -> Path:
    """Weights in 8 bits, a scale for each channel; activations are quantised as they come.

    Fused operators are not in ONNX's own shape inference, so the quantiser is told that unknown tensors are float.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    stage.mkdir()
    quantize_dynamic(
        before / FILE,
        stage / FILE,
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return _stage(onnx.load(stage / FILE), before, stage)


def _stage(model: Any, before: Path, stage: Path) -> Path:
    import shutil

    stage.mkdir(exist_ok=True)
    _save(model, stage / FILE)
    shutil.copyfile(before / "config.json", stage / "config.json")
    return stage


def write(source: Path, goal: Path) -> None:
    """The graph without traces of the machine that made it: stack traces, paths, dates."""
    import onnx

    model = onnx.load(source)
    _strip(model)
    _save(model, goal)


def _strip(message: Any) -> None:
    """Clear documentation and metadata everywhere in a protobuf message of ONNX."""
    for field in ("doc_string", "metadata_props"):
        if any(descriptor.name == field for descriptor in message.DESCRIPTOR.fields):
            message.ClearField(field)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if descriptor.is_repeated else [value]:
                _strip(part)


def _save(model: Any, path: Path) -> None:
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save_model(
        model,
        path,
        save_as_external_data=size > EXTERNAL_FROM,
        location=f"{path.name}_data",
        all_tensors_to_one_file=True,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what exporter, optimiser and quantiser say on their way; errors are raised, not logged."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        onnxruntime.set_default_logger_severity(2)
