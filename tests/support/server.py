"""Servers on free ports of loopback: `qabuild serve` in a process of its own, or over a stub in a thread."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from qabuild.serving import app, connections
from qabuild.serving.metrics import Metrics
from qabuild.serving.run import listen
from qabuild.serving.service import Service
from qabuild.serving.settings import Settings


class Client:
    """Asks the server on a port of loopback."""

    port: int

    def ask(self, document: Any, path: str = "/answer") -> Any:
        """The result of a request that succeeds."""
        status, answer = self.request("POST", path, json.dumps(document))
        assert status == 200, answer
        return answer

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and content of a response, which is text where it is not JSON."""
        return request(self.port, method, path, body, headers)[:2]

    def metric(self, name: str) -> float:
        """The sum of all values of a metric."""
        _, text = self.request("GET", "/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def wait_for(self, name: str, value: float) -> None:
        """Wait until a metric has that value."""
        while self.metric(name) != value:
            pass


class Server(Client):
    """`qabuild serve`, ready unless stated otherwise."""

    def __init__(
        self, *arguments: object, ready: bool = True, python: str | Path = sys.executable, **options: Any
    ) -> None:
        """`ready` waits until questions can be asked; `options` are those of Popen."""
        command = [str(python), "-m", "qabuild", "serve", *map(str, arguments), "--port", "0"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        address = re.search(r"http://127\.0\.0\.1:(\d+): loading", self.said("loading"))
        assert address is not None
        self.port = int(address[1])
        if ready:
            self.said("ready")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Exit status and the rest of stderr, once the process has ended."""
        rest = self._stderr.read()
        return self._process.wait(), rest

    def said(self, word: str = "") -> str:
        """The next line of stderr, which has that word."""
        line = self._stderr.readline()
        assert word in line, line + self._stderr.read()
        return line


class Local(Client):
    """A server in a thread of this process, over models that are not loaded but given."""

    def __init__(self, models: Mapping[str, Any], **settings: Any) -> None:
        self._settings = Settings(**settings)
        self._models, self._loaded, self._started = models, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def load(self) -> None:
        """Let the models be loaded, and wait until they are."""
        self._loaded.set()
        while self.request("GET", "/readyz")[0] != 200:
            pass

    def stop(self) -> None:
        """Stop as the first signal does."""
        self._loaded.set()
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._service.stop()
        self._server.should_exit = True

    def _load(self, name: str) -> Any:
        self._loaded.wait()
        return self._models[name]

    async def _serve(self) -> None:
        metrics = Metrics()
        sources = {name: name for name in self._models}
        self._loop = asyncio.get_running_loop()
        self._service = Service(sources, self._load, self._settings, metrics, self)
        self._server = connections.Server(app.make(self._service, self._settings, metrics))
        self.said: list[str] = []
        loading = asyncio.create_task(self._service.start())
        with listen(Settings(port=0)) as listener:
            self.port = listener.getsockname()[1]
            self._started.set()
            await self._server.serve(sockets=[listener])
        await loading

    def say(self, message: str) -> None:
        """As a reporter."""
        self.said.append(message)

    def progress(self, label: str, total: int) -> Any:
        raise AssertionError


def request(
    port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    """Status, content and headers, in lower case, of a response."""
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read().decode()
        is_json = response.headers.get_content_type() == "application/json"
        return (
            response.status,
            json.loads(content) if is_json else content,
            {name.lower(): value for name, value in response.headers.items()},
        )
    finally:
        connection.close()
