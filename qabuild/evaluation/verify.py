"""Verify that an artifact on disk answers like the checkpoint it was built from.

`measure` compares the two, and `judge` checks the measurement against the gates. The result is a Verification, the
evidence written beside the manifest.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import signature
from qabuild.artifact.evidence import Verification
from qabuild.artifact.judge import judge
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.signature import Signer
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.evaluation import sealed_questions
from qabuild.evaluation.measure import measure
from qabuild.system import arguments
from qabuild.system.reporter import SILENT, Reporter


def verify(
    path: str | Path,
    *,
    dataset: str | None = None,
    checkpoint: str | None = None,
    digest: str | None = None,
    key: Signer | None = None,
    offline: bool = False,
    allow_native: bool = False,
    reporter: Reporter = SILENT,
) -> Verification:
    """Verify the artifact at `path` again, and write the evidence beside its manifest.

    `dataset` names the source of the questions if it is not the one that the artifact names: a file, a
    Hub id or 'sample'. `checkpoint`, a path or Hub id of the checkpoint it was built from, answers all questions, too:
    this checks the reference answers, and adds the speedup. `digest` pins the manifest. `key` and `allow_native` are
    those of `qabuild.load`. Raises BadTarget, UntrustedInput or MissingEnvironment.
    An artifact that fails its gates raises nothing: `passed` of the Verification is false.
    """
    artifact = artifacts.open_artifact(Path(arguments.path("path", path)), digest)
    if key is not None:
        signature.require(artifact, key, evidence=False)
    gates = artifact.manifest.gates
    if gates.min_speedup is not None and checkpoint is None:
        raise BadTarget(
            f"{path}: its gate min_speedup needs the checkpoint",
            f"give it: qabuild verify {path} --checkpoint {artifact.manifest.checkpoint['name']}",
        )
    questions = sealed_questions.load(artifact, dataset, offline=offline)
    baseline = _load_baseline(artifact, checkpoint, offline) if checkpoint else None
    native = allow_native or key is not None
    measurement = measure(artifact, questions, baseline, reporter, whole_reference=True, allow_native=native)
    verification = judge(artifact, measurement, gates)
    try:
        write_evidence(verification, artifact.directory)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        reporter.say(f"{path}: not writable, so the evidence of this verification was not written")
    return verification


def write_evidence(verification: Verification, directory: Path) -> None:
    """Write the evidence beside the manifest, atomically. A signature of the evidence that it replaces is removed."""
    text = json.dumps(verification.to_dict(), indent=1, ensure_ascii=False, allow_nan=False, default=str)
    (directory / artifacts.EVIDENCE_SIGNATURE).unlink(missing_ok=True)
    artifacts.write_unsealed(directory / artifacts.EVIDENCE, f"{text}\n".encode())


def _load_baseline(artifact: Artifact, source: str, offline: bool) -> Any:
    from qabuild.models.checkpoint.load import load_model as load_checkpoint
    from qabuild.models.checkpoint.resolve import resolve

    resolved = resolve(source, artifact.manifest.checkpoint["revision"], offline=offline)
    if resolved.digest != artifact.manifest.checkpoint["digest"]:
        raise UntrustedInput(
            f"{source}: not the checkpoint that the artifact was built from "
            f"(digest {resolved.digest[:16]}, built from {artifact.manifest.checkpoint['digest'][:16]})",
            f"give {artifact.manifest.checkpoint['name']} at the revision of the build, or omit --checkpoint",
        )
    return load_checkpoint(resolved).to(artifact.manifest.runtime.device)
