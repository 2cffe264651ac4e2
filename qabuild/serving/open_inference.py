"""The Open Inference Protocol, version 2, over HTTP: tensors in, tensors out.

https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.results import Result
from qabuild.serving import request_parameters
from qabuild.serving.protocol import TEXTS, read_object, require_encodable, require_known, require_string, require_text
from qabuild.serving.refusal import Refusal
from qabuild.serving.request_parameters import Count, require_allowed

FIELDS = ("id", "parameters", "inputs", "outputs")
TENSOR_FIELDS = ("name", "shape", "datatype", "data", "parameters")
OUTPUT_FIELDS = ("name", "parameters")
PARAMETERS: request_parameters.Allowed = {
    **request_parameters.PARAMETERS,
    "top_k": Count(1, 1, "tensors hold one answer to each question, POST /answer gives several"),
}
OUTPUTS: Mapping[str, tuple[str, Callable[[Result], Any]]] = {
    "answer": ("BYTES", lambda result: result["answer"]),
    "score": ("FP64", lambda result: result["score"]),
    "start": ("INT64", lambda result: result["start"]),
    "end": ("INT64", lambda result: result["end"]),
    "question_truncated": ("BOOL", lambda result: "question_truncated" in result),
}
"""Datatype of each output, and its value in a result."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The questions of a request, and what its response holds."""

    pairs: Sequence[Pair]
    parameters: Mapping[str, Any]
    id: str | None
    outputs: Sequence[str]


def read(body: bytes, max_characters: int) -> Inference:
    """Parse the body of a request. Raises Refusal."""
    document = read_object(body)
    require_known(document, FIELDS, "")
    parameters = document.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refusal(422, "parameters: not an object")
    require_known(parameters, PARAMETERS, "parameters")
    require_allowed(parameters, PARAMETERS, "parameters.")
    if (id := document.get("id")) is not None:
        require_encodable(require_string(id, "id"), "id")
    inputs = document.get("inputs")
    if not isinstance(inputs, list):
        raise Refusal(422, f"inputs: give a list of the tensors {' and '.join(TEXTS)}")
    texts = dict(_tensor(tensor, f"inputs[{index}]", max_characters) for index, tensor in enumerate(inputs))
    if missing := [name for name in TEXTS if name not in texts]:
        raise Refusal(422, f"inputs: no tensor {missing[0]}")
    questions, contexts = (texts[name] for name in TEXTS)
    if len(inputs) > len(TEXTS) or len(questions) != len(contexts):
        raise Refusal(422, "inputs: give one question and one context for each answer")
    return Inference(
        pairs=list(zip(questions, contexts, strict=True)),
        parameters=parameters,
        id=id,
        outputs=_outputs(document.get("outputs", [])),
    )


def response(request: Inference, results: Sequence[Result], model: Mapping[str, str]) -> dict[str, Any]:
    """The response with the `results` of one answer each; `model` states `model_name` and `model_version`."""
    outputs = [
        {"name": name, "shape": [len(results)], "datatype": datatype, "data": [value(result) for result in results]}
        for name, (datatype, value) in OUTPUTS.items()
        if name in request.outputs
    ]
    return {**model, **({} if request.id is None else {"id": request.id}), "outputs": outputs}


def metadata(name: str, version: str, backend: str) -> dict[str, Any]:
    """What the protocol calls the metadata of a model."""
    return {
        "name": name,
        "versions": [version],
        "platform": f"qabuild_{backend}",
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in TEXTS],
        "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, (datatype, _) in OUTPUTS.items()],
    }


def _tensor(tensor: Any, at: str, max_characters: int) -> tuple[str, list[str]]:
    """Name and texts of an input. Raises Refusal."""
    if not isinstance(tensor, dict):
        raise Refusal(422, f"{at}: not an object")
    require_known(tensor, TENSOR_FIELDS, at)
    if tensor.get("name") not in TEXTS:
        raise Refusal(422, f"{at}.name: give question or context")
    if tensor.get("datatype") != "BYTES":
        raise Refusal(422, f"{at}.datatype: give BYTES")
    data, shape = tensor.get("data"), tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Refusal(422, f"{at}.shape: give a list of sizes")
    while isinstance(data, list) and len(data) == 1 and isinstance(data[0], list):  # [1, n] may come nested
        data = data[0]
    if not isinstance(data, list):
        raise Refusal(422, f"{at}.data: give a list of strings")
    if len(shape) > 2 or prod(shape) != len(data):
        raise Refusal(422, f"{at}.shape: {len(data)} strings have the shape [{len(data)}]")
    values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in data]  # [n, 1]
    return tensor["name"], [
        require_text(value, f"{at}.data[{index}]", max_characters) for index, value in enumerate(values)
    ]


def _outputs(wanted: Any) -> Sequence[str]:
    """Names of the outputs that the response holds: all, if none is named. Raises Refusal."""
    if not isinstance(wanted, list) or not all(isinstance(output, dict) for output in wanted):
        raise Refusal(422, "outputs: give a list of objects")
    for index, output in enumerate(wanted):
        require_known(output, OUTPUT_FIELDS, f"outputs[{index}]")
    names = [output.get("name") for output in wanted]
    if unknown := [name for name in names if not isinstance(name, str) or name not in OUTPUTS]:
        raise Refusal(422, f"outputs: {unknown[0]!r} is unknown; known are {', '.join(OUTPUTS)}")
    return names or list(OUTPUTS)
