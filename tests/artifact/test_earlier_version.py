"""An artifact that qabuild 0.1.0 made opens, verifies, answers and publishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hub import Hub

import qabuild
from qabuild.artifact.manifest import open_artifact

ARCHIVE = Path(__file__).parents[1] / "support" / "artifact-0.1.0.tar.xz"
DIGEST = "a16e32aab8c8e6c7a7fdb1b6ba3861277f281fb38614398505d55e3c87ca5165"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The artifact in `tiny`, beside its questions."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_it_opens(folder):
    artifact = open_artifact(folder / "tiny", DIGEST)
    assert artifact.manifest.qabuild == "0.1.0"
    assert artifact.manifest.options.name == "eager"
    assert artifact.manifest.gates.min_f1_retention == 0
    assert len(artifact.reference.answers) == 4


def test_it_verifies_and_answers(folder):
    verification = qabuild.verify(folder / "tiny", dataset=str(folder / "questions.json"), digest=DIGEST)
    assert verification.passed
    assert (verification.measurement.agreement, verification.measurement.questions) == (1, 4)
    context = "The lighthouse of Port Aldena was built in 1871."
    answer = qabuild.load(folder / "tiny")(question="When was the lighthouse built?", context=context)
    assert answer["answer"] in context


def test_its_evidence_is_judged_by_what_it_has(folder):
    context = "The lighthouse of Port Aldena was built in 1871."
    answer = qabuild.load(folder / "tiny")(question="When was the lighthouse built?", context=context)
    assert answer["answer"] in context
    path = folder / "tiny" / "verification.json"
    document = json.loads(path.read_text())
    assert "format" not in document
    path.write_text(json.dumps({**document, "measurement": {**document["measurement"], "f1": 99.9}}))
    with pytest.raises(qabuild.UntrustedInput, match="f1_difference is 0, and by the other figures"):
        qabuild.load(folder / "tiny")


@pytest.mark.hub
@pytest.mark.line457  # under other versions than it pins it verifies, but cannot be published
def test_it_publishes(folder):
    with Hub({"hf_mine": ("me", "write")}) as hub:
        environment = {**os.environ, **hub.environment(folder / "home"), "HF_TOKEN": "hf_mine"}
        data = str(folder / "questions.json")
        verified = [sys.executable, "-m", "qabuild", "verify", "tiny", "--data", data]
        subprocess.run(verified, env=environment, cwd=folder, check=True, capture_output=True)
        command = [sys.executable, "-m", "qabuild", "publish", "tiny", "--json"]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
