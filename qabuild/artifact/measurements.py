"""A register of the measurements that this user made on this machine.

Evidence may come from anywhere, and whoever writes it can make it agree with itself. So `publish` sends only evidence
whose measurement is in this register. A measurement from a shared cache is not: to let one count, check its signature
in `is_registered`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

from qabuild.artifact.evidence import Measurement
from qabuild.artifact.manifest import Artifact
from qabuild.system.register import Register

_REGISTER = Register("measurements", "measured")


def register(artifact: Artifact, measurement: Measurement) -> None:
    """Record that the artifact was measured here. Raises MissingEnvironment if the register cannot be written."""
    _REGISTER.add(digest(artifact, measurement))


def is_registered(artifact: Artifact, measurement: Measurement) -> bool:
    """Whether that measurement, in every figure, was made here of the artifact's very files, run as they are now."""
    return _REGISTER.holds(digest(artifact, measurement))


def digest(artifact: Artifact, measurement: Measurement) -> str:
    """SHA-256 of the measurement and of what was measured, in hex."""
    text = json.dumps([measured(artifact), measurement.to_dict()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def measured(artifact: Artifact) -> dict[str, Any]:
    """What a measurement is of, as JSON values: the sealed files, and how they run and answer.

    Not all of the manifest: a changed gate needs no new measurement, nor does a checkpoint that two targets trained
    alike under names of their own.
    """
    manifest = artifact.manifest
    subject: dict[str, Any] = {
        "checkpoint": manifest.checkpoint["digest"],
        "backend": manifest.backend,
        "answer": manifest.answer,
        "runtime": manifest.runtime.model_dump(mode="json"),
        "batch_size": manifest.verify.get("batch_size"),
        "files": {name: file.sha256 for name, file in manifest.files.items()},
    }
    return cast(dict[str, Any], json.loads(json.dumps(subject, default=dict)))
