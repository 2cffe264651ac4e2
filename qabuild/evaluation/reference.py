"""What the checkpoint itself answers: the standard that every artifact made from it is held against.

The reference is the eager fp32 model in a question-answering pipeline. Its answers, and its logits on a few probe
inputs, are sealed into the artifact, so that the artifact can be verified where the checkpoint is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.errors import UntrustedInput
from qabuild.qa.ask import asking, chunks
from qabuild.system.reporter import SILENT, Reporter

if TYPE_CHECKING:
    from qabuild.qa.data import Question, QuestionSet

FOLDER = "reference"
ANSWERS = "answers.json"
PROBES = "probes.safetensors"

# (questions, most tokens, padded to that length). Several batch sizes and lengths, with padding and without: a graph
# that was traced for one shape, or a mask that overflows, shows itself on another.
PROBE_SHAPES: tuple[tuple[int, int, bool], ...] = ((1, 48, False), (3, 128, False), (2, 384, True), (5, 224, False))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The sealed answers, and what they are answers to."""

    answers: Mapping[str, str]
    """Text by question id, in the order asked."""
    data: Mapping[str, Any]
    """dataset, revision, split, samples, seed, fingerprint, unanswerable"""
    probes: tuple[tuple[str, ...], ...]
    """Ids of the questions of each probe."""


def make(
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    data: Mapping[str, Any],
    directory: Path,
    reporter: Reporter = SILENT,
) -> None:
    """Ask the checkpoint's `model` every question, and write answers and probes into `directory`."""
    from safetensors.torch import save

    ask = asking(model, tokenizer, squad_v2=questions.has_unanswerable)
    answers: dict[str, str] = {}
    with reporter.progress("checkpoint answers", len(questions)) as advance:
        for chunk in chunks(questions.questions):
            answers.update(ask(chunk).answers)
            advance(len(chunk))
    probes = _choose_probes(questions.questions)
    tensors: dict[str, Any] = {}
    for number, (ids, shape) in enumerate(zip(probes, PROBE_SHAPES, strict=True)):
        inputs = encode_probe(tokenizer, [q for i in ids for q in questions.questions if q.id == i], shape)
        start, end = logits(model, inputs)
        named = {**inputs, "start_logits": start, "end_logits": end}
        tensors |= {f"{number}.{name}": tensor.contiguous().cpu() for name, tensor in named.items()}
    (directory / PROBES).write_bytes(save(tensors))  # `save_file` lets only the owner read it
    document = {"data": dict(data), "probes": probes, "answers": answers}
    (directory / ANSWERS).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(directory: Path) -> Reference:
    """The reference that `make` wrote. The files must have been held against the manifest before."""
    path = directory / ANSWERS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Reference(
            answers=document["answers"], data=document["data"], probes=tuple(tuple(ids) for ids in document["probes"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UntrustedInput(f"{path}: not a reference: {error}", "build the artifact again") from None


def read_probes(directory: Path) -> list[dict[str, Any]]:
    """The tensors of each probe: the model's inputs, and the checkpoint's `start_logits` and `end_logits`."""
    from safetensors.torch import load_file

    probes: list[dict[str, Any]] = [{} for _ in PROBE_SHAPES]
    for key, tensor in load_file(directory / PROBES).items():
        number, name = key.split(".", 1)
        probes[int(number)][name] = tensor
    return probes


def encode_probe(tokenizer: Any, questions: Sequence[Question], shape: tuple[int, int, bool]) -> dict[str, Any]:
    """The model's inputs for a probe: int64 tensors, [questions, tokens]."""
    _, length, padded = shape
    encoded = tokenizer(
        [q.question for q in questions],
        [q.context for q in questions],
        truncation="longest_first",
        max_length=min(length, tokenizer.model_max_length),
        padding="max_length" if padded else "longest",
        return_tensors="pt",
    )
    return {name: encoded[name] for name in tokenizer.model_input_names if name in encoded}


def logits(model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Start and end logits of one probe, fp32 on the CPU, [questions, tokens]."""
    import torch

    with torch.inference_mode():
        output = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    return output.start_logits.float().cpu(), output.end_logits.float().cpu()


def _choose_probes(questions: Sequence[Question]) -> list[list[str]]:
    """Ids for each probe: successive questions, from the start again where there are too few."""
    probes, position = [], 0
    for count, _, _ in PROBE_SHAPES:
        probes.append([questions[(position + i) % len(questions)].id for i in range(count)])
        position += count
    return probes
