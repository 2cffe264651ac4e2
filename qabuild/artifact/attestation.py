"""What a signer states about an artifact, as in-toto statements: how it was built, and how its verification ended.

https://slsa.dev/spec/v1.0/provenance and https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.artifact import sealed_reference
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact

STATEMENT = "https://in-toto.io/Statement/v1"
SLSA = "https://slsa.dev/provenance/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"


def provenance(artifact: Artifact, files: Mapping[str, str]) -> dict[str, Any]:
    """The SLSA provenance: the target, and the checkpoint, data and packages that the artifact was built from.

    `files` are the artifact's, with their SHA-256 in hex.
    """
    manifest = artifact.manifest
    parameters = {
        "name": manifest.name,
        "backend": manifest.backend,
        "runtime": manifest.runtime.model_dump(mode="json"),
        "verify": manifest.verify,
        "training": manifest.training,
        "stages": manifest.stages,
    }
    data = artifact.reference.data
    dependencies = [
        _dependency("checkpoint", manifest.checkpoint["name"], manifest.checkpoint["revision"], manifest.checkpoint),
        _dependency("dataset", data["dataset"], data["revision"], data),
        *({"name": name, "uri": package_url("pypi", name, v)} for name, v in sorted(manifest.versions.items())),
    ]
    build = package_url("pypi", "qabuild", manifest.qabuild)
    return _statement(
        SLSA,
        files,
        {
            "buildDefinition": {
                "buildType": build,
                "externalParameters": {key: value for key, value in parameters.items() if value is not None},
                "internalParameters": {"steps": manifest.steps},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {"builder": {"id": build}},
        },
    )


def result(artifact: Artifact, evidence: Verification, files: Mapping[str, str]) -> dict[str, Any]:
    """The test result: which gates passed and failed, on which questions, versions and machine.

    `files` are the manifest and the evidence, with their SHA-256 in hex.
    """
    answers = f"{sealed_reference.FOLDER}/{sealed_reference.ANSWERS}"
    failed = [gate.name for gate in evidence.failed_gates]
    measurement = evidence.measurement
    return _statement(
        TEST_RESULT,
        files,
        {
            "result": "PASSED" if evidence.passed and not failed else "FAILED",
            "configuration": [
                {
                    "name": answers,
                    "digest": {"sha256": artifact.manifest.files[answers].sha256},
                    "annotations": {
                        "data": measurement.data,
                        "versions": measurement.versions,
                        "machine": measurement.machine,
                        "verified_at": evidence.verified_at,
                    },
                }
            ],
            "passedTests": [gate.name for gate in evidence.gates if gate.passed],
            "failedTests": failed,
        },
    )


def package_url(kind: str, name: str, version: str | None) -> str:
    """The package URL (purl) of a package, or of a repository on the Hub."""
    from urllib.parse import quote

    return f"pkg:{kind}/{quote(name)}" + (f"@{quote(version)}" if version else "")


def _dependency(role: str, name: str, revision: str | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint or data set: its commit if it is on the Hub, and what the manifest or reference records of it."""
    if revision is None:
        return {"name": f"{role} {name}", "annotations": record}
    folder = "datasets/" if role == "dataset" else ""
    return {
        "name": f"{role} {name}",
        "uri": f"https://huggingface.co/{folder}{name}/tree/{revision}",
        "digest": {"gitCommit": revision},
        "annotations": record,
    }


def _statement(kind: str, files: Mapping[str, str], predicate: Mapping[str, Any]) -> dict[str, Any]:
    subject = [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(files.items())]
    return {"_type": STATEMENT, "subject": subject, "predicateType": kind, "predicate": predicate}
