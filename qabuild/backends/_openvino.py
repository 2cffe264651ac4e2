"""Converting a model to an OpenVINO graph, and running it. Imports torch at once: import it inside functions only."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import QuestionAnsweringModelOutput

from qabuild import machine
from qabuild.backends import Runtime
from qabuild.backends._torch import TorchModel, completed, inputs_of, named
from qabuild.backends._tracing import Positional
from qabuild.backends.comparison import TOLERANCES, answers, probes, require_same

if TYPE_CHECKING:
    from qabuild.backends.openvino import Options
    from qabuild.checkpoint import Checkpoint

OUTPUTS = ("start_logits", "end_logits")


def build(checkpoint: Checkpoint, options: Options, runtime: Runtime, path: Path) -> dict[str, Any]:
    """Write the checkpoint's model as a graph to `path`; return what is to be recorded."""
    from qabuild.checkpoint import load_model, load_tokenizer

    tokenizer = load_tokenizer(checkpoint.directory)
    model = load_model(checkpoint)
    inputs = inputs_of(model, tokenizer)
    batches = list(probes(tokenizer, inputs, model.config))
    save(convert(model, inputs, batches[0]), path)
    compiled = load(path, model.config, options, runtime)
    difference = require_same(answers(model, batches), compiled, batches, TOLERANCES[runtime.dtype], "the graph")
    return {"inputs": list(inputs), "largest_difference": difference}


def convert(model: Any, inputs: Sequence[str], example: Mapping[str, Any]) -> Any:
    """The model as an `openvino.Model`: int64 [batch, sequence] inputs, outputs `start_logits` and `end_logits`."""
    import openvino

    graph = openvino.convert_model(
        Positional(model, inputs).eval(), example_input=tuple(example[name] for name in inputs)
    )
    for port, name in zip((*graph.inputs, *graph.outputs), (*inputs, *OUTPUTS), strict=True):
        port.get_tensor().set_names({name})
    for port in graph.inputs:
        port.get_node().set_partial_shape(openvino.PartialShape([-1, -1]))
        port.get_node().set_element_type(openvino.Type.i64)
    graph.validate_nodes_and_infer_types()
    return graph


def save(graph: Any, path: Path) -> None:
    """Write the graph to `path` and its weights beside it, none of them rounded to half precision."""
    import openvino

    openvino.save_model(graph, path, compress_to_fp16=False)


def load(path: Path, config: Any, options: Options, runtime: Runtime) -> Any:
    """The graph in `path`, on all cores that this process may use."""
    import openvino

    core = openvino.Core()
    cores = machine.cores()
    compiled = core.compile_model(
        path,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if runtime.dtype == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": cores,
        },
    )
    return named(OpenVinoModel(compiled, config), config)


class Running:
    """A batch that is being computed."""

    def __init__(self, request: Any, held: Any, idle: deque[Any]) -> None:
        self._request, self._held, self._idle = request, held, idle

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
        tensors = {name: tensor.contiguous().numpy() for name, tensor in completed(given, self.inputs).items()}
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        request.start_async(tensors, share_inputs=True)
        return Running(request, tensors, self._idle)

    def _answer(self, **given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.submit(**given).result()
        return output.start_logits, output.end_logits
