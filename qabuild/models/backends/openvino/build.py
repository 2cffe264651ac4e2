"""Making an OpenVINO graph: converted from PyTorch, then in int8 where that is asked for. Imports torch at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qabuild.errors import VerificationFailed
from qabuild.models import calibration
from qabuild.models.backends.logit_check import TOLERANCES, answers, probes, require_same
from qabuild.models.backends.openvino.core import core, package
from qabuild.models.backends.openvino.model import OUTPUTS, OpenVinoModel, load
from qabuild.models.backends.openvino.options import precision
from qabuild.models.backends.torch_model import Positional, inputs_of
from qabuild.models.runtime import Runtime
from qabuild.qa import squad_metric

if TYPE_CHECKING:
    from qabuild.models.backends.openvino.options import Options
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.qa.data import Question

_COUNTED = re.compile(r"[A-Za-z]+_\d+")

INT8 = Runtime(dtype="int8")

HELD_BACK = 300
"""Training questions by which accuracy control judges, beside those that it calibrates on."""


def build(
    checkpoint: Checkpoint, options: Options, runtime: Runtime, path: Path, lacks: Sequence[str]
) -> dict[str, Any]:
    """Write the checkpoint's model as a graph to `path`; return what is to be recorded.

    The graph is held against the checkpoint, unless `lacks` says why this machine cannot run it.
    """
    from qabuild.models.checkpoint.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(checkpoint.directory)
    model = load_model(checkpoint)
    inputs = inputs_of(model, tokenizer)
    batches = list(probes(tokenizer, inputs, model.config))
    graph = convert(model, inputs, batches[0])
    record: dict[str, Any] = {"inputs": list(inputs)}
    if runtime.dtype == "int8":
        graph, quantised = quantise(graph, inputs, tokenizer, model.config, options)
        record |= quantised
    save(graph, path)
    if lacks:
        return {**record, "largest_difference": None, "not_compared": list(lacks)}
    compiled = load(path, model.config, options, runtime)
    expected = answers(model, batches)
    difference = require_same(expected, compiled, batches, TOLERANCES[runtime.dtype], "the graph")
    return {**record, "largest_difference": difference}


def convert(model: Any, inputs: Sequence[str], example: Mapping[str, Any]) -> Any:
    """The model as an `openvino.Model`: int64 [batch, sequence] inputs, outputs `start_logits` and `end_logits`."""
    ov = package()
    arguments = tuple(example[name] for name in inputs)
    with torch.no_grad():  # traced here, since OpenVINO would trace twice and refuse what differs in numbering only
        traced = torch.jit.trace(Positional(model, inputs).eval(), arguments, strict=False, check_trace=False)
    graph = ov.convert_model(torch.jit.freeze(traced))
    for port, name in zip((*graph.inputs, *graph.outputs), (*inputs, *OUTPUTS), strict=True):
        port.get_tensor().set_names({name})
    for port in graph.inputs:
        port.get_node().set_partial_shape(ov.PartialShape([-1, -1]))
        port.get_node().set_element_type(ov.Type.i64)
    graph.validate_nodes_and_infer_types()
    return graph


def save(graph: Any, path: Path) -> None:
    """Write graph and weights, so that the same model gives the same bytes.

    OpenVINO's own names count what was made before in the process. Here they count from the start of the graph.
    """
    graph.set_friendly_name("question-answering")
    for number, node in enumerate(graph.get_ordered_ops()):
        if _COUNTED.fullmatch(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    package().save_model(graph, path, compress_to_fp16=False)  # by default, weights are rounded to half precision


def quantise(
    graph: Any, inputs: Sequence[str], tokenizer: Any, config: Any, options: Options
) -> tuple[Any, dict[str, Any]]:
    """The graph with its matrix products in 8 bits, and what is to be recorded of that.

    With `accuracy_drop`, layers go back to floating point until the F1 on held-back training questions is within it;
    raises VerificationFailed where it never is.
    """
    import nncf

    everything = calibration.questions(options)
    drawn = calibration.draw(options, everything)
    windows = calibration.windows(drawn, tokenizer, inputs)
    fix = nncf.OverflowFix.ENABLE if options.overflow_fix else nncf.OverflowFix.DISABLE
    smooth = nncf.AdvancedSmoothQuantParameters(matmul=options.smooth_quant_alpha)
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix, smooth_quant_alphas=smooth)
    chosen = {
        "model_type": nncf.ModelType.TRANSFORMER,
        "preset": nncf.QuantizationPreset(options.preset),
        "subset_size": len(windows),
        "ignored_scope": nncf.IgnoredScope(names=[head(graph)]),
    }
    record: dict[str, Any] = {"calibration": {**calibration.described(drawn), "windows": len(windows)}}
    if options.accuracy_drop is None:
        return nncf.quantize(graph, nncf.Dataset(windows), advanced_parameters=advanced, **chosen), record
    judge = Judge(tokenizer, config, precision(options, INT8))
    others = calibration.held_back(options, everything, HELD_BACK)
    before = judge.f1(graph, others.questions)
    quantised = nncf.quantize_with_accuracy_control(
        graph,
        nncf.Dataset(windows),
        nncf.Dataset(list(others.questions)),
        judge,
        max_drop=options.accuracy_drop,
        advanced_quantization_parameters=advanced,
        **chosen,
    )
    drop = before - judge.f1(quantised, others.questions)
    if drop > options.accuracy_drop:
        raise VerificationFailed(
            f"int8 loses {drop:.2f} F1 on {len(others)} held-back training questions, and backend.accuracy_drop is "
            f"{options.accuracy_drop}",
            "allow more, calibrate on more questions (backend.calibration_samples), or set runtime.dtype to fp32",
        )
    return quantised, {**record, "held_back": {**calibration.described(others), "f1_drop": drop}}


def head(graph: Any) -> str:
    """The name of the matrix product that makes the logits: two columns, which cost nothing in floating point."""
    products = [node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return str(products[-1])


class Judge:
    """What the answers of a graph are worth, as NNCF's accuracy control asks for it."""

    def __init__(self, tokenizer: Any, config: Any, precision: str) -> None:
        self._tokenizer, self._config, self._precision = tokenizer, config, precision

    def __call__(self, compiled: Any, questions: Iterable[Question]) -> tuple[float, list[float]]:
        """F1 of the compiled graph on the questions, in points: their mean, and that of each."""
        from qabuild.qa.pipeline import QuestionAnsweringPipeline

        asked = list(questions)
        pipeline: Any = QuestionAnsweringPipeline(self._model(compiled), self._tokenizer)
        found = pipeline({"question": each.question, "context": each.context} for each in asked)
        given = {each.id: result["answer"] for each, result in zip(asked, found, strict=True)}
        each = squad_metric.score_each(given, {question.id: question.answers for question in asked})
        values = [each[question.id].f1 for question in asked]
        return sum(values) / len(values), values

    def _model(self, compiled: Any) -> OpenVinoModel:
        return OpenVinoModel(lambda streams: compiled, [port.any_name for port in compiled.inputs], self._config)

    def f1(self, graph: Any, questions: Iterable[Question]) -> float:
        """F1 of a graph that is not compiled yet."""
        settings = {"INFERENCE_PRECISION_HINT": self._precision}
        return self(core().compile_model(graph, "CPU", settings), questions)[0]
