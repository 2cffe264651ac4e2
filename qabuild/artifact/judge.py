"""Judge measurements against gates."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from qabuild.artifact import as_built, handler
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import CrossCheck, Gate, Measurement, Verification, describe
from qabuild.artifact.manifest import Artifact
from qabuild.target.gates import Gates

MOST_F1_GAIN = 1.0
"""Points of F1 that an artifact may gain on its checkpoint, at 99.9 % confidence.

No artifact surpasses its checkpoint by much. One that seems to is compared with answers that are not the checkpoint's.
"""

MOST_REFERENCE_LOGIT_DIFFERENCE = 1e-3
"""Of the checkpoint's logits to its sealed ones: that of fp32 in `GATES_BY_DTYPE`, for another machine or release."""

LOWEST_CROSS_CHECK = 0.9
"""Minimum agreement of two pipelines for a dtype without a `min_agreement`: int8, whose scales depend on the batch."""


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
        *at_least("min_f1_retention", limits.min_f1_retention, measurement.f1_retention),
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
    hint = f"{changed} answers changed, {len(losses)} for the worse: see `flips` in {directory / artifacts.EVIDENCE}"
    if [gate.name for gate in verification.failed_gates] == ["min_teacher_f1_retention"]:
        hint = "the artifact reproduces its checkpoint, but the student falls short of its teacher: distil on more "
        hint += "questions, for more epochs, or into a larger student"
    return "\n".join(lines), hint


def must_be(name: str, limit: bool, value: bool) -> list[Gate]:
    """A gate on a boolean: passes if `value` equals `limit`."""
    return [Gate(name=name, limit=limit, value=value, passed=value == limit)]


def at_least(name: str, limit: float | None, value: float | None) -> list[Gate]:
    """A gate with a lower limit; empty if `limit` is None. A value that was not measured (None) fails."""
    passed = limit is not None and value is not None and value >= limit
    return [] if limit is None else [Gate(name=name, limit=limit, value=value, passed=passed)]


def at_most(name: str, limit: float | None, value: float) -> list[Gate]:
    """A gate with an upper limit; empty if `limit` is None."""
    return [] if limit is None else [Gate(name=name, limit=limit, value=value, passed=value <= limit)]
