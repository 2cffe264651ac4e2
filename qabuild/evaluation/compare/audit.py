"""Is what was timed what was verified? The idea is that of MLPerf's TEST01: accuracy is that of the timed run."""

from __future__ import annotations

from collections.abc import Mapping

from qabuild.artifact.evidence import Gate
from qabuild.evaluation.compare.accuracy import Answered, Gold, in_order
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.rounds import Run
from qabuild.evaluation.judge import at_least, must_be
from qabuild.qa import squad_metric
from qabuild.system import machine, packages


def judge(run: Run, own: Answered, gold: Gold) -> list[Gate]:
    """Judge what one contestant answered against its gates.

    The first questions were asked in the batches of the verification, and must be answered as then, on the same
    machine and packages all of them. The answers that were timed come from other batches, so that ties may fall
    otherwise: they must pass the gates of the artifact's target. What failed its verification fails here as well.
    """
    limits, sealed = run.contestant.artifact.manifest.gates, run.contestant.reference.answers
    audited = {name: text for name, (text, _, _) in in_order(run.audit, gold).items()}
    same = 1.0 if _is_where_it_was_verified(run.contestant) else limits.min_agreement
    checkpoint_f1 = squad_metric.score(sealed, gold).f1
    return [
        *must_be("verified", True, run.contestant.verification.passed),
        *at_least("same_as_verified", same, _agreement(audited, run.contestant.verified_answers)),
        *at_least("min_f1_retention", limits.min_f1_retention, own.total.f1 / checkpoint_f1 if checkpoint_f1 else 0.0),
        *at_least("min_agreement", limits.min_agreement, _agreement(own.texts, sealed)),
    ]


def _agreement(answers: Mapping[str, str], others: Mapping[str, str]) -> float:
    """Share of the questions with the same answer."""
    return sum(answer == others[name] for name, answer in answers.items()) / len(answers)


def _is_where_it_was_verified(contestant: Contestant) -> bool:
    then = contestant.verification.measurement
    return dict(then.machine) == machine.describe() and dict(then.versions) == packages.versions(then.versions)
