"""How far a compiled model of low precision is from its checkpoint, for the manifest; `artifact.as_built` limits it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import disclosure

if TYPE_CHECKING:
    from qabuild.artifact.sealed_reference import Reference
    from qabuild.qa.data import QuestionSet

QUESTIONS = 256
"""How many of the reference's questions, the first ones, are answered for the record."""


def record(
    directory: Path,
    model: Any,
    tokenizer: Any,
    questions: QuestionSet,
    parameters: Mapping[str, Any],
    sealed: Reference,
    sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """What the manifest records of the compiled `model`, compared with the reference in `directory`.

    `parameters` are those of the pipeline. `sizes` are those of `differences.batch_sizes`; the batch size that changes
    most answers counts.
    """
    from qabuild.evaluation.differences import of_logits
    from qabuild.qa.ask import answerer, chunks

    asked, expected = questions.questions[:QUESTIONS], disclosure.reveal_answers(sealed, questions)
    changed = []
    for size in sizes.values():
        ask = answerer(model, tokenizer, **parameters, batch_size=size)
        answers = {name: text for chunk in chunks(asked) for name, text in ask(chunk).answers.items()}
        changed.append(sum(text != expected[name] for name, text in answers.items()))
    logits = of_logits(directory, model, tokenizer, questions, sealed)
    return {
        "logit_difference": logits["logit_difference"],
        "logit_rms": logits["logit_rms"],
        "questions": len(asked),
        "changed_answers": max(changed),
    }
