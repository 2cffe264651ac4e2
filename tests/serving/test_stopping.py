"""How a server starts, fails to start, and stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server import Server

from qabuild.errors import MissingEnvironment
from qabuild.serving import run

QUESTION = {"question": "Who built the mill?", "context": "Ann Vole built the mill in 1871."}
UNTIL_STOPPED = ("--max-wait-ms", 600_000, "--max-batch", 100)
"""Questions wait for others until the server stops."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_accepted_requests_are_answered_before_the_end(artifact, number):
    with Server(artifact, *UNTIL_STOPPED) as server, ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(server.ask, {**QUESTION, "top_k": 1 + index}) for index in range(8)]
        server.wait_for("qabuild_queue_questions", 8)
        if number == signal.SIGTERM:  # some supervisors send several
            server.send(number)
        idle = socket.create_connection(("127.0.0.1", server.port))
        server.send(number)
        answers = [answer.result() for answer in waiting]
        assert [len(answer) for answer in answers[1:]] == list(range(2, 9))
        status, rest = server.ended()
        assert (status, rest) == (0, "")
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            server.ask(QUESTION)


def test_a_second_signal_ends_at_once(artifact):
    with Server(artifact) as server:
        body = b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as unfinished:
            unfinished.sendall(body)
            server.ask(QUESTION)  # came later, so that the other one was accepted
            server.send(signal.SIGINT)
            while accepts(server.port):
                pass
            server.send(signal.SIGINT)
            assert server.ended()[0] == -signal.SIGINT


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_server_that_loads_is_alive_and_can_be_stopped(artifact):
    with Server(artifact, ready=False) as server:
        assert server.request("GET", "/healthz")[0] == 200
        server.send(signal.SIGTERM)
        assert server.ended()[0] == 0


def failing(*arguments: object) -> tuple[int, str]:
    """Exit status and stderr of a server that does not start."""
    command = [sys.executable, "-m", "qabuild", "serve", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return process.returncode, process.stderr


def test_an_address_in_use_is_refused(artifact):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = failing(artifact, "--port", port)
    assert status == 5
    assert said.startswith(f"error: 127.0.0.1, port {port}: Address already in use\n")


def test_artifacts_that_cannot_be_loaded_are_refused(artifact, tmp_path):
    status, said = failing(tmp_path / "gone", "--port", 0)
    assert status == 2
    assert "no such folder" in said
    damaged = Path(shutil.copytree(artifact, tmp_path / "damaged"))
    (damaged / "config.json").write_text("{}")
    status, said = failing(artifact, damaged, "--port", 0)
    assert status == 4
    assert f"{damaged}: not as it was sealed" in said
    unverified = Path(shutil.copytree(artifact, tmp_path / "unverified"))
    (unverified / "verification.json").unlink()
    status, said = failing(unverified, "--port", 0)
    assert status == 1
    assert f"error: {unverified}: " in said
    with Server(unverified, "--allow-unverified", ready=False) as server:
        assert "served all the same" in server.said()
        server.said()
        assert server.ask(QUESTION)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "x/a"], "a is named a, too"),
        (["a b"], "'a b' cannot stand in an address"),
        (["a/b=x"], "'a/b' cannot stand in an address"),
        (["a="], "'a=' names no artifact"),
        (["a", "--token", ""], "--token, or QABUILD_SERVE_TOKEN: is empty"),
        (["a", "--token", "one two"], "holds a space"),
        (["a", "--max-wait-ms", "nan"], "'nan' is not a finite number"),
        (["a", "--max-wait-ms", "inf"], "'inf' is not a finite number"),
        (["a", "--port", "70000"], "70000"),
        (["a", "--max-body", "4"], "'4' is not a number with one of the units"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_loaded(arguments, message):
    status, said = failing(*arguments)
    assert status == 2
    assert message in said
    assert "loading" not in said


@pytest.mark.parametrize("value", ["", " \n"])
def test_a_variable_without_a_token_does_not_open_the_server(monkeypatch, value):
    monkeypatch.setenv("QABUILD_SERVE_TOKEN", value)
    status, said = failing("a")
    assert status == 2
    assert "QABUILD_SERVE_TOKEN: is empty" in said


def test_a_token_from_a_file_may_end_with_a_line_end(artifact, monkeypatch):
    monkeypatch.setenv("QABUILD_SERVE_TOKEN", "s3cret\n")
    with Server(artifact) as server:
        assert server.request("POST", "/answer", json.dumps(QUESTION))[0] == 401
        authorised = {"Authorization": "Bearer s3cret"}
        assert server.request("POST", "/answer", json.dumps(QUESTION), authorised)[0] == 200


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(run, "PACKAGES", ("starlette", "no-such-package"))
    with pytest.raises(MissingEnvironment, match=r"no-such-package is not installed: pip install 'qabuild\[serve\]'"):
        run.require_library()


def test_a_program_learns_the_address_from_json(artifact):
    command = [sys.executable, "-m", "qabuild", "serve", str(artifact), "--port", "0", "--json", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        lines = [process.stdout.readline() for _ in range(6)]
        document = json.loads("".join(lines))
        assert document["artifacts"] == {"tiny": str(artifact)}
        assert document["address"].startswith("http://127.0.0.1:")
        process.terminate()
        assert process.wait() == 0
