"""Runs an OpenVINO graph. Imports torch on import: import it inside functions only."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qabuild.errors import MissingEnvironment
from qabuild.models.backends import vet
from qabuild.models.backends.openvino import graph_check
from qabuild.models.backends.openvino.core import core
from qabuild.models.backends.openvino.options import precision
from qabuild.models.backends.torch_model import TorchModel, completed, named
from qabuild.models.runtime import Runtime
from qabuild.qa.padding import is_paddable
from qabuild.system import files, machine
from qabuild.system.cache import compiled_for_this_machine

if TYPE_CHECKING:
    from qabuild.models.backends.openvino.options import Options

OUTPUTS = ("start_logits", "end_logits")
LENGTH_STEP = 16
"""Batches are padded to a multiple of this many tokens. OpenVINO compiles kernels for each new length, which takes as
long as a window or two: so the lengths are few."""


def load(path: Path, config: Any, options: Options, runtime: Runtime) -> Any:
    """Load the graph in `path` on all cores that this process may use.

    Raises UntrustedInput for a graph of other operators than OpenVINO's own.
    """
    vet.vet(path, graph_check.problems)
    settings = {
        "INFERENCE_PRECISION_HINT": precision(options, runtime),
        "INFERENCE_NUM_THREADS": machine.cores(),
        **_cache_setting(path),
    }
    graph = core().read_model(path)  # which is compiled later, when its file may be gone
    names = [port.any_name for port in graph.inputs]
    compile_for = lambda streams: core().compile_model(graph, "CPU", {**settings, "NUM_STREAMS": streams})  # noqa: E731
    return named(OpenVinoModel(compile_for, names, config), config)


def _cache_setting(path: Path) -> dict[str, str]:
    """The setting that makes OpenVINO cache its compiled model, by the digest of the graph; empty if it cannot.

    The cache is outside the artifact; OpenVINO detects a damaged entry and recompiles.
    """
    digest = hashlib.sha256(files.read(path) + files.read(path.with_suffix(".bin"))).hexdigest()
    try:
        folder = compiled_for_this_machine(digest)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, MissingEnvironment):
        return {}
    return {"CACHE_DIR": str(folder)}


class InferenceFuture:
    """A batch in flight."""

    seconds: float
    """The latency, including the wait in the queue; set by `result`."""

    def __init__(self, request: Any, inputs: Any, length: int, idle: deque[Any]) -> None:
        self._request, self._length, self._idle = request, length, idle
        self._inputs = inputs  # the request shares their memory

    def result(self) -> QuestionAnsweringModelOutput:
        """Wait for the output. Call it once: the request is then reused for another batch."""
        self._request.wait()
        self.seconds = self._request.latency / 1000
        outputs = (self._request.get_tensor(name).data for name in OUTPUTS)
        start, end = (_unpadded(logits, self._length) for logits in outputs)
        self._idle.append(self._request)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


class OpenVinoModel(TorchModel):
    """An OpenVINO graph. A call runs one batch on all threads; batches started with `submit` run one on each core.

    `compile_for` compiles the graph for a number of concurrent requests; it is called on first use.
    """

    at_once: int
    """The number of submitted batches that run concurrently; others wait in the queue."""

    def __init__(self, compile_for: Callable[[int], Any], inputs: Sequence[str], config: Any) -> None:
        super().__init__(self._infer, inputs, config, torch.device("cpu"))
        self.at_once = machine.cores()
        self._pads = "attention_mask" in self.inputs and is_paddable(self)
        self._compile_for = compile_for
        self._idle: deque[Any] = deque()

    @cached_property
    def alone(self) -> Any:
        """The graph compiled for one batch at a time."""
        return self._compile_for(1)

    @cached_property
    def together(self) -> Any:
        """The graph compiled for as many concurrent batches as there are cores."""
        return self._compile_for(self.at_once)

    def submit(self, **tensors: torch.Tensor) -> InferenceFuture:
        """Start a batch; the future's result is what a call with the same inputs returns."""
        inputs = self._arrays(tensors)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.together.create_infer_request()
        request.start_async(inputs, share_inputs=True)
        return InferenceFuture(request, inputs, tensors["input_ids"].shape[1], self._idle)

    def _infer(self, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.alone.create_infer_request().infer(self._arrays(tensors), share_inputs=True)
        return tuple(_unpadded(outputs[name], tensors["input_ids"].shape[1]) for name in OUTPUTS)

    def _arrays(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """All inputs of the graph, padded on the right to a multiple of `LENGTH_STEP`."""
        length = tensors["input_ids"].shape[1]
        longest = getattr(self.config, "max_position_embeddings", None) or length
        padding = max(0, min(-length % LENGTH_STEP, longest - length)) if self._pads else 0
        pads = {"input_ids": getattr(self.config, "pad_token_id", None) or 0}
        return {
            name: torch.nn.functional.pad(tensor, (0, padding), value=pads.get(name, 0)).contiguous().numpy()
            for name, tensor in completed(tensors, self.inputs).items()
        }


def _unpadded(logits: Any, length: int) -> torch.Tensor:
    """Copy the first `length` columns; the request will overwrite the array."""
    return torch.from_numpy(logits[:, :length].copy())
