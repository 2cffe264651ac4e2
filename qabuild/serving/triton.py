"""A model of Triton Inference Server's Python backend: it tokenises and decodes, and has Triton run the graph.

Triton imports it, as 1/model.py of the model; only there does `triton_python_backend_utils` exist.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as triton

from qabuild.artifact.load import find, parameters, require_verified
from qabuild.models.backends.onnxruntime import graph_check
from qabuild.models.backends.onnxruntime.graphs import FILE, OUTPUTS
from qabuild.models.backends.torch_model import TorchModel, completed, named
from qabuild.models.checkpoint.load import load_config, load_tokenizer
from qabuild.qa.pipeline import QuestionAnsweringPipeline

FOLDER = "artifact"
"""Where the artifact lies in a version of the model."""
DTYPES = {"answer": object, "score": np.float64, "start": np.int64, "end": np.int64, "question_truncated": bool}
"""The outputs and their types: BYTES, FP64, INT64, INT64 and BOOL, as of `qabuild serve`."""


class Graph(TorchModel):
    """The graph, which Triton runs as another model."""

    def __init__(self, name: str, inputs: Sequence[str], config: Any) -> None:
        super().__init__(self._run, inputs, config, torch.device("cpu"))
        self._name = name

    def _run(self, **tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [triton.Tensor(name, tensor.numpy()) for name, tensor in completed(tensors, self.inputs).items()]
        request = triton.InferenceRequest(model_name=self._name, requested_output_names=list(OUTPUTS), inputs=given)
        response = request.exec()
        if response.has_error():
            raise triton.TritonModelException(response.error().message())
        found = (triton.get_output_tensor_by_name(response, name) for name in OUTPUTS)
        return tuple(torch.from_dlpack(tensor.to_dlpack()).cpu() for tensor in found)


class TritonPythonModel:
    """Answers the questions of a batch of requests, with windows, decoding and parameters as verified."""

    def initialize(self, args: dict[str, str]) -> None:
        """Check the artifact against the digest that the model's config names. Raises as `qabuild.load` does."""
        stated = json.loads(args["model_config"])["parameters"]
        graph, digest, allowed = (stated[key]["string_value"] for key in ("graph", "digest", "allow_unverified"))
        directory = Path(args["model_repository"], args["model_version"], FOLDER)
        artifact = find(directory, digest=digest, allow_unverified=allowed == "true")
        if allowed != "true":
            require_verified(artifact)
        config = load_config(directory)
        model = named(Graph(graph, graph_check.inputs(directory / FILE), config), config)
        self._pipeline = QuestionAnsweringPipeline(model, load_tokenizer(directory), **parameters(artifact))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request, whose inputs `question` and `context` have an element for each question."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            questions, contexts = (
                [text.decode() for text in triton.get_input_tensor_by_name(request, name).as_numpy().ravel()]
                for name in ("question", "context")
            )
            pairs = zip(questions, contexts, strict=True)
            asked = ({"question": question, "context": context} for question, context in pairs)
            results = list(self._pipeline(asked))
            if not all(math.isfinite(result["score"]) for result in results):
                raise ValueError("the model's scores are not finite")
        except ValueError as error:  # more questions than contexts, say, or bytes that are not UTF-8
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
        columns = {name: [result.get(name, False) for result in results] for name in DTYPES}
        columns["answer"] = [answer.encode() for answer in columns["answer"]]
        return triton.InferenceResponse(
            output_tensors=[triton.Tensor(name, np.array(columns[name], dtype)) for name, dtype in DTYPES.items()]
        )
