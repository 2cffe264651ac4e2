"""What Triton's Python backend offers to a model, over ONNX Runtime in this process: its transport, and nothing else.

`repository` is the folder of the models that a request may name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

repository = Path()


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array

    def to_dlpack(self) -> Any:
        return np.from_dlpack(self._array).__dlpack__()


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class TritonModelException(Exception):
    pass


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = output_tensors, error

    def output_tensors(self) -> Sequence[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    def __init__(
        self, inputs: Sequence[Tensor], model_name: str = "", requested_output_names: Sequence[str] = ()
    ) -> None:
        self.tensors, self._model, self._outputs = inputs, model_name, list(requested_output_names)

    def exec(self) -> InferenceResponse:
        """Run the graph of the model that the request names."""
        session = onnxruntime.InferenceSession(repository / self._model / "1" / "model.onnx")
        inputs = {tensor.name(): tensor.as_numpy() for tensor in self.tensors}
        try:
            arrays = session.run(self._outputs, inputs)
        except Exception as error:
            return InferenceResponse([], TritonError(str(error)))
        return InferenceResponse([Tensor(name, array) for name, array in zip(self._outputs, arrays, strict=True)])


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor:
    return next(tensor for tensor in request.tensors if tensor.name() == name)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor:
    return next(tensor for tensor in response.output_tensors() if tensor.name() == name)
