"""An artifact that was built on one line of transformers verifies on the other.

`QABUILD_OTHER_LINE=FOLDER/bin/python pytest -m other_line` names the interpreter of an environment of the other line,
which has qabuild and the same extras.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import qabuild
from qabuild.artifact.evidence import Verification, evidence_of
from qabuild.artifact.manifest import open_artifact
from qabuild.builder.requirements import missing
from qabuild.models.backends import BACKENDS
from qabuild.target.read import load

pytestmark = pytest.mark.other_line

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = 24
"""


@pytest.fixture
def other_line() -> str:
    """The interpreter of the other line's environment."""
    python = os.environ.get("QABUILD_OTHER_LINE")
    if not python:
        pytest.skip("no interpreter of the other line of transformers in QABUILD_OTHER_LINE")
    return python


@pytest.fixture(params=BACKENDS)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The embedded sample in fp32, for each backend."""
    path = tmp_path / "sample.toml"
    path.write_text(TARGET.format(backend=request.param))
    if problems := missing(load(path)):
        pytest.skip("; ".join(problems))
    return path


def test_an_artifact_of_this_line_verifies_on_the_other(target: Path, other_line: str, tmp_path: Path) -> None:
    built = qabuild.build(target, tmp_path / "artifacts")
    run(other_line, "verify", built.directory)
    assert_verified_on_another_line(evidence(built.directory), built.verification)


def test_an_artifact_of_the_other_line_verifies_on_this(target: Path, other_line: str, tmp_path: Path) -> None:
    run(other_line, "build", target, "--output", tmp_path / "artifacts")
    artifact = tmp_path / "artifacts" / "sample"
    built = evidence(artifact)
    assert_verified_on_another_line(qabuild.verify(artifact), built)


def run(python: str, *arguments: str | Path) -> None:
    """Run the command line of qabuild in another environment."""
    subprocess.run([python, "-P", "-m", "qabuild", *arguments], check=True)


def evidence(artifact: Path) -> Verification | None:
    return evidence_of(open_artifact(artifact))


def assert_verified_on_another_line(verified: Verification | None, built: Verification | None) -> None:
    """It passed, with the very answers of the build, and the evidence names the other version."""
    assert verified is not None
    assert built is not None
    assert verified.passed
    assert verified.measurement.same_tokens
    assert verified.measurement.agreement == built.measurement.agreement == 1
    assert verified.measurement.versions["transformers"] != built.measurement.versions["transformers"]
    assert verified.other_versions["transformers"] == verified.measurement.versions["transformers"]
