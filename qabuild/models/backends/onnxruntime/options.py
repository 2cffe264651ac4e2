"""Options of the ONNX Runtime backend."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qabuild.system.frozen import Frozen

Provider = Literal["CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"]


DEFAULT_PROVIDER: dict[str, Provider] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


DEVICE: dict[Provider, Literal["cpu", "cuda"]] = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
}


class Options(Frozen):
    """How the graph is optimised, and the execution provider that runs it."""

    name: Literal["onnxruntime"] = Field("onnxruntime", description="an optimised ONNX graph, run by ONNX Runtime")
    exporter: Literal["torch", "optimum"] = Field(
        "torch",
        description="what exports and optimises the graph: torch's exporter and ONNX Runtime's optimiser, or Hugging "
        "Face's optimum, which needs the extra optimum and transformers 4.57",
    )
    level: Literal[0, 1, 2, 99] = Field(
        2,
        description="graph optimisation: 0 exports only, 1 basic, 2 extended, 99 all, bound to this processor; "
        "above 0 all are the same on a GPU",
    )
    provider: Provider | None = Field(
        None, description="execution provider; chosen by runtime.device where it is absent"
    )
    allow_missing_fusions: bool = Field(False, description="keep a graph in which the optimiser fused less than usual")
    allow_fp16_on_cpu: bool = Field(False, description="build fp16 for the CPU, where it is slower than fp32")
