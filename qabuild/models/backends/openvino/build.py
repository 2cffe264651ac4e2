"""Builds an OpenVINO graph: converts from PyTorch, then quantises to int8 if asked to. Imports torch on import."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qabuild.errors import VerificationFailed
from qabuild.models import calibration
from qabuild.models.backends.logit_check import TOLERANCES, outputs_of, probes, require_same
from qabuild.models.backends.openvino.core import core, package
from qabuild.models.backends.openvino.model import OUTPUTS, OpenVinoModel, load
from qabuild.models.backends.openvino.options import precision
from qabuild.models.backends.torch_model import Positional
from qabuild.models.runtime import Runtime
from qabuild.qa import squad_metric
from qabuild.qa.model_inputs import input_names

if TYPE_CHECKING:
    from qabuild.models.backends.openvino.options import Options
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.qa.data import Question

_COUNTED = re.compile(r"[A-Za-z]+_\d+")

FP32, INT8 = Runtime(dtype="fp32"), Runtime(dtype="int8")

HELD_BACK = 300
"""Training questions, none of them used for calibration, that accuracy control measures F1 on."""


def build(
    checkpoint: Checkpoint, options: Options, runtime: Runtime, path: Path, missing: Sequence[str]
) -> dict[str, Any]:
    """Write the checkpoint's model as a graph to `path`; return the manifest's record.

    The graph is compared with the checkpoint, unless `missing` says why this machine cannot run it.
    """
    from qabuild.models.checkpoint.load import load_tokenizer
    from qabuild.models.pruning.compact import load_compact

    tokenizer = load_tokenizer(checkpoint.directory)
    model = load_compact(checkpoint)
    inputs = input_names(model, tokenizer)
    batches = list(probes(tokenizer, inputs, model.config))
    graph = convert(model, inputs, batches[0])
    record: dict[str, Any] = {"inputs": list(inputs)}
    if runtime.dtype == "int8":
        graph, quantised = quantise(graph, inputs, tokenizer, model.config, options)
        record |= quantised
    save(graph, path)
    if missing:
        return {**record, "largest_difference": None, "not_compared": list(missing)}
    expected = outputs_of(model, batches)
    if runtime.dtype == "bf16":  # the graph is the same, and in fp32 a wrong one shows at once
        require_same(expected, load(path, model.config, options, FP32), batches, TOLERANCES["fp32"], "the graph")
    compiled = load(path, model.config, options, runtime)
    difference = require_same(expected, compiled, batches, TOLERANCES[runtime.dtype], "the graph")
    return {**record, "largest_difference": difference}


def convert(model: Any, inputs: Sequence[str], example: Mapping[str, Any]) -> Any:
    """Convert to an `openvino.Model`: int64 [batch, sequence] inputs, outputs `start_logits` and `end_logits`."""
    ov = package()
    arguments = tuple(example[name] for name in inputs)
    with torch.no_grad():  # OpenVINO would trace twice and reject traces that differ only in numbering
        traced = torch.jit.trace(Positional(model, inputs).eval(), arguments, strict=False, check_trace=False)
    shape = ov.PartialShape([-1, -1])
    graph = ov.convert_model(torch.jit.freeze(traced), input=[(shape, ov.Type.i64)] * len(inputs))
    for port, name in zip((*graph.inputs, *graph.outputs), (*inputs, *OUTPUTS), strict=True):
        port.get_tensor().set_names({name})
    graph.validate_nodes_and_infer_types()
    return graph


def save(graph: Any, path: Path) -> None:
    """Write graph and weights, so that the same model gives the same bytes.

    OpenVINO numbers its generated names across the process; here they are numbered from the start of the graph.
    """
    graph.set_friendly_name("question-answering")
    for number, node in enumerate(graph.get_ordered_ops()):
        if _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    package().save_model(graph, path, compress_to_fp16=False)  # the default rounds weights to half precision


def quantise(
    graph: Any, inputs: Sequence[str], tokenizer: Any, config: Any, options: Options
) -> tuple[Any, dict[str, Any]]:
    """Quantise the graph's matrix products to int8 with NNCF; return the graph and the manifest's record.

    With `accuracy_drop`, accuracy control reverts layers to floating point until the drop of F1 on held-back training
    questions is within it; raises VerificationFailed if it stays above.
    """
    import nncf

    everything = calibration.questions(options)
    sample = calibration.draw(options, everything)
    windows = calibration.windows(sample, tokenizer, inputs)
    fix = nncf.OverflowFix.ENABLE if options.overflow_fix else nncf.OverflowFix.DISABLE
    smooth = nncf.AdvancedSmoothQuantParameters(matmul=options.smooth_quant_alpha)
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix, smooth_quant_alphas=smooth)
    settings = {
        "model_type": nncf.ModelType.TRANSFORMER,
        "preset": nncf.QuantizationPreset(options.preset),
        "subset_size": len(windows),
        "ignored_scope": nncf.IgnoredScope(names=[head(graph)]),
    }
    record: dict[str, Any] = {"calibration": {**calibration.dataset_record(sample), "windows": len(windows)}}
    if options.accuracy_drop is None:
        return nncf.quantize(graph, nncf.Dataset(windows), advanced_parameters=advanced, **settings), record
    validation = F1Validation(tokenizer, config, precision(options, INT8))
    held_back = calibration.held_back(options, everything, HELD_BACK)
    before = validation.f1(graph, held_back.questions)
    quantised = nncf.quantize_with_accuracy_control(
        graph,
        nncf.Dataset(windows),
        nncf.Dataset(list(held_back.questions)),
        validation,
        max_drop=options.accuracy_drop,
        advanced_quantization_parameters=advanced,
        **settings,
    )
    drop = before - validation.f1(quantised, held_back.questions)
    if drop > options.accuracy_drop:
        raise VerificationFailed(
            f"int8 loses {drop:.2f} F1 on {len(held_back)} held-back training questions, and backend.accuracy_drop is "
            f"{options.accuracy_drop}",
            "allow more, calibrate on more questions (backend.calibration_samples), or set runtime.dtype to fp32",
        )
    return quantised, {**record, "held_back": {**calibration.dataset_record(held_back), "f1_drop": drop}}


def head(graph: Any) -> str:
    """The name of the matrix product of the logits, which stays in floating point: its two columns cost nothing."""
    products = [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return str(products[-1])


class F1Validation:
    """NNCF's validation function: the F1 of a compiled graph."""

    def __init__(self, tokenizer: Any, config: Any, precision: str) -> None:
        self._tokenizer, self._config, self._precision = tokenizer, config, precision

    def __call__(self, compiled: Any, questions: Iterable[Question]) -> tuple[float, list[float]]:
        """F1 of the compiled graph in points (0 to 100): the mean, and that of each question."""
        from qabuild.qa.pipeline import QuestionAnsweringPipeline

        questions = list(questions)
        pipeline: Any = QuestionAnsweringPipeline(self._model(compiled), self._tokenizer)
        results = pipeline({"question": question.question, "context": question.context} for question in questions)
        answers = {question.id: result["answer"] for question, result in zip(questions, results, strict=True)}
        scores = squad_metric.score_each(answers, {question.id: question.answers for question in questions})
        values = [scores[question.id].f1 for question in questions]
        return sum(values) / len(values), values

    def _model(self, compiled: Any) -> OpenVinoModel:
        return OpenVinoModel(lambda streams: compiled, [port.any_name for port in compiled.inputs], self._config)

    def f1(self, graph: Any, questions: Iterable[Question]) -> float:
        """Compile the graph and measure its F1, in points."""
        settings = {"INFERENCE_PRECISION_HINT": self._precision}
        return self(core().compile_model(graph, "CPU", settings), questions)[0]
