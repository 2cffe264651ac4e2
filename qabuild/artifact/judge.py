"""Judge measurements against gates."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from math import ceil
from pathlib import Path

from qabuild.artifact import as_built, handler
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import CrossCheck, Gate, Measurement, Original, Verification, describe
from qabuild.artifact.manifest import Artifact
from qabuild.system.units import count_of
from qabuild.target.gates import Gates

MOST_F1_GAIN = 1.0
"""Points of F1 that an artifact may gain on its checkpoint, at 99.9 % confidence.

No artifact surpasses its checkpoint by much. One that seems to is compared with answers that are not the checkpoint's.
"""

MOST_REFERENCE_LOGIT_DIFFERENCE = 1e-3
"""Of the checkpoint's logits to its sealed ones: that of fp32 in `GATES_BY_DTYPE`, for another machine or release."""

LOWEST_CROSS_CHECK = 0.9
"""Minimum agreement of two pipelines for a dtype without a `min_agreement`: int8, whose scales depend on the batch."""


OF_TRAINING = {"min_teacher_f1_retention", "max_f1_drop_from_original"}
"""Gates that judge the checkpoint's training, too."""


def judge(artifact: Artifact, measurement: Measurement, gates: Gates, key: str | None = None) -> Verification:
    """Apply every gate for the artifact's dtype to the measurement; the result records the present time.

    `key` is the key of the build step that measured. A gate whose limit is None is not applied.
    """
    limits = gates.by_dtype(artifact.manifest.runtime.dtype)
    checked, speed = measurement.cross_check, measurement.speed
    results = [
        *must_be("same_tokens", True, measurement.same_tokens),
        *must_be("finite_logits", True, measurement.finite_logits),
        *_reference_gates(measurement),
        *_f1_gates(limits, measurement),
        *at_least("min_agreement", limits.min_agreement, measurement.agreement),
        *at_most("max_logit_difference", limits.max_logit_difference, measurement.logit_difference),
        *as_built.gates(artifact, measurement),
        *_cross_check_gate(artifact, checked, limits),
        *at_least("min_speedup", limits.min_speedup, speed.speedup if speed else None),
        *at_least(
            "min_teacher_f1_retention", limits.min_teacher_f1_retention, _teacher_f1_retention(artifact, measurement)
        ),
    ]
    return Verification(
        artifact=artifact.manifest.name,
        manifest=artifact.digest,
        passed=all(gate.passed for gate in results),
        gates=results,
        measurement=measurement,
        verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
        key=key,
        other_versions=handler.other_versions(
            artifact.manifest.backend["name"], artifact.manifest.versions, measurement.versions
        ),
    )


def _reference_gates(measurement: Measurement) -> list[Gate]:
    """Gates on the sealed reference itself: it must be plausible, and be what the checkpoint answers if it was asked.

    None on what evidence of qabuild 0.1.0 does not hold.
    """
    interval, check = measurement.f1_difference_interval_999, measurement.reference_check
    gates = [] if interval is None else at_most("plausible_reference", MOST_F1_GAIN, interval[0])
    if check is not None:
        gates += at_least("same_reference", 1.0, check.agreement)
        gates += at_most("same_reference_logits", MOST_REFERENCE_LOGIT_DIFFERENCE, check.logit_difference)
    return gates


def _f1_gates(limits: Gates, measurement: Measurement) -> list[Gate]:
    """Gates on F1, each on what was measured or, with a `confidence`, on the worse end of the interval.

    The interval is that of the difference of two F1; to give a retention, the F1 of the checkpoint counts as exact.
    """
    level, whole = limits.confidence, measurement.checkpoint_f1
    lost, lost_from_original = (_f1_drop(each, level) for each in (measurement, measurement.original))
    kept: float | None = measurement.f1_retention
    if level is not None:
        kept = 1 - lost / whole if lost is not None and whole else None
    gates = [
        *at_least("min_f1_retention", limits.min_f1_retention, kept),
        *at_most("max_f1_drop", limits.max_f1_drop, lost),
        *at_most("max_f1_drop_from_original", limits.max_f1_drop_from_original, lost_from_original),
    ]
    return [replace(gate, confidence=level) for gate in gates]


def _f1_drop(measured: Measurement | Original | None, confidence: float | None) -> float | None:
    """Points of F1 that the artifact loses, at most with that `confidence`; None where it was not measured."""
    if measured is None:
        return None
    if confidence is None:
        return 0.0 - measured.f1_difference  # not -0.0
    return 0.0 - measured.f1_difference_bounds[0] if measured.f1_difference_bounds else None


