"""Runs an ONNX graph. Imports torch on import: import it inside functions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import torch

from qabuild.errors import MissingEnvironment
from qabuild.models.backends import vet
from qabuild.models.backends.onnxruntime import graph_check
from qabuild.models.backends.onnxruntime.graphs import FILE, OUTPUTS
from qabuild.models.backends.onnxruntime.options import DEVICE, Provider
from qabuild.models.backends.torch_model import TorchModel, completed, device, named
from qabuild.models.runtime import Runtime
from qabuild.system import files

FATAL = 4
"""The highest severity of ONNX Runtime's log."""


def load(directory: Path, config: Any, provider: Provider) -> Any:
    """Load the graph in `directory` on exactly this provider.

    Raises MissingEnvironment if it does not start, UntrustedInput for a file that holds more than a graph of operators
    that qabuild compiles to.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # it may have been imported before qabuild, see system/telemetry.py
    target = device(Runtime(device=DEVICE[provider]))
    files.require_native(directory)
    vet.vet(directory / FILE, graph_check.problems)
    settings = onnxruntime.SessionOptions()
    # Errors are raised. Only a provider that does not start logs why; with CUDA, every session would warn of nodes
    # that stay on the CPU.
    settings.log_severity_level = FATAL if provider == "CPUExecutionProvider" else FATAL - 1
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
    """An ONNX graph in a session. On a GPU, inputs and outputs stay there."""

    def __init__(self, session: Any, config: Any, device: torch.device) -> None:
        run = self._run if device.type == "cpu" else self._run_bound
        import onnxruntime

        super().__init__(run, [node.name for node in session.get_inputs()], config, device)
        self.session = session
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = FATAL

    def _run(self, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = {name: tensor.numpy() for name, tensor in completed(tensors, self.inputs).items()}
        return tuple(torch.from_numpy(logits) for logits in self.session.run(OUTPUTS, inputs, self._quiet))

    def _run_bound(self, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run on the memory of torch's tensors: ONNX Runtime reads the inputs and writes the outputs in place."""
        inputs = {name: tensor.contiguous() for name, tensor in completed(tensors, self.inputs).items()}
        shape = tuple(tensors["input_ids"].shape)
        outputs = {name: torch.empty(shape, dtype=torch.float32, device=self.device) for name in OUTPUTS}
        place = self.device.type, self.device.index or 0
        binding = self.session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *place, numpy.int64, shape, tensor.data_ptr())
        for name, tensor in outputs.items():
            binding.bind_output(name, *place, numpy.float32, shape, tensor.data_ptr())
        binding.synchronize_inputs()  # torch and ONNX Runtime compute on streams of their own
        self.session.run_with_iobinding(binding, self._quiet)
        binding.synchronize_outputs()
        return tuple(outputs.values())
