"""A worker process that answers questions with transformers' own ("stock") pipeline: `python -m stock_worker`.

It runs in an environment of transformers 4.57, in which qabuild is not installed: of qabuild it imports only modules
that need nothing but the standard library and torch. The first request names the model; each later one holds questions.
The protocol is that of `qabuild.system.process`, and `stock.py` is the other side.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from tempfile import TemporaryDirectory
from typing import Any

from qabuild.errors import MissingEnvironment
from qabuild.models import sdpa_kernels
from qabuild.system.process import Tell, serve

Example = Mapping[str, str]
"""`question` and `context`."""


def main() -> None:
    """Answer requests from stdin until it closes."""
    pipeline: StockPipeline | None = None

    def work(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        nonlocal pipeline
        if pipeline is None:
            pipeline = StockPipeline(Opening(**request))
            return {}
        return pipeline.search(**request) if "searches" in request else pipeline.answer(**request)

    serve(work)


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The first request: which model to load, and how."""

    checkpoint: str
    """A checkpoint's folder or Hub id, or the folder of an artifact that optimum or optimum-intel can load."""
    model: str
    """A name in `MODELS`."""
    device: str
    dtype: str
    """A name in torch, such as float16; optimum-intel's models ignore it."""
    batch_size: int
    squad_v2: bool
    """Whether the pipeline may answer that a question has no answer."""
    calibration: Sequence[Example]
    """The questions that int8 is calibrated on."""


class StockPipeline:
    """The stock pipeline over a loaded model."""

    def __init__(self, opening: Opening) -> None:
        import transformers

        if not hasattr(transformers, "QuestionAnsweringPipeline"):
            raise MissingEnvironment(
                f"transformers {metadata.version('transformers')} has no question-answering pipeline",
                "`python benchmarks/stock.py --make-environment` makes an environment of transformers 4.57",
            )
        transformers.logging.set_verbosity(50)  # it warns about the classes of models, but accepts them
        warnings.simplefilter("ignore")
        model = MODELS[opening.model](opening)
        self._device = opening.device
        self.pipeline = transformers.QuestionAnsweringPipeline(
            model,
            transformers.AutoTokenizer.from_pretrained(opening.checkpoint),
            framework="pt",
            device=model.device,
            batch_size=opening.batch_size,
            handle_impossible_answer=opening.squad_v2,
        )

    def answer(self, questions: Sequence[Example], clock: str) -> dict[str, Any]:
        """The answer to each question, empty for no answer, and the seconds by that function of `time`."""
        now = getattr(time, clock)
        gc.collect()
        with sdpa_kernels.of_any_shape(self._device):  # as in an artifact
            begin = now()
            # A stream, since a list of one question would not be answered with a list.
            results = list(self.pipeline(question for question in questions))
            seconds = now() - begin
        # Where no span is left, as with NaN logits, the result is an empty list.
        return {"answers": [result["answer"] if result else "" for result in results], "seconds": seconds}

    def search(
        self, questions: Sequence[Example], cut: Mapping[str, Any], searches: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The results of each search for each question, all on the logits of the same windows."""
        pipeline = self.pipeline
        outputs = [[pipeline.forward(window) for window in pipeline.preprocess(q, **cut)] for q in questions]
        results = [[pipeline.postprocess(output, **search) for output in outputs] for search in searches]
        return {"results": results, "windows": sum(map(len, outputs))}


def eager(opening: Opening) -> Any:
    import torch
    from transformers import AutoModelForQuestionAnswering

    dtype = getattr(torch, opening.dtype)
    model = AutoModelForQuestionAnswering.from_pretrained(opening.checkpoint, dtype=dtype)
    return model.to(opening.device).eval()


def compiled(opening: Opening) -> Any:
    model = eager(opening)
    model.compile()
    return model


def onnxruntime(opening: Opening) -> Any:
    """Optimum's model: the exported graph or, in float16, the graph after its optimisation at level 2."""
    from optimum.onnxruntime import OptimizationConfig, ORTModelForQuestionAnswering, ORTOptimizer

    on_gpu = opening.device == "cuda"
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    model = ORTModelForQuestionAnswering.from_pretrained(opening.checkpoint, provider=provider)
    if opening.dtype == "float16":
        config = OptimizationConfig(optimization_level=2, optimize_for_gpu=on_gpu, fp16=True)
        with TemporaryDirectory() as folder:
            ORTOptimizer.from_pretrained(model).optimize(config, save_dir=folder, file_suffix=None)
            model = ORTModelForQuestionAnswering.from_pretrained(folder, provider=provider)
    if model.providers[0] != provider:
        raise MissingEnvironment(f"ONNX Runtime could not start {provider}", "its message says why")
    return model


def openvino(opening: Opening) -> Any:
    from optimum.intel import OVModelForQuestionAnswering

    precision = {"INFERENCE_PRECISION_HINT": "f32"}  # by default, OpenVINO computes in bf16 where the processor can
    return OVModelForQuestionAnswering.from_pretrained(opening.checkpoint, ov_config=precision)


def openvino_int8(opening: Opening) -> Any:
    """Weights and activations in int8, calibrated, with optimum-intel's defaults."""
    import nncf
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(opening.checkpoint)
    windows = [
        dict(tokenizer(q["question"], q["context"], truncation="only_second", max_length=384, return_tensors="np"))
        for q in opening.calibration
    ]
    model = openvino(opening)
    config = OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(windows)))
    OVQuantizer.from_pretrained(model).quantize(nncf.Dataset(windows), ov_config=config)
    return model


def empty(opening: Opening) -> Any:
    from random_models import EmptyModel

    return EmptyModel()


def hashing(opening: Opening) -> Any:
    from random_models import HashingModel

    return HashingModel()


MODELS: Mapping[str, Callable[[Opening], Any]] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-int8": openvino_int8,
    "empty": empty,
    "hashing": hashing,
}


if __name__ == "__main__":
    main()
