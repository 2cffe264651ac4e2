"""The summary of an artifact: what it is, from what it was made, and what its evidence says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qabuild.artifact import disclosure
from qabuild.artifact.evidence import Verification
from qabuild.artifact.judge import explain_failure
from qabuild.artifact.manifest import SIGNATURES, Artifact, Manifest
from qabuild.artifact.validation import judged_evidence
from qabuild.errors import UntrustedInput

PASSED, FAILED, UNVERIFIED, INVALID = "passed", "failed", "unverified", "invalid evidence"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """An artifact, whose files fit its manifest, and its evidence."""

    artifact: str
    """Its folder."""
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest, in hex."""
    size: int
    """Bytes of all sealed files."""
    questions: str
    """How many, of what, and what of them is shown."""
    state: str
    """Passed, failed, unverified or invalid evidence."""
    reason: str | None
    """Why it is not passed, and what to do."""
    verification: Verification | None
    """The evidence, judged again; None where there is none that holds."""
    signatures: Sequence[str]
    """Files with signatures, which are not checked here."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; of the files of the manifest, their number."""
        manifest: Mapping[str, Any] = self.manifest.to_dict()
        return {
            **{name: value for name, value in asdict(self).items() if name not in ("manifest", "verification")},
            "manifest": {**manifest, "files": len(self.manifest.files)},
            "verification": self.verification and self.verification.to_dict(),
        }


def summary(artifact: Artifact) -> Summary:
    """The summary of an opened artifact. Raises UntrustedInput where its reference cannot be read."""
    state, reason, verification = _judged(artifact)
    return Summary(
        artifact=str(artifact.directory),
        manifest=artifact.manifest,
        digest=artifact.digest,
        size=sum(file.size for file in artifact.manifest.files.values()),
        questions=disclosure.describe(artifact.reference.data, len(artifact.reference.answers)),
        state=state,
        reason=reason,
        verification=verification,
        signatures=[name for name in SIGNATURES if (artifact.directory / name).exists()],
    )


def _judged(artifact: Artifact) -> tuple[str, str | None, Verification | None]:
    """State, reason and evidence."""
    try:
        verification = judged_evidence(artifact)
    except UntrustedInput as error:
        return INVALID, str(error), None
    if verification is None:
        return UNVERIFIED, f"verify it: qabuild verify {artifact.directory}", None
    if verification.passed:
        return PASSED, None, verification
    return FAILED, "\n  ".join(explain_failure(verification, artifact.directory)), verification
