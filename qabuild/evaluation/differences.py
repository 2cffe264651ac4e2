"""How an artifact differs from its reference: in answers, in their scores, and in the logits of the probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qabuild.artifact import disclosure, sealed_reference
from qabuild.artifact.evidence import BatchAccuracy, Flip, Original
from qabuild.artifact.manifest import Artifact
from qabuild.errors import UntrustedInput
from qabuild.evaluation import probes, reference
from qabuild.evaluation.bootstrap import mean_interval
from qabuild.models.backends import backend
from qabuild.models.runtime import Runtime
from qabuild.qa import squad_metric
from qabuild.qa.data import QuestionSet

ARTIFACT, ALONE = "artifact", "artifact at batch 1"
"""The artifact at its target's batch size and, where answers depend on that, at one window at a time."""


def batch_sizes(options: Any, runtime: Runtime, batch_size: int) -> dict[str, int | None]:
    """The batch sizes at which an artifact is measured, by name; `batch_size` is that of its target.

    Where the backend states that answers depend on the batch, they are two: the target's and one window at a time.
    """
    if runtime.dtype not in backend(options.name).BATCH_DEPENDENT:
        return {ARTIFACT: None}
    return {ARTIFACT: batch_size, **({ALONE: 1} if batch_size != 1 else {})}


def of_worst_batch(
    questions: QuestionSet, expected: Mapping[str, str], answers: Mapping[int | None, Mapping[str, str]]
) -> tuple[Mapping[str, str], dict[str, Any]]:
    """Of the answers at each batch size those of the worst F1, and the fields of a Measurement that tell them apart."""
    if list(answers) == [None]:
        return answers[None], {}
    gold = {question.id: question.answers for question in questions.questions}
    by_batch = []
    for size, texts in answers.items():
        assert size is not None
        scores = squad_metric.score(texts, gold)
        same = sum(text == expected[name] for name, text in texts.items()) / len(texts)
        by_batch.append(BatchAccuracy(batch_size=size, exact_match=scores.exact_match, f1=scores.f1, agreement=same))
    worst = min(by_batch, key=lambda accuracy: accuracy.f1).batch_size
    return answers[worst], {"batch_size": worst, "by_batch": by_batch}


def of_answers(
    questions: QuestionSet,
    answers: Mapping[str, str],
    expected: Mapping[str, str],
    shown: Mapping[str, Any],
    confidence: float | None,
) -> dict[str, Any]:
    """The fields of a Measurement on the answers; `shown` is the reference's `data`, which may hide the flips."""
    gold = {question.id: question.answers for question in questions.questions}
    artifact, checkpoint = squad_metric.score(answers, gold), squad_metric.score(expected, gold)
    differences = _f1_differences(answers, expected, gold)
    flips = [
        Flip(
            id=question.id,
            question=question.question,
            checkpoint=expected[question.id],
            artifact=answers[question.id],
            gold=question.answers,
            f1_difference=difference,
        )
        for question, difference in zip(questions.questions, differences, strict=True)
        if answers[question.id] != expected[question.id]
    ]
    return {
        "checkpoint_exact_match": checkpoint.exact_match,
        "checkpoint_f1": checkpoint.f1,
        "exact_match": artifact.exact_match,
        "f1": artifact.f1,
        "f1_difference": artifact.f1 - checkpoint.f1,
        "f1_difference_interval": mean_interval(differences),
        "f1_difference_bounds": mean_interval(differences, confidence) if confidence else None,
        "f1_difference_interval_999": mean_interval(differences, 0.999),
        "agreement": 1 - len(flips) / len(questions),
        "flips": disclosure.hide_flips(sorted(flips, key=lambda flip: flip.f1_difference), shown, questions),
    }


def from_original(artifact: Artifact, questions: QuestionSet, answers: Mapping[str, str]) -> Original | None:
    """The scores of the original that the artifact holds answers of, and what the artifact's F1 differs by."""
    sealed, confidence = artifact.original, artifact.manifest.gates.confidence
    if sealed is None:
        return None
    gold = {question.id: question.answers for question in questions.questions}
    theirs = disclosure.reveal_answers(sealed, questions)
    scores, differences = squad_metric.score(theirs, gold), _f1_differences(answers, theirs, gold)
    return Original(
        exact_match=scores.exact_match,
        f1=scores.f1,
        f1_difference=squad_metric.score(answers, gold).f1 - scores.f1,
        f1_difference_interval=mean_interval(differences),
        f1_difference_bounds=mean_interval(differences, confidence) if confidence else None,
    )


def of_logits(
    directory: Path, model: Any, tokenizer: Any, questions: QuestionSet, sealed: sealed_reference.Reference
) -> dict[str, Any]:
    """The fields of a Measurement on the probes of the reference in `directory`. Raises UntrustedInput without any."""
    import torch

    if not sealed.probes:
        raise UntrustedInput(f"{directory}: a reference without probes", "build the artifact again")
    named = disclosure.by_name(sealed.data, questions)
    measured, differences, finite, same_tokens = [], [], True, True
    stored = sealed_reference.read_probes(directory)
    for described, probe in zip(sealed.probes, stored, strict=True):
        expected = torch.stack([probe.pop("start_logits"), probe.pop("end_logits")])
        inputs, same = disclosure.reveal_probe(probe, probes.encode(described, tokenizer, named, probe.keys()))
        same_tokens &= same
        if inputs["input_ids"].shape != expected.shape[1:]:  # hidden inputs of another tokenizer: without sealed logits
            inputs = {name: tensor.new_ones(expected.shape[1:]) for name, tensor in inputs.items()}
        unpadded = inputs["attention_mask"] == 1
        actual = torch.stack(reference.logits(model, inputs))[:, unpadded]
        finite &= bool(actual.isfinite().all())
        difference = (actual.double() - expected[:, unpadded]).abs().nan_to_num(nan=3e38, posinf=3e38).flatten()
        differences.append(difference)
        batch, sequence = inputs["input_ids"].shape
        measured.append({"batch": batch, "sequence": sequence, "logit_difference": float(difference.max())})
    all_differences = torch.cat(differences)
    return {
        "same_tokens": same_tokens,
        "finite_logits": finite,
        "logit_difference": float(all_differences.max()),
        "logit_rms": float(all_differences.square().mean().sqrt()),
        "probes": measured,
    }


def _f1_differences(
    answers: Mapping[str, str], others: Mapping[str, str], gold: Mapping[str, Sequence[str]]
) -> list[float]:
    """F1 of each answer less that of the other one, in points."""
    scores, other_scores = (squad_metric.score_each(texts, gold) for texts in (answers, others))
    return [scores[name].f1 - other_scores[name].f1 for name in gold]
