"""uvicorn, as this server runs it: connections that send no request are closed, so that they keep no others out."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 30.0
"""Until the head of a request must be complete, from the connection or the previous response on."""
BACKLOG = 128
"""Connections that asyncio accepts before it runs anything else."""
RESERVED = 128 + BACKLOG
"""File descriptors that are not for connections."""


class Connection(H11Protocol):
    """A connection that waits for a request for a limited time, and gives way where there are too many."""

    maximum = 10_000
    """Connections, at most."""
    waiting: dict[Connection, None]
    """Those that wait for a request, the longest first."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.maximum:
            gives_way = next(iter(self.waiting), self)
            gives_way._wait_no_longer()
            gives_way.transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_longer()

    def on_response_complete(self) -> None:
        self._wait()
        super().on_response_complete()  # and begins the next request where that has come already

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = [(b"content-type", b"application/json"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=head, reason=b"Bad Request"),
                h11.Data(data=b'{"error": "not an HTTP request"}'),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        self._wait_no_longer()
        if not self.transport.is_closing():
            self.waiting[self] = None
            self._timer = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _wait_no_longer(self) -> None:
        self.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()


class Server(uvicorn.Server):
    """uvicorn, which leaves the signals of the process alone."""

    def __init__(self, app: ASGIApp) -> None:
        connection = type("LimitedConnection", (Connection,), {"maximum": _maximum(), "waiting": {}})
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                backlog=BACKLOG,
                timeout_keep_alive=int(REQUEST_SECONDS),
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _maximum() -> int:
    """As many connections as this process may have open files."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return Connection.maximum if most == resource.RLIM_INFINITY else max(1, min(Connection.maximum, most - RESERVED))
