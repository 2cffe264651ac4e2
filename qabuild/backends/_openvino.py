"""Running an OpenVINO graph. Imports torch at once: import it inside functions only."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qabuild import machine
from qabuild.backends import Runtime
from qabuild.backends._torch import TorchModel, completed, named
from qabuild.backends.openvino import package, precision

if TYPE_CHECKING:
    from qabuild.backends.openvino import Options

OUTPUTS = ("start_logits", "end_logits")


def load(path: Path, config: Any, options: Options, runtime: Runtime) -> Any:
    """The graph in `path` on all cores that this process may use, one stream of requests for each."""
    cores = machine.cores()
    settings = {
        "INFERENCE_PRECISION_HINT": precision(options, runtime),
        "INFERENCE_NUM_THREADS": cores,
        "NUM_STREAMS": cores,
    }
    return named(OpenVinoModel(package().Core().compile_model(path, "CPU", settings), config), config)


class Running:
    """A batch that is being computed."""

    def __init__(self, request: Any, inputs: Any, idle: deque[Any]) -> None:
        self._request, self._idle = request, idle
        self._inputs = inputs  # the request reads them where they are

    def result(self) -> QuestionAnsweringModelOutput:
        """The output, when it is there. To be asked for once: the request then goes on to another batch."""
        self._request.wait()
        start, end = (torch.from_numpy(self._request.get_tensor(name).data.copy()) for name in OUTPUTS)
        self._idle.append(self._request)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


class OpenVinoModel(TorchModel):
    """A compiled graph. `submit` starts a batch and does not wait for it, so that several are computed at once."""

    def __init__(self, compiled: Any, config: Any) -> None:
        inputs = [port.any_name for port in compiled.inputs]
        super().__init__(self._answer, inputs, config, torch.device("cpu"))
        self._compiled = compiled
        self._idle: deque[Any] = deque()

    def submit(self, **given: torch.Tensor) -> Running:
        """Start computing what a call with the same inputs returns."""
        inputs = {name: tensor.contiguous().numpy() for name, tensor in completed(given, self.inputs).items()}
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.start_async(inputs, share_inputs=True)
        return Running(request, inputs, self._idle)

    def _answer(self, **given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.submit(**given).result()
        return output.start_logits, output.end_logits
