"""Whether the evidence beside an artifact proves it: only what is proved is published."""

from __future__ import annotations

from qabuild.artifact import handler
from qabuild.artifact.evidence import Verification, evidence_of
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, UntrustedInput, VerificationFailed
from qabuild.evaluation import judge, measure
from qabuild.evaluation.judge import explain_failure
from qabuild.system.reporter import Reporter

__all__ = ["explain_failure", "remeasure", "require"]


def require(artifact: Artifact) -> Verification:
    """The evidence, once it proves the artifact as it lies there, under the versions that serving it installs.

    Raises VerificationFailed where it was not verified, failed, or was verified under other versions; UntrustedInput
    where it was changed since, or verified on other questions than its target names.
    """
    where = artifact.directory
    found = evidence_of(artifact)
    if found is None:
        raise VerificationFailed(f"{where}: not verified", f"verify it: qabuild verify {where}")
    _require_same_questions(artifact, found)
    judged = judge.judge(artifact, found.measurement, artifact.manifest.gates)
    if not judged.passed:
        raise VerificationFailed(*explain_failure(judged, where))
    if handler.HANDLER not in artifact.manifest.files:
        raise BadTarget(f"{where}: holds no {handler.HANDLER}: an earlier qabuild made it", "build it again")
    if judged.other_versions:
        others = ", ".join(f"{name} {version}" for name, version in judged.other_versions.items())
        raise VerificationFailed(
            f"{where}: verified under other versions than its {handler.REQUIREMENTS} installs: {others}",
            f"verify it where {handler.REQUIREMENTS} is installed, or build it anew here",
        )
    return found


def remeasure(artifact: Artifact, dataset: str | None, reporter: Reporter) -> Verification:
    """Put the questions through the artifact; as above, but for the gate of speed, which is no matter of its bytes."""
    questions = measure.find_questions(artifact, dataset)
    gates = artifact.manifest.gates.model_copy(update={"min_speedup": None})
    return judge.judge(artifact, measure.measure(artifact, questions, reporter=reporter), gates)


def _require_same_questions(artifact: Artifact, found: Verification) -> None:
    """Held against the sealed reference, and that against what the target asks for."""
    sealed, asked = artifact.reference, artifact.manifest.verify
    data = found.measurement.data
    differing = [key for key in ("fingerprint", "samples", "split") if data.get(key) != sealed.data.get(key)]
    if asked["samples"] not in (None, sealed.data["samples"]):
        differing.append("samples")
    if sealed.data["split"] not in (None, asked["split"]):  # a file has none
        differing.append("split")
    if differing or found.measurement.questions != len(sealed.answers):
        raise UntrustedInput(
            f"{artifact.directory}: verified on other questions than its target names "
            f"({', '.join(sorted(set(differing))) or 'samples'})",
            "build it again",
        )
