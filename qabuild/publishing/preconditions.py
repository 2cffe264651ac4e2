"""Preconditions of publishing: the evidence verifies the artifact as it is now, and was measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qabuild.artifact import disclosure, handler, judge, measurements, readme
from qabuild.artifact.evidence import Verification
from qabuild.artifact.judge import explain_failure
from qabuild.artifact.manifest import EVIDENCE, Artifact
from qabuild.artifact.validation import require_passed
from qabuild.errors import BadTarget, QABuildError, VerificationFailed
from qabuild.evaluation import measure, sealed_questions
from qabuild.evaluation.verify import verify
from qabuild.publishing import repository
from qabuild.system import card_metadata
from qabuild.system.hub_retry import with_retries
from qabuild.system.reporter import Reporter

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "explain_failure",
    "remeasure",
    "require_measured_here",
    "require_public_data",
    "require_valid_card",
    "require_verified",
]


def require_verified(artifact: Artifact) -> Verification:
    """The judged evidence, if it verifies the present artifact under the package versions that serving it installs.

    Raises VerificationFailed where it was not verified, failed, or was verified under other versions; UntrustedInput
    where it does not hold.
    """
    directory = artifact.directory
    verification = require_passed(artifact)
    if handler.HANDLER not in artifact.manifest.files:
        raise BadTarget(f"{directory}: holds no {handler.HANDLER}: an earlier qabuild built it", "build it again")
    if verification.other_versions:
        others = ", ".join(f"{name} {version}" for name, version in verification.other_versions.items())
        raise VerificationFailed(
            f"{directory}: verified under other versions than its {handler.REQUIREMENTS} installs: {others}",
            f"verify it where {handler.REQUIREMENTS} is installed, or rebuild it here",
        )
    return verification


def require_valid_card(artifact: Artifact, content: Mapping[str, Path | bytes]) -> None:
    """Raise BadTarget where the Hub would refuse the license of the target, or the card in `content`."""
    from huggingface_hub import ModelCard

    license = artifact.manifest.publish.get("license")
    if license and (problem := card_metadata.license_problem(license)):
        raise BadTarget(f"{artifact.directory}: publish.license: {problem}", "set it in the target and build again")
    text = content[readme.FILE]
    assert isinstance(text, bytes)
    if problems := list(card_metadata.problems(ModelCard(text.decode()).data.to_dict())):
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise BadTarget(
            f"{artifact.directory / readme.FILE}: the Hub refuses its metadata{listed}",
            "edit it between the lines '---' at the top of that file",
        )


def require_measured_here(
    artifact: Artifact, evidence: Verification, dataset: str | None, *, dry_run: bool, reporter: Reporter
) -> Verification:
    """The evidence to publish: `evidence` if its measurement was made on this machine, else that of a new one.

    A dry run only says so. Raises as `require_verified` and `qabuild.verify` do.
    """
    directory = artifact.directory
    if measurements.is_registered(artifact, evidence.measurement):
        return evidence
    if dry_run:
        reporter.say(f"{directory}: not measured on this machine; publishing would measure it anew")
        return evidence
    reporter.say(f"{directory}: not measured on this machine; measuring it anew")
    verification = verify(directory, dataset=dataset, digest=artifact.digest, reporter=reporter)
    if not verification.passed:
        raise VerificationFailed(*explain_failure(verification, directory))
    written = require_verified(artifact)
    if measurements.digest(artifact, written.measurement) != measurements.digest(artifact, verification.measurement):
        raise QABuildError(f"{directory}: its {EVIDENCE} cannot be replaced", "copy it to a folder that is writable")
    return written


def require_public_data(api: HfApi, artifact: Artifact, reporter: Reporter) -> None:
    """Raise BadTarget where the artifact shows texts of a data set that not everyone can read, unless its target says
    so."""
    data = artifact.reference.data
    if data["file"] or not data["revision"] or disclosure.shown(data) != disclosure.FULL:
        return
    if artifact.manifest.publish.get("data") is None and (
        with_retries(lambda: repository.is_public(api, data["dataset"]), data["dataset"], reporter) is False
    ):
        raise BadTarget(
            f"{artifact.directory}: shows texts of {data['dataset']}, which is not public",
            "set publish.data = 'ids' or 'none' in its target and build it again; or 'full', if all may see them",
        )


def remeasure(artifact: Artifact, dataset: str | None, reporter: Reporter) -> Verification:
    """Run the questions on the artifact and judge it, without the speed gate, which depends on more than its bytes."""
    questions = sealed_questions.load(artifact, dataset)
    gates = artifact.manifest.gates.model_copy(update={"min_speedup": None})
    return judge.judge(artifact, measure.measure(artifact, questions, reporter=reporter), gates)
