"""The bill of materials: valid CycloneDX, complete, and the same for the same artifact."""

from __future__ import annotations

import json
from typing import Any

import proven
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.errors import UntrustedInput

pytestmark = pytest.mark.both_lines


def problem(document: dict[str, Any]) -> object:
    """What CycloneDX's schema finds wrong; None where it is valid."""
    return JsonStrictValidator(SchemaVersion.V1_7).validate_str(json.dumps(document))


FACTS: dict[str, dict[str, Any]] = {
    "from the Hub": {},
    "from a local checkpoint": {
        "checkpoint": {"name": "model", "revision": None, "digest": "d" * 64, "model_type": "bert"}
    },
    "with a license": {"publish": {"repo": "me/tiny", "license": "apache-2.0"}},
}


@pytest.mark.parametrize("facts", FACTS.values(), ids=FACTS)
def test_it_is_valid_and_the_same_every_time(tmp_path, facts):
    artifact = proven.make(tmp_path / "tiny", **facts)
    document = qabuild.sbom(artifact)
    assert problem(document) is None
    assert qabuild.sbom(artifact) == document
    other = proven.make(tmp_path / "other", **facts)
    assert qabuild.sbom(other)["serialNumber"] != document["serialNumber"]


def test_an_unverified_artifact_has_one_without_scores(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    (artifact / "verification.json").unlink()
    document = qabuild.sbom(artifact)
    assert problem(document) is None
    assert "quantitativeAnalysis" not in document["metadata"]["component"]["modelCard"]


def test_it_names_model_base_data_files_and_packages(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    document, manifest = qabuild.sbom(artifact), open_artifact(artifact).manifest
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"] == [{"alg": "SHA-256", "content": open_artifact(artifact).digest}]
    assert {part["name"]: part["hashes"][0]["content"] for part in model["components"]} == {
        name: file.sha256 for name, file in manifest.files.items()
    }
    assert model["pedigree"]["ancestors"][0]["purl"] == f"pkg:huggingface/them/base@{'b' * 40}"
    assert {"type": "F1", "value": "50.00"} in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    parts = {part["bom-ref"]: part for part in document["components"]}
    assert parts["questions"]["version"] == "a" * 40
    assert [dependency["ref"] for dependency in document["dependencies"]] == ["model"]
    assert set(document["dependencies"][0]["dependsOn"]) == set(parts)
    assert {parts[url]["purl"] for url in parts if url.startswith("pkg:")} == {
        f"pkg:pypi/{name}@{version.replace('+', '%2B')}" for name, version in manifest.versions.items()
    }


def test_a_changed_artifact_has_none(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    (artifact / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UntrustedInput, match="not as it was sealed"):
        qabuild.sbom(artifact)
