"""Validation of the evidence: it is judged again, not believed.

Nothing seals `verification.json`, and it may come from anywhere. So whoever reads a verdict reads it here: the evidence
must fit the artifact, its figures must fit each other, and its gates must be those of the manifest. What fits may still
be invented: `measurements` knows what was measured on this machine.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

from qabuild.artifact.evidence import FORMAT, Gate, Measurement, Original, Verification, describe, evidence_of
from qabuild.artifact.judge import explain_failure, judge
from qabuild.artifact.manifest import EVIDENCE, Artifact
from qabuild.errors import QABuildError, UntrustedInput, VerificationFailed
from qabuild.models.backends import backend
from qabuild.qa.ask import chunks, takes_part

SHOWN = 10  # problems in one message
SLOWEST, FASTEST = sys.float_info.min, 1e7  # samples/s; no machine answers more


def judged_evidence(artifact: Artifact) -> Verification | None:
    """The artifact's evidence, judged by the manifest's gates; None where it was never verified.

    Raises UntrustedInput where it is damaged or does not hold.
    """
    evidence = evidence_of(artifact)
    if evidence is None:
        return None
    try:
        judged = judge(artifact, evidence.measurement, artifact.manifest.gates)
        problems = list(_problems(artifact, evidence, judged))
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:  # a value of another type, or 0
        problems = [f"{type(error).__name__}: {error}"]
    if problems:
        listed = "\n".join(f"  {line}" for line in problems[:SHOWN] + (["..."] if len(problems) > SHOWN else []))
        raise UntrustedInput(
            f"{artifact.directory / EVIDENCE}: it does not hold for this artifact\n{listed}", _verify_again(artifact)
        )
    return replace(evidence, passed=judged.passed, gates=judged.gates, other_versions=judged.other_versions)


def require_passed(artifact: Artifact) -> Verification:
    """The judged evidence of an artifact that passed.

    Raises VerificationFailed where it failed or was never verified, and as `judged_evidence` does.
    """
    verification = judged_evidence(artifact)
    if verification is None:
        raise VerificationFailed(f"{artifact.directory}: not verified", _verify_again(artifact))
    if not verification.passed:
        raise VerificationFailed(*explain_failure(verification, artifact.directory))
    return verification


def unverified(artifact: Artifact) -> str | None:
    """Why the artifact does not count as verified, in one line; None if it passed."""
    try:
        require_passed(artifact)
    except QABuildError as error:
        return error.message.partition("\n")[0]
    return None


def _verify_again(artifact: Artifact) -> str:
    return f"verify it: qabuild verify {artifact.directory}"


def _problems(artifact: Artifact, evidence: Verification, judged: Verification) -> Iterator[str]:
    """What in the evidence does not fit, a line each."""
    measurement = evidence.measurement
    if not 1 <= evidence.format <= FORMAT:
        yield f"its format is {evidence.format}; a newer qabuild may read it"
    if evidence.artifact != artifact.manifest.name:
        yield f"it is evidence of '{evidence.artifact}'"
    if evidence.manifest != artifact.digest:
        yield f"it is evidence of another manifest, {evidence.manifest}"
    yield from _time(evidence.verified_at)
    questions = list(_questions(artifact, measurement))
    yield from questions
    if questions:  # then nothing else can be compared
        return
    yield from _scores(measurement)
    yield from _original(artifact, measurement)
    yield from _bounds(artifact, measurement)
    document = artifact.evidence or {}  # it states the retention, too, which is not read
    retention = document["measurement"]["f1_retention"]
    yield from _equal("f1_retention", math.nan if isinstance(retention, bool) else retention, measurement.f1_retention)
    yield from _flips(artifact, measurement)
    yield from _logits(artifact, measurement)
    yield from _speed(measurement)
    yield from _cross_check(artifact, measurement)
    if evidence.format > 1:  # what qabuild 0.1.0 did not measure
        yield from _reference_check(measurement)
        yield from _batches(artifact, measurement)
    yield from _gates(evidence, judged)


def _time(text: str) -> Iterator[str]:
    try:
        in_utc = datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        in_utc = False
    if not in_utc:
        yield f"verified_at is {text!r}, which is no time in UTC"


def _questions(artifact: Artifact, measurement: Measurement) -> Iterator[str]:
    """Checks the evidence against the sealed reference, and the reference against the target."""
    sealed, verify, data = artifact.reference, artifact.manifest.verify, measurement.data
    differing = {key for key in {*data, *sealed.data} if data.get(key) != sealed.data.get(key)}
    if verify["samples"] not in (None, sealed.data["samples"]) or measurement.questions != len(sealed.answers):
        differing.add("samples")
    if sealed.data["split"] not in (None, verify["split"]):  # a file has no split
        differing.add("split")
    if differing:
        yield f"verified on other questions than its target names ({', '.join(sorted(differing))})"


def _scores(m: Measurement) -> Iterator[str]:
    for name in ("checkpoint_exact_match", "checkpoint_f1", "exact_match", "f1"):
        yield from _within(name, getattr(m, name), 0, 100)
    for name in ("checkpoint_exact_match", "exact_match"):
        right = getattr(m, name) * m.questions / 100
        yield from _equal(f"questions in {name}", right, round(right) if math.isfinite(right) else 0)
    yield from _equal("f1_difference", m.f1_difference, m.f1 - m.checkpoint_f1)
    low, high = m.f1_difference_interval
    yield from _ordered("f1_difference_interval", [-100, low, m.f1_difference, high, 100])
    if m.f1_difference_interval_999 is not None:
        lower, higher = m.f1_difference_interval_999
        yield from _ordered("f1_difference_interval_999", [-100, lower, low, high, higher, 100])
    yield from _ordered("truncated_questions", [0, m.truncated_questions, m.questions])


def _original(artifact: Artifact, m: Measurement) -> Iterator[str]:
    if (m.original is None) is not (artifact.original is None):
        yield f"original is {'missing' if m.original is None else 'of no sealed answers'}"
    if m.original:
        for name in ("exact_match", "f1"):
            yield from _within(f"original.{name}", getattr(m.original, name), 0, 100)
        yield from _equal("original.f1_difference", m.original.f1_difference, m.f1 - m.original.f1)
        low, high = m.original.f1_difference_interval
        yield from _ordered("original.f1_difference_interval", [-100, low, m.original.f1_difference, high, 100])


def _bounds(artifact: Artifact, m: Measurement) -> Iterator[str]:
    """Checks the intervals at the `confidence` of the gates against those at 95 %."""
    confidence = artifact.manifest.gates.confidence
    measured: list[Measurement | Original] = [m, m.original] if m.original else [m]
    for compared in measured:
        (low, high), bounds = compared.f1_difference_interval, compared.f1_difference_bounds
        if (bounds is None) is not (confidence is None):
            yield f"f1_difference_bounds is {bounds}, and the gates' confidence is {confidence}"
        elif bounds and confidence:
            inner, outer = ((low, high), bounds) if confidence > 0.95 else (bounds, (low, high))
            values = [-100, outer[0], inner[0], compared.f1_difference, inner[1], outer[1], 100]
            yield from _ordered("f1_difference_bounds", values)


def _flips(artifact: Artifact, m: Measurement) -> Iterator[str]:
    answers = artifact.reference.answers
    yield from _equal("agreement", m.agreement, 1 - len(m.flips) / m.questions)
    gained = sum(flip.f1_difference for flip in m.flips)
    yield from _equal("f1_difference", m.f1_difference, gained / m.questions)
    if len({flip.id for flip in m.flips}) < len(m.flips):
        yield "flips: a question is listed twice"
    for flip in m.flips:
        yield from _within(f"f1_difference of {flip.id}", flip.f1_difference, -100, 100)
        if flip.id not in answers or flip.checkpoint != answers[flip.id] or flip.artifact == flip.checkpoint:
            yield f"flips: {flip.id} does not fit the reference answers"


def _logits(artifact: Artifact, m: Measurement) -> Iterator[str]:
    differences = [probe["logit_difference"] for probe in m.probes]
    yield from _equal("number of probes", len(differences), len(artifact.reference.probes))
    for number, (probe, sealed) in enumerate(zip(m.probes, artifact.reference.probes, strict=False)):
        yield from _equal(f"probes.{number}.batch", probe["batch"], len(sealed.rows))
        yield from _within(f"probes.{number}.sequence", probe["sequence"], 1, sealed.length)
    for difference in (m.logit_difference, *differences):
        yield from _within("logit_difference", difference, 0)
    if differences:
        yield from _equal("logit_difference", m.logit_difference, max(differences))


def _speed(m: Measurement) -> Iterator[str]:
    yield from _within("samples_per_second", m.samples_per_second, SLOWEST, FASTEST)
    if m.speed is not None:
        yield from _within("speed.artifact", m.speed.artifact, SLOWEST, FASTEST)
        yield from _within("speed.checkpoint", m.speed.checkpoint, SLOWEST, FASTEST)
        yield from _within("speed.questions", m.speed.questions, 1, m.questions)
        yield from _within("speed.rounds", m.speed.rounds, 1, m.speed.questions)
        yield from _equal("speed.artifact", m.speed.artifact, m.speed.speedup * m.speed.checkpoint)
        low, high = m.speed.speedup_interval
        yield from _ordered("speed.speedup_interval", [0, low, m.speed.speedup, high, sys.float_info.max])


def _cross_check(artifact: Artifact, m: Measurement) -> Iterator[str]:
    share, checked = artifact.manifest.cross_check, m.cross_check
    asked = chunks(list(artifact.reference.answers))
    chosen = [chunk for number, chunk in enumerate(asked) if takes_part(number, share)]
    yield from _equal("cross_check.questions", checked.questions if checked else 0, sum(map(len, chosen)))
    if checked:
        yield from _ordered("cross_check", [0, checked.ties, checked.differences, checked.questions])
        yield from _within("cross_check.samples_per_second", checked.samples_per_second, SLOWEST, FASTEST)
        own = checked.speedup * checked.samples_per_second
        yield from _within("cross_check.speedup x samples_per_second", own, SLOWEST, FASTEST)


def _reference_check(m: Measurement) -> Iterator[str]:
    check = m.reference_check
    if m.f1_difference_interval_999 is None:
        yield "f1_difference_interval_999 is missing"
    yield from _equal("reference_check.questions", check.questions if check else 0, m.speed.questions if m.speed else 0)
    if check:
        yield from _ordered("reference_check", [0, check.ties, check.differences, check.questions])
        yield from _within("reference_check.logit_difference", check.logit_difference, 0)


def _batches(artifact: Artifact, m: Measurement) -> Iterator[str]:
    """Checks the scores at each batch size, of which the figures above are the worst."""
    manifest = artifact.manifest
    depends = manifest.runtime.dtype in backend(manifest.options.name).BATCH_DEPENDENT
    sizes = {each.batch_size for each in m.by_batch}
    if sizes != ({1, manifest.verify["batch_size"]} if depends else set()) or len(sizes) < len(m.by_batch):
        yield f"by_batch: measured at {sorted(sizes)}"
        return
    for each in m.by_batch:
        yield from _within(f"f1 at batch {each.batch_size}", each.f1, m.f1, 100)
        yield from _within(f"agreement at batch {each.batch_size}", each.agreement, 0, 1)
    at: dict[int | None, float] = {each.batch_size: each.f1 for each in m.by_batch} if depends else {None: m.f1}
    yield from _equal("f1 at batch_size", at.get(m.batch_size, math.nan), m.f1)
    rms = math.nan if m.logit_rms is None else m.logit_rms
    yield from _within("logit_rms", rms, 0, m.logit_difference + 1e-6)


def _gates(evidence: Verification, judged: Verification) -> Iterator[str]:
    """Checks that the gates are those of the manifest, with the values that were measured, and `passed` follows."""
    expected, recorded = ({gate.name: gate for gate in each.gates} for each in (judged, evidence))
    for name in expected.keys() - recorded.keys():
        # qabuild 0.1.0 had no limit for the cross-check of int8.
        if not (evidence.format == 1 and name.startswith("same_as_")):
            yield f"gate {name} is missing"
    for name, gate in recorded.items():
        if name not in expected:
            yield f"gate {name} is none of its target"
        elif not _same(gate, expected[name]):
            stated, found = (
                f"{describe(each)} ({'passed' if each.passed else 'failed'})" for each in (gate, expected[name])
            )
            yield f"gate {stated}; but it is {found}"
    if len(recorded) < len(evidence.gates):
        yield "gates: one is listed twice"
    if evidence.passed is not all(gate.passed for gate in evidence.gates):
        yield f"passed is {evidence.passed}, and its gates say otherwise"
    if evidence.format > 1 and dict(evidence.other_versions) != dict(judged.other_versions):
        yield "other_versions does not fit the versions"


def _same(gate: Gate, other: Gate) -> bool:
    values = [(gate.limit, other.limit), (gate.value, other.value)]
    return (
        gate.passed is other.passed
        and gate.confidence == other.confidence
        and gate.bound in (other.bound, None)  # evidence of earlier versions states none
        and all(
            one is another if one is None or another is None else math.isclose(one, another, rel_tol=1e-9)
            for one, another in values
        )
    )


def _within(name: str, value: float, low: float, high: float = sys.float_info.max) -> Iterator[str]:
    if not low <= value <= high:  # NaN is within nothing
        yield f"{name} is {value}, which cannot be"


def _equal(name: str, value: float, expected: float) -> Iterator[str]:
    if not math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6):
        yield f"{name} is {value:g}, and by the other figures {expected:g}"


def _ordered(name: str, values: Sequence[float]) -> Iterator[str]:
    """The inner values are in order, but for rounding, between the outer bounds."""
    if not all(one <= other + 1e-6 for one, other in pairwise(values)):
        yield f"{name} is out of order: {', '.join(f'{value:g}' for value in values[1:-1])}"
