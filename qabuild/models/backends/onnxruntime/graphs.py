"""What is done to an ONNX graph, each step from the file of one folder, a stage, to that of the next."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from qabuild.models.runtime import Runtime

FILE = "model.onnx"

EXTERNAL_FROM = 2**31 - 2**20
"""Bytes of weights from which they go into a file of their own, `model.onnx_data`: protobuf ends at 2 GiB."""

INTEGERS = (6, 7)  # INT32 and INT64 of onnx.TensorProto

ARITHMETIC = (
    *("Abs", "Add", "Ceil", "Constant", "Div", "Floor", "Log", "Max", "Min"),
    *("Mul", "Neg", "Round", "Sign", "Sub", "Where"),
)


def optimise(exported: Path, stage: Path, level: int, runtime: Runtime, padding_side: str) -> Path:
    """Fuse what ONNX Runtime has fused kernels for.

    Attention's default mask is a count of tokens from the left, which only fits padding on the right.

    For a GPU the fusions come from ONNX Runtime's scripts alone, so that the graph is the same wherever it is made:
    the higher levels begin with a session on the GPU, where there is one, and after that the scripts found no attention
    any more (ONNX Runtime 1.31). What such a session does, it does when the graph is loaded.
    """
    from optimum.onnxruntime import OptimizationConfig, ORTOptimizer

    on_gpu = runtime.device == "cuda"
    config = OptimizationConfig(
        optimization_level=0 if on_gpu else level,
        optimize_for_gpu=on_gpu,
        use_raw_attention_mask=padding_side == "left",
    )
    ORTOptimizer.from_pretrained(exported).optimize(config, save_dir=stage, file_suffix=None)
    return stage


def to_fp16(before: Path, stage: Path) -> Path:
    """Weights and computation in half precision; inputs stay int64, logits float32."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = OnnxModel(onnx.load(before / FILE))
    graph.convert_float_to_float16(
        use_symbolic_shape_infer=True, keep_io_types=True, node_block_list=_index_arithmetic(graph)
    )
    return _stage(graph.model, before, stage)


def _index_arithmetic(graph: Any) -> list[str]:
    """Names of the nodes whose floating-point result becomes an integer.

    Relative positions are sorted into buckets by a logarithm; rounded to half precision, some fall into the next one.
    """
    maker = graph.output_name_to_node()
    waiting = [node for node in graph.nodes() if _makes_integers(node)]
    found: set[str] = set()
    while waiting:
        makers = [maker[name] for name in waiting.pop().input if name in maker]
        fresh = [node for node in makers if node.name not in found and node.op_type in (*ARITHMETIC, "Cast")]
        found |= {node.name for node in fresh}
        waiting += [node for node in fresh if node.op_type != "Cast"]
    return sorted(found)


def _makes_integers(node: Any) -> bool:
    return node.op_type == "Cast" and any(attribute.i in INTEGERS for attribute in node.attribute)


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
    """Write the graph into the next stage's folder, with the config that ORTModel wants beside it."""
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
