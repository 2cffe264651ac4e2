"""Nothing is sent that was not asked for: no libraries' telemetry, with qabuild or with the sealed handler alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qabuild.builder.requirements import missing
from qabuild.system import telemetry
from qabuild.target.read import load

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
{options}
[runtime]
dtype = "{dtype}"
[verify]
dataset = "sample"
samples = 8
[verify.gates]
min_f1_retention = 0.0
min_agreement = 0.0
"""
TARGETS = {
    "onnxruntime": ("int8", ""),
    "openvino": ("int8", 'calibration = "sample"'),
    "deepspeed": ("fp32", ""),
}
"""dtype and options of each runtime that may have telemetry of its own."""

SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
question = {"question": "Who repaired the bridge?", "context": "The bridge was repaired by Alma Serin in 1871."}
assert EndpointHandler(sys.argv[1])({"inputs": question})
"""

AUTOMATION = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL", "HF_HUB_OFFLINE")
"""Variables that switch telemetry off as well."""

OUTSIDE = re.compile(r"(connect|send\w*)\(.*AF_INET6?,(?!.*inet_addr\(\"127\.|.*\"::1\")")

Trace = Callable[..., list[str]]


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """Run Python with these arguments in a home of its own; returns its packets and connections to other machines."""
    command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(tmp_path / "calls")]
    if not shutil.which("strace") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("strace is absent, or may not trace here")
    for name in (*telemetry.SWITCHES, *AUTOMATION, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()

    def run(*arguments: object) -> list[str]:
        done = subprocess.run(
            [*command, sys.executable, *map(str, arguments)],
            env={**os.environ, "HOME": str(tmp_path / "home")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [line for line in (tmp_path / "calls").read_text().splitlines() if OUTSIDE.search(line)]

    return run


def test_the_trace_sees_a_query(trace: Trace) -> None:
    assert trace("-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 53))")
    assert not trace("-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 53))")


@pytest.mark.parametrize("backend", TARGETS)
def test_build_verify_answer_and_handler_send_nothing(backend: str, trace: Trace, tmp_path: Path) -> None:
    dtype, options = TARGETS[backend]
    (tmp_path / "quiet.toml").write_text(TARGET.format(backend=backend, dtype=dtype, options=options))
    (tmp_path / "questions.jsonl").write_text('{"id": "1", "question": "Who?", "context": "Ann repaired it."}\n')
    (tmp_path / "serve.py").write_text(SERVE)
    if problems := missing(load(tmp_path / "quiet.toml")):
        pytest.skip("; ".join(problems))
    artifact = tmp_path / "artifacts" / "quiet"
    assert trace("-m", "qabuild", "build", "quiet.toml", "--offline") == []
    assert trace("-m", "qabuild", "verify", artifact, "--offline") == []
    assert trace("-m", "qabuild", "answer", artifact, "questions.jsonl") == []
    assert trace("serve.py", artifact) == []
    written = {path.relative_to(tmp_path / "home") for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert {path for path in written if not path.is_relative_to(".local/state/qabuild")} == set()


def test_a_variable_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    telemetry.switch_off()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("0", "1")
