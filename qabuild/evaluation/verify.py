"""Does the artifact on disk answer like the checkpoint it came from?

`measure` finds out and judges nothing; `judge` holds what was found against the gates and is pure. Both together are
a Verification, the evidence that lies beside the manifest.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.evaluation.judge import judge
from qabuild.evaluation.measure import find_questions, measure
from qabuild.system.reporter import SILENT, Reporter


def verify(
    path: str | Path,
    *,
    dataset: str | None = None,
    checkpoint: str | None = None,
    digest: str | None = None,
    offline: bool = False,
    reporter: Reporter = SILENT,
) -> Verification:
    """Verify the artifact at `path` again, and put the evidence beside its manifest.

    `dataset` is where the questions are, where not where the artifact says: a SQuAD-layout file, a Hub id or
    'sample'. `checkpoint`, a path or Hub id of the very checkpoint it was built from, lets a speedup be measured.
    `digest` pins the manifest. Raises BadTarget, UntrustedInput or MissingEnvironment; an artifact that fails its
    gates is a Verification whose `passed` is false.
    """
    artifact = artifacts.open_artifact(Path(path), digest)
    gates = artifact.manifest.gates
    if gates.min_speedup is not None and checkpoint is None:
        raise BadTarget(
            f"{path}: its gate min_speedup needs the checkpoint to measure against",
            f"give it with --checkpoint ({artifact.manifest.checkpoint['name']})",
        )
    questions = find_questions(artifact, dataset, offline=offline)
    baseline = _load_baseline(artifact, checkpoint, offline) if checkpoint else None
    found = judge(artifact, measure(artifact, questions, baseline, reporter), gates)
    try:
        write(found, artifact.directory)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        reporter.say(f"{path}: not writable, so the evidence of this verification is not kept beside the manifest")
    return found


def write(verification: Verification, directory: Path) -> None:
    """Put the evidence beside the manifest, whole or not at all."""
    text = json.dumps(verification.to_dict(), indent=1, ensure_ascii=False, allow_nan=False, default=str)
    artifacts.write_unsealed(directory / artifacts.EVIDENCE, f"{text}\n".encode())


def _load_baseline(artifact: Artifact, source: str, offline: bool) -> Any:
    from qabuild.models.checkpoint.load import load_model as load_checkpoint
    from qabuild.models.checkpoint.resolve import resolve

    found = resolve(source, artifact.manifest.checkpoint["revision"], offline=offline)
    if found.digest != artifact.manifest.checkpoint["digest"]:
        raise UntrustedInput(
            f"{source}: not the checkpoint that the artifact was built from "
            f"(digest {found.digest[:16]}, built from {artifact.manifest.checkpoint['digest'][:16]})",
            f"give {artifact.manifest.checkpoint['name']} as it was then, or leave --checkpoint out",
        )
    return load_checkpoint(found).to(artifact.manifest.runtime.device)
