"""Reference answers: the checkpoint's own, with which every artifact built from it is compared.

The reference is the eager fp32 model in a question-answering pipeline. Its answers, and its logits on a few probe
inputs, are sealed into the artifact, so that the artifact can be verified without the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import disclosure, sealed_reference
from qabuild.evaluation import probes
from qabuild.qa.ask import answerer, chunks
from qabuild.qa.model_inputs import input_names
from qabuild.system.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from qabuild.qa.data import QuestionSet


def write_reference(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    data: Mapping[str, Any],
    parameters: Mapping[str, Any],
    directory: Path,
    reporter: Reporter = SILENT,
) -> None:
    """Run every question on the checkpoint's `model`, and write answers and probes into `directory`.

    `parameters` are those of the pipeline. `data` describes the questions' source and is written along with the
    answers; its `shown` says how much of the questions is, see `qabuild.artifact.disclosure`.
    """
    ask = answerer(model, tokenizer, **parameters)
    answers: dict[str, str] = {}
    with reporter.progress("checkpoint answers", len(questions)) as advance:
        for chunk in chunks(questions.questions):
            answers.update(ask(chunk).answers)
            advance(len(chunk))
    names = input_names(model, tokenizer)
    by_id = {question.id: question for question in questions.questions}
    described = probes.choose(questions.questions, tokenizer, probes.longest_input(model, tokenizer))
    tensors = []
    for probe in described:
        inputs = probes.encode(probe, tokenizer, by_id, names)
        start, end = logits(model, inputs)
        tensors.append(disclosure.hide_probe({**inputs, "start_logits": start, "end_logits": end}, data))
    sealed_reference.write_probes(directory, tensors)
    document = {"data": dict(data), "probes": [asdict(probe) for probe in described], "answers": answers}
    text = json.dumps(disclosure.hide(document, questions), indent=1, ensure_ascii=False)
    (directory / sealed_reference.ANSWERS).write_text(f"{text}\n", encoding="utf-8")


def logits(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Start and end logits of one probe: fp32 on the CPU, [questions, tokens]."""
    import torch

    with torch.inference_mode():
        output = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return output.start_logits.float().cpu(), output.end_logits.float().cpu()
