"""Measurements judged against gates. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from qabuild.artifact import handler
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import Gate, Measurement, Verification, describe
from qabuild.artifact.manifest import Artifact
from qabuild.target.gates import Gates


def judge(artifact: Artifact, measurement: Measurement, gates: Gates, key: str | None = None) -> Verification:
    """Hold what was found against the gates. Pure but for the time of day."""
    limits = gates.by_dtype(artifact.manifest.runtime["dtype"])
    found: list[tuple[str, float | bool | None, float | bool | None, bool]] = [
        ("same_tokens", True, measurement.same_tokens, measurement.same_tokens),
        ("finite_logits", True, measurement.finite_logits, measurement.finite_logits),
        _at_least("min_f1_retention", limits.min_f1_retention, measurement.f1_retention),
        _at_least("min_agreement", limits.min_agreement, measurement.agreement),
        _at_most("max_logit_difference", limits.max_logit_difference, measurement.logit_difference),
        _at_least(
            "same_as_stock",
            _stock_limit(artifact, measurement, limits),
            measurement.stock.agreement if measurement.stock else None,
        ),
        _at_least("min_speedup", limits.min_speedup, measurement.speed.speedup if measurement.speed else None),
        _at_least("min_teacher_f1_retention", limits.min_teacher_f1_retention, _kept_of_teacher(artifact, measurement)),
    ]
    judged = [Gate(name=n, limit=lim, value=v, passed=ok) for n, lim, v, ok in found if lim is not None]
    return Verification(
        artifact=artifact.manifest.name,
        manifest=artifact.digest,
        passed=all(gate.passed for gate in judged),
        gates=judged,
        measurement=measurement,
        verified_at=datetime.now(UTC).isoformat(timespec="seconds"),
        key=key,
        other_versions=handler.other_versions(
            artifact.manifest.backend["name"], artifact.manifest.versions, measurement.versions
        ),
    )


def _stock_limit(artifact: Artifact, measurement: Measurement, limits: Gates) -> float | None:
    """In fp32 our pipeline and the stock one differ in ties only; in fewer bits logits depend on the whole batch."""
    if measurement.stock is None:
        return None
    return 1.0 if artifact.manifest.runtime["dtype"] == "fp32" else limits.min_agreement


def _kept_of_teacher(artifact: Artifact, measurement: Measurement) -> float | None:
    """F1 of the distilled checkpoint over that of its teacher, on the same questions."""
    teacher = (artifact.manifest.training or {}).get("teacher")
    return measurement.checkpoint_f1 / teacher["f1"] if teacher and teacher["f1"] else None


def explain_failure(verification: Verification, directory: Path) -> tuple[str, str]:
    """Message and hint for an artifact that did not pass: which gates, and which questions to look at."""
    lines = [f"{directory}: verification failed"]
    for gate in verification.failed_gates:
        lines.append(f"  {describe(gate)}")
    if not verification.measurement.checkpoint_f1:
        lines.append("  the checkpoint itself answers none of the questions right: a share of nothing proves nothing")
    lost = [flip for flip in verification.measurement.flips if flip.f1_difference < 0]
    for flip in lost[:3]:
        lines.append(
            f"  {flip.id}: {flip.checkpoint!r} became {flip.artifact!r}, gold {flip.gold[0] if flip.gold else ''!r}"
        )
    flipped = len(verification.measurement.flips)
    hint = f"{flipped} answers changed, {len(lost)} for the worse: see `flips` in {directory / artifacts.EVIDENCE}"
    if [gate.name for gate in verification.failed_gates] == ["min_teacher_f1_retention"]:
        hint = "the artifact answers as its checkpoint; it is the training that falls short: teach more questions, for "
        hint += "more epochs, or a larger student"
    return "\n".join(lines), hint


def _at_least(name: str, limit: float | None, value: float | None) -> tuple[str, float | None, float | None, bool]:
    return name, limit, value, limit is None or (value is not None and value >= limit)


def _at_most(name: str, limit: float | None, value: float) -> tuple[str, float | None, float | None, bool]:
    return name, limit, value, limit is None or value <= limit
