"""Runs an ONNX graph. Imports torch on import: import it inside functions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch

from qabuild.errors import MissingEnvironment
from qabuild.models.backends.onnxruntime.graphs import FILE, OUTPUTS
from qabuild.models.backends.onnxruntime.options import DEVICE, Provider
from qabuild.models.backends.torch_model import TorchModel, completed, device, named
from qabuild.models.runtime import Runtime


def load(directory: Path, config: Any, provider: Provider) -> Any:
    """Load the graph in `directory` on exactly this provider. Raises MissingEnvironment if it does not start."""
    import onnxruntime

    target = device(Runtime(device=DEVICE[provider]))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # with CUDA, every session would warn of nodes that stay on the CPU
    options = provider_options(provider, target)
    session = onnxruntime.InferenceSession(directory / FILE, settings, providers=[(provider, options)])
    started = session.get_providers()[0]
    if started != provider:
        raise MissingEnvironment(
            f"ONNX Runtime could not start {provider} and fell back to {started}",
            "its message above says why; usually CUDA or cuDNN is missing or of another version",
        )
    return named(OnnxModel(session, config, target), config)


def provider_options(provider: Provider, device: torch.device) -> dict[str, str]:
    """The GPU that torch uses, and fp32 products in fp32, as torch computes them: the default is TF32."""
    options = {"device_id": str(device.index)} if device.type == "cuda" else {}
    return {**options, "use_tf32": "0"} if provider == "CUDAExecutionProvider" else options


class OnnxModel(TorchModel):
    """An ONNX graph in a session. It reads torch's tensors and writes into torch's tensors, where they are."""

    def __init__(self, session: Any, config: Any, device: torch.device) -> None:
        super().__init__(self._run, [node.name for node in session.get_inputs()], config, device)
        self.session = session

    def _run(self, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = {name: tensor.contiguous() for name, tensor in completed(tensors, self.inputs).items()}
        shape = tensors["input_ids"].shape
        outputs = {name: torch.empty(shape, dtype=torch.float32, device=self.device) for name in OUTPUTS}
        binding = self.session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *self._place, numpy.int64, tuple(shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            binding.bind_output(name, *self._place, numpy.float32, tuple(shape), tensor.data_ptr())
        binding.synchronize_inputs()  # on a GPU, torch and ONNX Runtime compute on streams of their own
        self.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return tuple(outputs.values())

    @property
    def _place(self) -> tuple[str, int]:
        return self.device.type, self.device.index or 0
