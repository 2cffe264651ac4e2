"""Preconditions of publishing: the evidence verifies the artifact as it is now."""

from __future__ import annotations

from qabuild.artifact import handler
from qabuild.artifact.evidence import Verification, evidence_of
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, UntrustedInput, VerificationFailed
from qabuild.evaluation import judge, measure
from qabuild.evaluation.judge import explain_failure
from qabuild.system.reporter import Reporter

__all__ = ["explain_failure", "remeasure", "require_verified"]


def require_verified(artifact: Artifact) -> Verification:
    """The evidence, if it verifies the present artifact under the package versions that serving it installs.

    Raises VerificationFailed where it was not verified, failed, or was verified under other versions; UntrustedInput
    where it was changed since, or verified on other questions than its target names.
    """
    directory = artifact.directory
    verification = evidence_of(artifact)
    if verification is None:
        raise VerificationFailed(f"{directory}: not verified", f"verify it: qabuild verify {directory}")
    _require_same_questions(artifact, verification)
    judged = judge.judge(artifact, verification.measurement, artifact.manifest.gates)
    if not judged.passed:
        raise VerificationFailed(*explain_failure(judged, directory))
    if handler.HANDLER not in artifact.manifest.files:
        raise BadTarget(f"{directory}: holds no {handler.HANDLER}: an earlier qabuild built it", "build it again")
    if judged.other_versions:
        others = ", ".join(f"{name} {version}" for name, version in judged.other_versions.items())
        raise VerificationFailed(
            f"{directory}: verified under other versions than its {handler.REQUIREMENTS} installs: {others}",
            f"verify it where {handler.REQUIREMENTS} is installed, or rebuild it here",
        )
    return verification


def remeasure(artifact: Artifact, dataset: str | None, reporter: Reporter) -> Verification:
    """Run the questions on the artifact and judge it, without the speed gate, which depends on more than its bytes."""
    questions = measure.load_questions(artifact, dataset)
    gates = artifact.manifest.gates.model_copy(update={"min_speedup": None})
    return judge.judge(artifact, measure.measure(artifact, questions, reporter=reporter), gates)


def _require_same_questions(artifact: Artifact, verification: Verification) -> None:
    """Checks the evidence against the sealed reference, and the reference against the target."""
    sealed, verify = artifact.reference, artifact.manifest.verify
    data = verification.measurement.data
    differing = [
        key for key in ("fingerprint", "samples", "configuration", "split") if data.get(key) != sealed.data.get(key)
    ]
    if verify["samples"] not in (None, sealed.data["samples"]):
        differing.append("samples")
    if sealed.data["split"] not in (None, verify["split"]):  # a file has no split
        differing.append("split")
    if differing or verification.measurement.questions != len(sealed.answers):
        raise UntrustedInput(
            f"{artifact.directory}: verified on other questions than its target names "
            f"({', '.join(sorted(set(differing))) or 'samples'})",
            "build it again",
        )
