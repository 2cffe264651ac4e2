"""Audit that the timed answers agree with the verification, as TEST01 of MLPerf Inference does for its timed runs."""

from __future__ import annotations

from collections.abc import Mapping

from qabuild.artifact.evidence import Gate
from qabuild.artifact.judge import at_least, at_most, must_be
from qabuild.evaluation.compare.accuracy import Gold, ScoredAnswers, answers_by_id
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.rounds import Run
from qabuild.qa import squad_metric
from qabuild.system import machine, packages


def audit(run: Run, answers: ScoredAnswers, gold: Gold) -> list[Gate]:
    """Apply the audit's gates to one contestant.

    The first questions were run in the batches of the verification and must give the same answers: all of them on the
    same machine and packages, else `min_agreement` of them. The timed answers come from other batches, which may
    decide ties differently, so they must only pass the gates of the artifact's target, as measured: its `confidence`
    is for the verification. They are for all questions of the verification, so answers to a part of them are not judged
    by them. An artifact that failed its verification fails the audit.
    """
    limits, sealed = run.contestant.artifact.manifest.gates, run.contestant.reference.answers
    audited = {name: text for name, (text, _, _) in answers_by_id(run.audit, gold).items()}
    min_same = 1.0 if _same_environment(run.contestant) else limits.min_agreement
    identity = [
        *must_be("verified", True, run.contestant.verification.passed),
        *at_least("same_as_verified", min_same, _agreement(audited, run.contestant.verified_answers)),
    ]
    if len(gold) < len(sealed):
        return identity
    checkpoint_f1 = squad_metric.score(sealed, gold).f1
    f1 = answers.total.f1
    return [
        *identity,
        *at_least("min_f1_retention", limits.min_f1_retention, f1 / checkpoint_f1 if checkpoint_f1 else 0.0),
        *at_most("max_f1_drop", limits.max_f1_drop, checkpoint_f1 - f1),
        *at_least("min_agreement", limits.min_agreement, _agreement(answers.texts, sealed)),
    ]


def _agreement(answers: Mapping[str, str], others: Mapping[str, str]) -> float:
    """Share of `answers` that equal those of `others`."""
    return sum(answer == others[name] for name, answer in answers.items()) / len(answers)


def _same_environment(contestant: Contestant) -> bool:
    """Whether this machine and its packages are those of the verification."""
    verified = contestant.verification.measurement
    return dict(verified.machine) == machine.describe() and dict(verified.versions) == packages.versions(
        verified.versions
    )
