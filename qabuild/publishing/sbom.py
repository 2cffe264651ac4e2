"""The bill of materials of an artifact: model, base model, data sets, files and packages, as CycloneDX 1.7 JSON.

https://cyclonedx.org/docs/1.7/json/
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from qabuild.artifact.attestation import package_url
from qabuild.artifact.evidence import Verification, evidence_of
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.system import arguments


def sbom(path: str | Path) -> dict[str, Any]:
    """The bill of materials of the artifact at `path`, as JSON values; the same for the same artifact and evidence.

    Raises BadTarget or UntrustedInput.
    """
    artifact = open_artifact(Path(arguments.path("path", path)))
    evidence = evidence_of(artifact)
    base, data = _base(artifact), _data(artifact)
    packages = [
        {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
        for name, version in sorted(artifact.manifest.versions.items())
        if (url := package_url("pypi", name, version))
    ]
    files = [
        {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": [_hash(file.sha256)]}
        for name, file in sorted(artifact.manifest.files.items())
    ]
    model = _model(artifact, evidence, data["bom-ref"])
    parts = [base, data, *packages]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, artifact.digest)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "qabuild", "version": artifact.manifest.qabuild}]},
            "component": {**model, "components": files, "pedigree": {"ancestors": [_ancestor(base)]}},
        },
        "components": parts,
        "dependencies": [{"ref": model["bom-ref"], "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _model(artifact: Artifact, evidence: Verification | None, data: str) -> dict[str, Any]:
    manifest = artifact.manifest
    license = manifest.publish.get("license")
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "question-answering",
            "architectureFamily": manifest.checkpoint["model_type"],
            "datasets": [{"ref": data}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        }
    }
    if evidence:
        scores = {"exact match": evidence.measurement.exact_match, "F1": evidence.measurement.f1}
        metrics = [{"type": name, "value": f"{value:.2f}"} for name, value in scores.items()]
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.name,
        "version": artifact.digest[:12],
        "hashes": [_hash(artifact.digest)],
        **({"licenses": [{"license": {"name": license}}]} if license else {}),
        "modelCard": card,
        "properties": [
            {"name": "qabuild:backend", "value": manifest.backend["name"]},
            {"name": "qabuild:device", "value": manifest.runtime.device},
            {"name": "qabuild:dtype", "value": manifest.runtime.dtype},
        ],
    }


def _base(artifact: Artifact) -> dict[str, Any]:
    """The checkpoint. Its digest is over the digests of its files, so it is no hash of a file."""
    checkpoint = artifact.manifest.checkpoint
    return {
        "type": "machine-learning-model",
        "bom-ref": "checkpoint",
        "name": checkpoint["name"],
        **_version("huggingface", checkpoint["name"], checkpoint["revision"]),
        "properties": [{"name": "qabuild:checkpoint.digest", "value": checkpoint["digest"]}],
    }


def _data(artifact: Artifact) -> dict[str, Any]:
    """The questions of the verification."""
    data = artifact.reference.data
    return {
        "type": "data",
        "bom-ref": "questions",
        "name": data["dataset"],
        **({"version": data["revision"]} if data["revision"] else {}),
        "data": [{"type": "dataset", "name": data["dataset"]}],
        "properties": [{"name": "qabuild:verify.fingerprint", "value": data["fingerprint"]}],
    }


def _version(kind: str, name: str, revision: str | None) -> dict[str, str]:
    return {"version": revision, "purl": package_url(kind, name, revision)} if revision else {}


def _ancestor(component: dict[str, Any]) -> dict[str, Any]:
    """The component once more, in a pedigree: a reference is unique in its document."""
    return {**component, "bom-ref": f"{component['bom-ref']} of the model"}


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
