"""The model folder of MLflow: loaded and served by MLflow, it answers as verified."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import proven
import pytest
from server import request

import qabuild
from qabuild.artifact import handler
from qabuild.artifact.manifest import open_artifact
from qabuild.errors import BadTarget

pytestmark = pytest.mark.layouts

mlflow = pytest.importorskip("mlflow", reason="no MLflow: pip install 'qabuild[mlflow]'")

CONTEXT = "Ann Vole built the mill in 1871. The mill was closed in 1902."
QUESTIONS = [{"question": text, "context": CONTEXT} for text in ("Who built the mill?", "When was the mill closed?")]


@pytest.fixture(scope="module")
def model(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qabuild.export(artifact, "mlflow", tmp_path_factory.mktemp("exported") / "model").directory


def verified(artifact: Path) -> list[dict[str, Any]]:
    """The answers of the artifact, with scores that other batches may round differently."""
    results = list(qabuild.load(artifact)(question for question in QUESTIONS))
    exact = [{**result, "question_truncated": False} for result in results]
    return [{**result, "score": pytest.approx(result["score"], abs=1e-5)} for result in exact]


def run_elsewhere(program: str, model: Path, given: str = "") -> str:
    """The last line of a program in a process without this qabuild: the one in the model's folder answers."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", program, model],
        input=given,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        cwd=model.parent,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


def test_mlflow_loads_it_and_it_answers_as_verified(model, artifact):
    program = (
        "import json, sys, mlflow; model = mlflow.pyfunc.load_model(sys.argv[1]); "
        "frame = model.predict(json.load(sys.stdin)); import qabuild; "
        "print(json.dumps([qabuild.__file__, frame.to_dict('records')]))"
    )
    code, answers = json.loads(run_elsewhere(program, model, json.dumps(QUESTIONS)))
    assert answers == verified(artifact)
    assert Path(code) == model / "code" / "qabuild" / "__init__.py"


def test_a_frame_keeps_its_index_and_a_truncated_question_is_marked(model):
    program = (
        "import pandas, sys, mlflow; model = mlflow.pyfunc.load_model(sys.argv[1]); "
        "frame = pandas.DataFrame({'question': ['Who?', 'who ' * 3000], 'context': ['Ann.', 'Bo.']}, index=[7, 3]); "
        "print(model.predict(frame)['question_truncated'].to_dict())"
    )
    assert run_elsewhere(program, model) == "{7: False, 3: True}"


def test_its_signature_and_requirements_are_recorded(model, artifact):
    described = mlflow.models.Model.load(str(model))
    assert described.signature.inputs.input_names() == ["question", "context"]
    assert described.signature.outputs.input_names() == ["answer", "score", "start", "end", "question_truncated"]
    required = (model / "requirements.txt").read_text().splitlines()
    assert set((artifact / handler.REQUIREMENTS).read_text().splitlines()) <= set(required)
    assert open_artifact(model / "artifacts" / "artifact").digest == open_artifact(artifact).digest
    assert not list(model.rglob("__pycache__"))
    assert str(model.parent) not in (model / "MLmodel").read_text()


def test_mlflow_serves_it(model, artifact):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, start_new_session=True
    )
    try:
        while not answers_ping(port):
            assert server.poll() is None
            time.sleep(0.1)
        body = json.dumps({"dataframe_records": QUESTIONS})
        status, answered, _ = request(port, "POST", "/invocations", body, {"Content-Type": "application/json"})
        assert status == 200, answered
        assert answered["predictions"] == verified(artifact)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def answers_ping(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_an_unverified_artifact_is_loaded_as_such(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    (artifact / "verification.json").unlink()
    exported = qabuild.export(artifact, "mlflow", tmp_path / "model", allow_unverified=True)
    assert "allow_unverified=True" in (exported.directory / "model.py").read_text()


def test_native_code_is_refused(tmp_path):
    artifact = proven.alter(proven.make(tmp_path / "tiny"), backend={"name": "torch_export", "aot": True})
    with pytest.raises(BadTarget, match="native code"):
        qabuild.export(artifact, "mlflow", tmp_path / "model", allow_unverified=True)
