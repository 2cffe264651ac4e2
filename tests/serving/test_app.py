"""What the application does with requests and clients, whatever the model: over a stub that answers on command."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import pytest
from server import Local, request

from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.serving import app, connections

QUESTION = {"question": "Who?", "context": "Ann."}
BODY = json.dumps(QUESTION)


class Stub:
    """A model that answers with the question, once it may."""

    digest, backend, is_changed = "d" * 64, "stub", False

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def parameters(self, named: Mapping[str, Any]) -> Parameters:
        return Parameters().updated(named)

    def answer(self, pairs: Sequence[Pair], parameters: Parameters) -> list[Any]:
        self.batches.append([question for question, _ in pairs])
        self.may_answer.wait()
        if any(question == "fail" for question, _ in pairs):
            raise RuntimeError("the device is lost\nat line 1")
        return [{"answer": question, "score": 1.0, "start": 0, "end": 1} for question, _ in pairs]


@pytest.fixture
def stub() -> Stub:
    return Stub()


@contextmanager
def serving(*stubs: Stub, **settings: Any) -> Iterator[Local]:
    with Local({"abc"[index]: stub for index, stub in enumerate(stubs)}, **settings) as server:
        server.load()
        yield server


def asked(question: str, **fields: Any) -> dict[str, Any]:
    return {"question": question, "context": "Ann.", **fields}


# --- batches ---------------------------------------------------------------------------------------------------------


def test_questions_that_come_while_a_batch_is_computed_are_the_next_batch(stub):
    with serving(stub, max_batch=4) as server, ThreadPoolExecutor(10) as clients:
        stub.may_answer.clear()
        first = clients.submit(server.ask, asked("first"))
        while not stub.batches:
            pass
        others = [clients.submit(server.ask, asked(str(number))) for number in range(6)]
        server.wait_for("qabuild_queue_questions", 6)
        stub.may_answer.set()
        assert first.result()["answer"] == "first"
        assert [other.result()["answer"] for other in others] == [str(number) for number in range(6)]
    assert [len(batch) for batch in stub.batches] == [1, 4, 2]


def test_only_questions_with_equal_parameters_share_a_batch(stub):
    with serving(stub, max_wait=600, max_batch=2) as server, ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(server.ask, [asked(str(n), top_k=1 + n % 2) for n in range(4)]))
    assert [answer["answer"] for answer in answers] == ["0", "1", "2", "3"]
    assert sorted(sorted(batch) for batch in stub.batches) == [["0", "2"], ["1", "3"]]


def test_a_parameter_that_states_the_default_shares_a_batch(stub):
    with serving(stub, max_wait=600, max_batch=3) as server, ThreadPoolExecutor(3) as clients:
        list(clients.map(server.ask, [asked("a"), asked("b", top_k=1), asked("c", doc_stride=None)]))
    assert [sorted(batch) for batch in stub.batches] == [["a", "b", "c"]]


def test_a_question_that_fails_fails_alone(stub):
    with serving(stub, max_wait=600, max_batch=3) as server, ThreadPoolExecutor(3) as clients:
        bodies = [json.dumps(asked(question)) for question in ("a", "fail", "b")]
        answers = list(clients.map(lambda body: server.request("POST", "/answer", body), bodies))
    assert [status for status, _ in answers] == [200, 500, 200]
    assert answers[1][1] == {"error": "the model cannot answer this; the server's log says why"}
    assert server.said == ["a: a question cannot be answered (RuntimeError: the device is lost)"]


def test_a_full_queue_asks_clients_to_come_again(stub):
    with serving(stub, max_wait=600, max_queue=2) as server, ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(server.ask, QUESTION) for _ in range(2)]
        server.wait_for("qabuild_queue_questions", 2)
        status, document, headers = request(server.port, "POST", "/answer", BODY)
        assert (status, headers["retry-after"]) == (429, "1")
        assert document == {"error": "too many questions wait: ask again later"}
        server.stop()
        assert [answer.result()["answer"] for answer in waiting] == ["Who?", "Who?"]


def test_questions_of_a_client_that_leaves_are_dropped(stub):
    body = json.dumps({"items": [asked("gone")] * 2}).encode()
    head = f"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with serving(stub, max_wait=600, max_batch=3) as server, ThreadPoolExecutor(3) as clients:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
            server.wait_for("qabuild_queue_questions", 2)
        server.wait_for("qabuild_queue_questions", 0)
        assert server.metric('qabuild_requests_total{path="/answer",status="499"}') == 1
        assert len(list(clients.map(server.ask, [QUESTION] * 3))) == 3
    assert stub.batches == [["Who?"] * 3]


# --- states ----------------------------------------------------------------------------------------------------------


def test_a_server_is_ready_once_its_models_are_loaded(stub):
    with Local({"a": stub}) as server:
        for path, answer in (
            ("/readyz", {"error": "the models are being loaded"}),
            ("/v2/health/ready", {"ready": False}),
            ("/v2/models/a", {"error": "the models are being loaded"}),
        ):
            assert server.request("GET", path) == (503, answer)
        assert server.request("GET", "/healthz") == (200, {"alive": True})
        assert server.request("POST", "/answer", BODY)[0] == 503
        server.load()
        assert server.request("POST", "/answer", BODY)[0] == 200


def test_a_server_that_stops_is_not_ready_and_answers_what_it_accepted(stub):
    with serving(stub) as server, ThreadPoolExecutor(1) as clients:
        stub.may_answer.clear()
        accepted = clients.submit(server.ask, QUESTION)
        while not stub.batches:
            pass
        server._loop.call_soon_threadsafe(server._service.stop)
        while (answer := server.request("GET", "/readyz"))[0] == 200:
            pass
        assert answer == (503, {"error": "the server is stopping"})
        server.stop()
        stub.may_answer.set()
        assert accepted.result()["answer"] == "Who?"


def test_several_models_are_told_apart_by_name(stub):
    with serving(stub, Stub(), Stub()) as server:
        assert server.ask({**QUESTION, "model": "a"})["answer"] == "Who?"
        assert stub.batches == [["Who?"]]
        assert server.request("POST", "/answer", BODY) == (422, {"error": "model: missing; this server has a, b, c"})
        status, document = server.request("POST", "/answer", json.dumps({**QUESTION, "model": "d"}))
        assert (status, document) == (404, {"error": "no such model; this server has a, b, c"})


# --- clients ---------------------------------------------------------------------------------------------------------


def test_a_token_is_required_of_all_but_probes(stub):
    with Local({"a": stub}, token="sécret") as server:
        server.load()
        for path in ("/answer", "/metrics", "/v2/models/a", "/gone"):
            for given in (None, "Bearer", "Bearer secret", "sécret"):
                headers = {} if given is None else {"Authorization": given.encode()}
                status, document, answered = request(server.port, "POST", path, BODY, headers)
                assert (status, list(document), answered["www-authenticate"]) == (401, ["error"], "Bearer")
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs"):
            assert server.request("GET", path)[0] == 200
        for scheme in ("Bearer", "bearer"):
            assert server.request("POST", "/answer", BODY, {"Authorization": f"{scheme} sécret".encode()})[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/answer", 405), ("POST", "/healthz", 405), ("GET", "/gone", 404), ("POST", "/answer/", 404)],
)
def test_other_paths_and_methods_are_refused_in_json(stub, method, path, status):
    with serving(stub) as server:
        got, document = server.request(method, path)
    assert (got, list(document)) == (status, ["error"])


def test_a_body_of_unstated_length_is_counted(stub):
    with serving(stub) as server:
        status, document = server.request("POST", "/answer", repeat(b"x" * 100_000, 41))
    assert (status, document) == (413, {"error": "the body is too long: this server takes 4000000 bytes"})


def test_a_client_that_still_sends_a_body_that_is_too_long_gets_the_response(stub):
    with serving(stub) as server:
        status, document, headers = request(server.port, "POST", "/answer", b"x" * 30_000_000)
    assert (status, list(document), headers["connection"]) == (413, ["error"], "close")


def test_what_is_not_http_is_refused(stub):
    with serving(stub) as server:
        answer = exchange(server, b"\0\1\2 \r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"error": "not an HTTP request"}')


def test_a_body_that_does_not_come_is_not_waited_for(stub, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 0.01)
    with serving(stub) as server:
        answer = exchange(
            server, b"POST /answer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{"
        )
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_does_not_come_is_waited_for_less_once_the_server_stops(stub, monkeypatch):
    monkeypatch.setattr(app, "BODY_SECONDS", 3600)
    monkeypatch.setattr(app, "LAST_SECONDS", 0.01)
    with serving(stub) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /answer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        server.ask({"question": "Who?", "context": "Ann."})  # came later, so that the other one was accepted
        server.stop()
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize(
    "beginning", [b"", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET"]
)
def test_a_request_that_does_not_come_is_not_waited_for(stub, monkeypatch, beginning):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.01)
    with Local({"a": stub}) as server:
        answer = exchange(server, beginning)
    assert answer.count(b"HTTP/1.1 200 ") == beginning.count(b"\r\n\r\n")


def test_answers_are_sent_at_once(stub):
    with Local({"a": stub}) as server, socket.create_connection(("127.0.0.1", server.port)):
        server.request("GET", "/healthz")  # came later, so that the other one was accepted
        transports = [connection.transport for connection in server._server.server_state.connections]
        sockets = [transport.get_extra_info("socket") for transport in transports]
        assert sockets
        assert all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)


def test_idle_connections_make_room_for_others(stub, monkeypatch):
    monkeypatch.setattr(connections.Connection, "maximum", 20)
    with serving(stub) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
        assert server.ask(QUESTION)["answer"] == "Who?"
        assert idle[0].recv(1) == b""
        assert len(server._server.server_state.connections) <= 20
        for connection in idle:
            connection.close()


def exchange(server: Local, sent: bytes) -> bytes:
    """All that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(4096), b""))
