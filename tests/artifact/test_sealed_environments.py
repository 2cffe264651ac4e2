"""An environment of an artifact's own requirements.txt answers as the artifact was verified.

`pytest -m sealed` installs one environment for each backend, from the package index; other runs skip these tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qabuild
from qabuild.artifact import handler
from qabuild.artifact.manifest import open_artifact
from qabuild.builder.requirements import missing
from qabuild.evaluation import sealed_questions
from qabuild.models.backends import BACKENDS
from qabuild.target.read import load

pytestmark = pytest.mark.sealed

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = 24
"""

# Answers the questions on stdin with nothing but the artifact's folder and the environment's packages.
ANSWER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
answer = EndpointHandler(sys.argv[1])
questions = json.load(sys.stdin)
json.dump([answer({"inputs": question})["answer"] for question in questions], open(sys.argv[2], "w"))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_environment_of_the_sealed_requirements_answers_as_verified(backend: str, tmp_path: Path) -> None:
    (tmp_path / "sealed.toml").write_text(TARGET.format(backend=backend))
    if problems := missing(load(tmp_path / "sealed.toml")):
        pytest.skip("; ".join(problems))
    built = qabuild.build(tmp_path / "sealed.toml", tmp_path / "artifacts")
    questions = sealed_questions.load(open_artifact(built.directory)).questions
    pipeline = qabuild.load(built.directory)
    asked = [{"question": question.question, "context": question.context} for question in questions]
    expected = [result["answer"] for result in pipeline(asked)]

    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    requirements = built.directory / handler.REQUIREMENTS
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
    subprocess.run(
        [python, "-c", ANSWER, built.directory, tmp_path / "answers.json"],
        input=json.dumps(asked),
        text=True,
        check=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert json.loads((tmp_path / "answers.json").read_text()) == expected
