"""Transformations of an ONNX graph. Each reads the graph of one stage's folder and writes that of the next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qabuild.models.runtime import Runtime

FILE = "model.onnx"
OUTPUTS = ("start_logits", "end_logits")

EXTERNAL_FROM = 2**31 - 2**20
"""Size in bytes beyond which weights go into `model.onnx_data`: protobuf's limit is 2 GiB."""

INTEGERS = (6, 7)  # INT32 and INT64 of onnx.TensorProto

ARITHMETIC = (
    *("Abs", "Add", "Ceil", "Constant", "Div", "Floor", "Log", "Max", "Min"),
    *("Mul", "Neg", "Round", "Sign", "Sub", "Where"),
)


def optimise(exported: Path, stage: Path, config: Any, level: int, runtime: Runtime, padding_side: str) -> Path:
    """Fuse the operators that ONNX Runtime has fused kernels for; `config` is transformers' config of the model.

    The default mask of fused attention is a count of tokens from the left, which only fits padding on the right; for
    padding on the left, the raw mask is used.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.enable_embed_layer_norm = False  # ONNX Runtime does not quantise its kernel
    options.use_raw_attention_mask(padding_side == "left")
    optimised = optimize_model(
        str(exported / FILE),
        "bert",  # the fusions for encoders of every architecture
        config.num_attention_heads,
        config.hidden_size,
        options,
        opt_level=opt_level(level, runtime),
        use_gpu=runtime.device == "cuda",
    )
    stage.mkdir()
    save(optimised.model, stage / FILE)
    return stage


def state_heads(model: Any) -> None:
    """State the number of heads where a projection is reshaped to [batch, sequence, -1, head size].

    ONNX Runtime's optimiser otherwise takes the number that the config gives for all layers, and a pruned layer has
    fewer.
    """
    import numpy as np
    from onnx.numpy_helper import from_array

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        shape = producer.get(node.input[1]) if node.op_type == "Reshape" else None
        width = _width(producer.get(node.input[0]), weights) if shape is not None else None
        if width is None or shape is None or shape.op_type != "Concat" or len(shape.input) != 4:
            continue
        heads, size = (_integer(name, weights, producer) for name in shape.input[2:])
        if heads == -1 and size:
            stated = from_array(np.array([width // size]), f"{node.name}.heads")
            graph.initializer.append(stated)
            shape.input[2] = stated.name


def _width(node: Any, weights: Mapping[str, Any]) -> int | None:
    """The size of the last dimension of a projection's output; None for other nodes."""
    if node is None or node.op_type not in ("Add", "MatMul"):
        return None
    return next((weights[name].dims[-1] for name in node.input if name in weights), None)


def _integer(name: str, weights: Mapping[str, Any], producer: Mapping[str, Any]) -> int | None:
    """The value of a constant of one element; None for what is computed."""
    from onnx.numpy_helper import to_array

    if name in weights:
        return int(to_array(weights[name]).item())
    node = producer.get(name)
    return int(to_array(node.attribute[0].t).item()) if node is not None and node.op_type == "Constant" else None


def opt_level(level: int, runtime: Runtime) -> int:
    """The optimiser's level for the target's `level`: 0 for a GPU, where only ONNX Runtime's scripts fuse.

    The graph then does not depend on the machine: higher levels first run a session on the GPU, if there is one, after
    which the scripts find no attention (ONNX Runtime 1.31). The session applies its own optimisations anyway when the
    graph is loaded.
    """
    return 0 if runtime.device == "cuda" else level


def to_fp16(before: Path, stage: Path) -> Path:
    """Convert weights and computation to half precision; inputs stay int64, logits float32."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = OnnxModel(onnx.load(before / FILE))
    graph.convert_float_to_float16(
        use_symbolic_shape_infer=True, keep_io_types=True, node_block_list=_index_arithmetic(graph)
    )
    stage.mkdir()
    save(graph.model, stage / FILE)
    return stage


def _index_arithmetic(graph: Any) -> list[str]:
    """Names of the nodes whose floating-point result is cast to an integer, which stay in fp32.

    A logarithm sorts relative positions into buckets; rounded to half precision, some fall into the next bucket.
    """
    producer = graph.output_name_to_node()
    stack = [node for node in graph.nodes() if _casts_to_integer(node)]
    names: set[str] = set()
    while stack:
        producers = [producer[name] for name in stack.pop().input if name in producer]
        added = [node for node in producers if node.name not in names and node.op_type in (*ARITHMETIC, "Cast")]
        names |= {node.name for node in added}
        stack += [node for node in added if node.op_type != "Cast"]
    return sorted(names)


def _casts_to_integer(node: Any) -> bool:
    return node.op_type == "Cast" and any(attribute.i in INTEGERS for attribute in node.attribute)


def to_int8(before: Path, stage: Path) -> Path:
    """Quantise weights to 8 bits with a scale for each channel; activations are quantised dynamically.

    ONNX's shape inference does not know fused operators, so `DefaultTensorType` declares unknown tensors float.
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
    return stage


def write(source: Path, path: Path) -> None:
    """Write the graph to `path` without stack traces, paths and dates, so that its bytes are reproducible."""
    import onnx

    model = onnx.load(source)
    _strip(model)
    save(model, path)


def _strip(message: Any) -> None:
    """Clear documentation and metadata everywhere in an ONNX protobuf message."""
    for field in ("doc_string", "metadata_props"):
        if any(descriptor.name == field for descriptor in message.DESCRIPTOR.fields):
            message.ClearField(field)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if descriptor.is_repeated else [value]:
                _strip(part)


def save(model: Any, path: Path) -> None:
    """Write the graph to the new file `path`, and large weights beside it."""
    import onnx

    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save_model(
        model,
        path,
        save_as_external_data=size > EXTERNAL_FROM,
        location=f"{path.name}_data",
        all_tensors_to_one_file=True,
    )
