"""How far a compiled model of low precision is from its checkpoint: recorded when it is built, and measured again.

A gate on F1 leaves room for what quantisation costs, and in that room a fault of the model file goes unseen. So each
artifact has limits of its own: what its model differed by when it was compiled, with a margin for other processors.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact.evidence import Gate, Measurement
from qabuild.artifact.manifest import Artifact

if TYPE_CHECKING:
    from qabuild.artifact.sealed_reference import Reference
    from qabuild.qa.data import QuestionSet

QUESTIONS = 256
"""How many of the reference's questions, the first ones, are answered for the record."""

MARGIN = 2.0
"""Factor on the recorded root mean square. Kernels of another processor round elsewhere, so the same error is drawn
again: with OpenVINO's int8 for AVX2, AVX-512 and VNNI, it differed by a factor of 1.2. Ignored token types, shifted
positions or a lost layer are a factor of 5 or more."""

NEGLIGIBLE = 0.01
"""A root mean square, in logits, for which no artifact fails: the fp16 kernels of one GPU may be closer than this."""


def record(
    directory: Path, model: Any, tokenizer: Any, questions: QuestionSet, sealed: Reference, sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """What the manifest records of the compiled `model`, compared with the reference in `directory`.

    `sizes` are those of `measure.batch_sizes`; the batch size that changes most answers counts.
    """
    from qabuild.evaluation.measure import compare_logits
    from qabuild.qa.ask import answerer, chunks

    asked = questions.questions[:QUESTIONS]
    changed = []
    for size in sizes.values():
        ask = answerer(model, tokenizer, squad_v2=questions.has_unanswerable, batch_size=size)
        answers = {name: text for chunk in chunks(asked) for name, text in ask(chunk).answers.items()}
        changed.append(sum(text != sealed.answers[name] for name, text in answers.items()))
    logits = compare_logits(directory, model, tokenizer, questions, sealed)
    return {
        "logit_difference": logits["logit_difference"],
        "logit_rms": logits["logit_rms"],
        "questions": len(asked),
        "changed_answers": max(changed),
    }


def gates(artifact: Artifact, measurement: Measurement) -> list[Gate]:
    """The limits that the artifact's own record sets; none where it has no record, as in fp32."""
    recorded = artifact.manifest.deviation
    if recorded is None:
        return []
    first = set(list(artifact.reference.answers)[: recorded["questions"]])
    changed = sum(flip.id in first for flip in measurement.flips)
    return [
        _at_most("logit_rms_as_built", max(MARGIN * recorded["logit_rms"], NEGLIGIBLE), measurement.logit_rms),
        _at_most("changed_answers_as_built", most_changed(recorded["changed_answers"]), changed),
    ]


def most_changed(recorded: int) -> int:
    """The most answers that may have changed, where `recorded` had when it was built.

    That many and three standard deviations of the difference of two such counts, each a Poisson variable.
    """
    return int(recorded + 3 * sqrt(2 * max(recorded, 1)))


def _at_most(name: str, limit: float, value: float | None) -> Gate:
    return Gate(name=name, limit=limit, value=value, passed=value is not None and value <= limit)