def questions_to_tell(verification: Verification) -> int | None:
    """About how many questions it takes to pass, where every failed gate holds for what was measured, and only the
    interval around it is too wide; None elsewhere. The width falls with the square root of the number of questions.
    """
    m = verification.measurement
    measured = {
        "min_f1_retention": m.f1_retention,
        "max_f1_drop": _f1_drop(m, None),
        "max_f1_drop_from_original": _f1_drop(m.original, None),
    }
    needed = []
    for gate in verification.failed_gates:
        point = measured.get(gate.name)
        if gate.confidence is None or gate.value is None or point is None:
            return None
        if (gate.limit - point) * (gate.limit - gate.value) >= 0:  # both are on one side of the limit
            return None
        needed.append(m.questions * ((gate.value - point) / (gate.limit - point)) ** 2)
    return ceil(max(needed, default=0)) or None


def _cross_check_gate(artifact: Artifact, checked: CrossCheck | None, limits: Gates) -> list[Gate]:
    """The gate on the agreement with the second pipeline, named after it; none if the target disables the check.

    In fp32 the two pipelines differ in ties only; at lower precision logits depend on the batch as well.
    """
    if checked is None:
        return []
    limit = LOWEST_CROSS_CHECK if limits.min_agreement is None else limits.min_agreement
    return at_least(
        f"same_as_{checked.pipeline}", 1.0 if artifact.manifest.runtime.dtype == "fp32" else limit, checked.agreement
    )


def _teacher_f1_retention(artifact: Artifact, measurement: Measurement) -> float | None:
    """F1 of the distilled checkpoint over F1 of its teacher, on the same questions; None without a teacher."""
    training = artifact.manifest.training
    teacher = training.get("teacher") if training else None
    return measurement.checkpoint_f1 / teacher["f1"] if teacher and teacher["f1"] else None


def explain_failure(verification: Verification, directory: Path) -> tuple[str, str]:
    """Error message and hint for an artifact that failed: the failed gates and up to three questions that lost F1."""
    lines = [f"{directory}: verification failed"]
    for gate in verification.failed_gates:
        lines.append(f"  {describe(gate)}")
    if not verification.measurement.checkpoint_f1:
        lines.append("  the checkpoint itself has an F1 of 0 on these questions, so its F1 retention counts as 0")
    losses = [flip for flip in verification.measurement.flips if flip.f1_difference < 0]
    for flip in losses[:3]:
        lines.append(
            f"  {flip.id}: {flip.checkpoint!r} became {flip.artifact!r}, gold {flip.gold[0] if flip.gold else ''!r}"
        )
    changed = len(verification.measurement.flips)
    hint = f"{count_of(changed, 'answer')} changed, {len(losses)} for the worse: "
    hint += f"see `flips` in {directory / artifacts.EVIDENCE}"
    if {gate.name for gate in verification.failed_gates} <= OF_TRAINING:
        hint = (
            "the artifact reproduces its checkpoint, but that falls short of its teacher or of what it was made from: "
            "train on more questions, for more epochs, or a larger student, or prune less"
        )
    if questions := questions_to_tell(verification):
        hint = f"{verification.measurement.questions} questions are too few to tell: what was measured is within the "
        hint += f"limit, and the end of its interval is not; about {questions} questions would do (verify.samples), or "
        hint += "a lower confidence, or a larger limit"
    return "\n".join(lines), hint


def must_be(name: str, limit: bool, value: bool) -> list[Gate]:
    """A gate on a boolean: passes if `value` equals `limit`."""
    return [Gate(name=name, limit=limit, value=value, passed=value == limit)]


def at_least(name: str, limit: float | None, value: float | None) -> list[Gate]:
    """A gate with a lower limit; empty if `limit` is None. A value that was not measured (None) fails."""
    passed = limit is not None and value is not None and value >= limit
    return [] if limit is None else [Gate(name=name, limit=limit, value=value, passed=passed, bound="at least")]


def at_most(name: str, limit: float | None, value: float | None) -> list[Gate]:
    """A gate with an upper limit; empty if `limit` is None. A value that was not measured (None) fails."""
    passed = limit is not None and value is not None and value <= limit
    return [] if limit is None else [Gate(name=name, limit=limit, value=value, passed=passed, bound="at most")]
