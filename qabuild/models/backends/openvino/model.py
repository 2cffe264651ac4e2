"""Running an OpenVINO graph. Imports torch at once: import it inside functions only."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qabuild.models.backends.openvino.core import core
from qabuild.models.backends.openvino.options import precision
from qabuild.models.backends.torch_model import TorchModel, completed, named
from qabuild.models.runtime import Runtime
from qabuild.system import machine
from qabuild.system.cache import compiled_for_this_machine

if TYPE_CHECKING:
    from qabuild.models.backends.openvino.options import Options

OUTPUTS = ("start_logits", "end_logits")
LENGTH_STEP = 16
"""A batch is padded to a multiple of so many tokens. OpenVINO makes new kernels for each length that it has not met,
which takes as long as a window or two: so it meets few."""
MIND_PADDING = frozenset({"convbert", "nystromformer"})
"""Model types that mix in tokens whose mask is 0, by convolutions or means over all: these are not padded here."""


def load(path: Path, config: Any, options: Options, runtime: Runtime) -> Any:
    """The graph in `path` on all cores that this process may use."""
    settings = {
        "INFERENCE_PRECISION_HINT": precision(options, runtime),
        "INFERENCE_NUM_THREADS": machine.cores(),
        **_kept(path),
    }
    graph = core().read_model(path)
    names = [port.any_name for port in graph.inputs]
    compile_for = lambda streams: core().compile_model(path, "CPU", {**settings, "NUM_STREAMS": streams})  # noqa: E731
    return named(OpenVinoModel(compile_for, names, config), config)


def _kept(path: Path) -> dict[str, str]:
    """The setting by which OpenVINO keeps what it makes of these very bytes; none where nothing can be kept.

    What it kept is not sealed; it notices one that is damaged, and makes it anew.
    """
    digest = hashlib.sha256(path.read_bytes() + path.with_suffix(".bin").read_bytes()).hexdigest()
    folder = compiled_for_this_machine(digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    return {"CACHE_DIR": str(folder)}


class Running:
    """A batch that is being computed."""

    seconds: float
    """Known with the result: how long it took, the wait for its turn included."""

    def __init__(self, request: Any, inputs: Any, length: int, idle: deque[Any]) -> None:
        self._request, self._length, self._idle = request, length, idle
        self._inputs = inputs  # the request reads them where they are

    def result(self) -> QuestionAnsweringModelOutput:
        """The output, when it is there. To be asked for once: the request then goes on to another batch."""
        self._request.wait()
        self.seconds = self._request.latency / 1000
        found = (self._request.get_tensor(name).data for name in OUTPUTS)
        start, end = (_unpadded(logits, self._length) for logits in found)
        self._idle.append(self._request)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


class OpenVinoModel(TorchModel):
    """A graph. A call takes all threads for one batch; `submit` starts a batch, so that each core computes another.

    `compile_for` compiles the graph for a number of requests at once; what is not used is not compiled.
    """

    at_once: int
    """Batches that are computed at the same time, of those that `submit` started; the others wait."""

    def __init__(self, compile_for: Callable[[int], Any], inputs: Sequence[str], config: Any) -> None:
        super().__init__(self._answer, inputs, config, torch.device("cpu"))
        self.at_once = machine.cores()
        self._pads = "attention_mask" in self.inputs and config.model_type not in MIND_PADDING
        self._compile_for = compile_for
        self._idle: deque[Any] = deque()

    @cached_property
    def alone(self) -> Any:
        """Compiled for one batch at a time."""
        return self._compile_for(1)

    @cached_property
    def together(self) -> Any:
        """Compiled for as many batches at a time as there are cores."""
        return self._compile_for(self.at_once)

    def submit(self, **given: torch.Tensor) -> Running:
        """Start computing what a call with the same inputs returns."""
        inputs = self._arrays(given)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.together.create_infer_request()
        request.start_async(inputs, share_inputs=True)
        return Running(request, inputs, given["input_ids"].shape[1], self._idle)

    def _answer(self, **given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.alone.create_infer_request().infer(self._arrays(given), share_inputs=True)
        return tuple(_unpadded(found[name], given["input_ids"].shape[1]) for name in OUTPUTS)

    def _arrays(self, given: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """All that the graph takes, padded on the right."""
        tensors = completed(given, self.inputs)
        length = given["input_ids"].shape[1]
        longest = getattr(self.config, "max_position_embeddings", None) or length
        more = max(0, min(-length % LENGTH_STEP, longest - length)) if self._pads else 0
        pads = {"input_ids": getattr(self.config, "pad_token_id", None) or 0}
        return {
            name: torch.nn.functional.pad(tensor, (0, more), value=pads.get(name, 0)).contiguous().numpy()
            for name, tensor in tensors.items()
        }


def _unpadded(logits: Any, length: int) -> torch.Tensor:
    """A copy of the first `length` columns of an array that a request will write to again."""
    return torch.from_numpy(logits[:, :length].copy())
