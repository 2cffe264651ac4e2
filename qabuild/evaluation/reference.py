"""Reference answers: the checkpoint's own, with which every artifact built from it is compared.

The reference is the eager fp32 model in a question-answering pipeline. Its answers, and its logits on a few probe
inputs, are sealed into the artifact, so that the artifact can be verified without the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import disclosure
from qabuild.artifact.sealed_reference import ANSWERS, PROBE_SHAPES, PROBES
from qabuild.qa.ask import answerer, chunks
from qabuild.qa.model_inputs import input_names
from qabuild.system.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from qabuild.qa.data import Question, QuestionSet


def write_reference(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    data: Mapping[str, Any],
    directory: Path,
    reporter: Reporter = SILENT,
) -> None:
    """Run every question on the checkpoint's `model`, and write answers and probes into `directory`.

    `data` describes the questions' source and is written along with the answers; its `shown` says how much of the
    questions is, see `qabuild.artifact.disclosure`.
    """
    from safetensors.torch import save

    ask = answerer(model, tokenizer, squad_v2=questions.has_unanswerable)
    answers: dict[str, str] = {}
    with reporter.progress("checkpoint answers", len(questions)) as advance:
        for chunk in chunks(questions.questions):
            answers.update(ask(chunk).answers)
            advance(len(chunk))
    probes = _choose_probes(questions.questions)
    names = input_names(model, tokenizer)
    tensors: dict[str, Any] = {}
    for number, (ids, shape) in enumerate(zip(probes, PROBE_SHAPES, strict=True)):
        inputs = encode_probe(tokenizer, [q for i in ids for q in questions.questions if q.id == i], shape, names)
        start, end = logits(model, inputs)
        probe = disclosure.hide_probe({**inputs, "start_logits": start, "end_logits": end}, data)
        tensors |= {f"{number}.{name}": tensor.contiguous().cpu() for name, tensor in probe.items()}
    (directory / PROBES).write_bytes(save(tensors))  # not `save_file`, which makes the file readable by its owner only
    document = disclosure.hide({"data": dict(data), "probes": probes, "answers": answers}, questions)
    (directory / ANSWERS).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def encode_probe(
    tokenizer: Any, questions: Sequence[Question], shape: tuple[int, int, bool], names: Collection[str]
) -> dict[str, Any]:
    """The inputs `names` for a probe of the given `shape` (see PROBE_SHAPES): int64 tensors, [questions, tokens]."""
    _, length, padded = shape
    encoded = tokenizer(
        [q.question for q in questions],
        [q.context for q in questions],
        truncation="longest_first",
        max_length=min(length, tokenizer.model_max_length),
        padding="max_length" if padded else "longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {name: encoded[name] for name in names if name in encoded}


def logits(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Start and end logits of one probe: fp32 on the CPU, [questions, tokens]."""
    import torch

    with torch.inference_mode():
        output = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return output.start_logits.float().cpu(), output.end_logits.float().cpu()


def _choose_probes(questions: Sequence[Question]) -> list[list[str]]:
    """Question ids of each probe: consecutive questions, wrapping around if there are too few."""
    probes, position = [], 0
    for count, _, _ in PROBE_SHAPES:
        probes.append([questions[(position + i) % len(questions)].id for i in range(count)])
        position += count
    return probes
