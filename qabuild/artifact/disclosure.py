"""What an artifact shows of its questions: `publish.data` of its target, applied when the reference is sealed.

full    ids and texts, and the token ids of the probes
ids     ids. In place of a text stands its place in the question's context, "start:end" in characters; in place of
        the inputs of a probe, their SHA-256
none    as ids, with numbers from 1 in place of ids, and without a file's name

Whoever has the questions restores the texts from the places, so each of them can be verified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qabuild.errors import UntrustedInput

if TYPE_CHECKING:
    from qabuild.artifact.evidence import Flip
    from qabuild.artifact.sealed_reference import Reference
    from qabuild.qa.data import Question, QuestionSet

FULL, IDS, NONE = "full", "ids", "none"
PRIVATE_FILE = "private-file"
LOGITS = ("start_logits", "end_logits")


def shown(data: Mapping[str, Any]) -> str:
    """How much is shown, by the `data` of a reference; earlier versions of qabuild showed all."""
    return str(data.get("shown", FULL))


def by_name(data: Mapping[str, Any], questions: QuestionSet) -> dict[str, Question]:
    """The questions by the names that the reference gives them: ids, or numbers."""
    if shown(data) == NONE:
        return {str(number): question for number, question in enumerate(questions.questions, 1)}
    return {question.id: question for question in questions.questions}


def hide(document: Mapping[str, Any], questions: QuestionSet) -> dict[str, Any]:
    """The reference `document` ("data", "probes", "answers") as it is sealed."""
    data = document["data"]
    if shown(data) == FULL:
        return dict(document)
    names = {question.id: name for name, question in by_name(data, questions).items()}
    ids = {question.id: question for question in questions.questions}
    hidden = {"dataset": PRIVATE_FILE} if shown(data) == NONE and data["file"] else {}
    return {
        "data": {**data, **hidden},
        "probes": _renamed(document["probes"], names),
        "answers": {names[name]: _place(ids[name], text) for name, text in document["answers"].items()},
    }


def hide_probe(probe: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a probe as they are sealed: of hidden inputs, the SHA-256, 32 bytes in a row."""
    if shown(data) == FULL:
        return dict(probe)
    return {name: tensor if name in LOGITS else _digest(tensor) for name, tensor in probe.items()}


def hide_flips(flips: Sequence[Flip], data: Mapping[str, Any], questions: QuestionSet) -> list[Flip]:
    """The flips as the evidence lists them."""
    if shown(data) == FULL:
        return list(flips)
    ids = {question.id: question for question in questions.questions}
    names = {question.id: name for name, question in by_name(data, questions).items()}
    return [
        replace(
            flip,
            id=names[flip.id],
            question="",
            checkpoint=_place(ids[flip.id], flip.checkpoint),
            artifact=_place(ids[flip.id], flip.artifact),
            gold=[_place(ids[flip.id], text) for text in flip.gold],
        )
        for flip in flips
    ]


def reveal_answers(sealed: Reference, questions: QuestionSet) -> dict[str, str]:
    """The sealed answers as texts, by id. Raises UntrustedInput where they do not fit the questions."""
    return reveal(sealed.answers, sealed.data, questions)


def reveal(answers: Mapping[str, str], data: Mapping[str, Any], questions: QuestionSet) -> dict[str, str]:
    """Answers of a reference or of flips, by name, as texts by id."""
    if shown(data) == FULL:
        return dict(answers)
    named = by_name(data, questions)
    try:
        return {named[name].id: _text(named[name], place) for name, place in answers.items()}
    except (KeyError, ValueError) as error:
        raise UntrustedInput(
            f"{questions.name}: the sealed answers do not fit these questions: {error}", "build the artifact again"
        ) from None


def reveal_probe(probe: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The inputs of a sealed probe, and whether `inputs`, which the tokenizer makes of its questions, are the same.

    Hidden inputs are taken from `inputs`.
    """
    import torch

    stored = {name: tensor for name, tensor in probe.items() if name not in LOGITS}
    hidden = {name for name, tensor in stored.items() if tensor.dim() == 1}
    same = inputs.keys() == stored.keys() and all(
        torch.equal(_digest(inputs[name]) if name in hidden else inputs[name], tensor)
        for name, tensor in stored.items()
    )
    return {name: inputs[name] if name in hidden else tensor for name, tensor in stored.items()}, same


def describe(data: Mapping[str, Any], questions: int) -> str:
    """What whoever gets the artifact sees of its questions, in one line."""
    source = data["dataset"] if shown(data) != NONE else "a private file" if data["file"] else data["dataset"]
    seen = {
        FULL: "ids, the checkpoint's answers, texts of the changed answers' questions, and contexts of the probes",
        IDS: "ids and the answers' places in the contexts, no texts",
        NONE: "the answers' places in the contexts, neither ids nor texts",
    }
    return f"of {questions} questions of {source}: {seen[shown(data)]} (publish.data = '{shown(data)}')"


def _place(question: Question, text: str) -> str:
    """Where the text first occurs in the context; empty for no answer."""
    if not text:
        return ""
    start = question.context.index(text)
    return f"{start}:{start + len(text)}"


def _text(question: Question, place: str) -> str:
    if not place:
        return ""
    if not (match := re.fullmatch("([0-9]+):([0-9]+)", place)):
        raise ValueError(f"{place!r} is no place")
    return question.context[int(match[1]) : int(match[2])]


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The JSON value, with every id in its lists replaced by its name."""
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


def _digest(tensor: Any) -> Any:
    """SHA-256 of shape and values of int64, as a tensor of 32 bytes."""
    import torch

    content = f"{tuple(tensor.shape)}".encode() + tensor.cpu().to(torch.int64).contiguous().numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)
