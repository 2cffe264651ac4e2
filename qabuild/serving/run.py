"""Starts the server, and stops it in order: no new connections, every accepted request answered."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qabuild.errors import QABuildError
from qabuild.serving.settings import Settings
from qabuild.system import packages
from qabuild.system.reporter import Reporter

if TYPE_CHECKING:
    from qabuild.serving.model import Model

PACKAGES = ("starlette", "uvicorn", "prometheus-client")


def require_library() -> None:
    """Raise MissingEnvironment where a server's packages are not installed."""
    packages.refuse(packages.missing(dict.fromkeys(PACKAGES, ("serve",)), "cpu"))


def listen(settings: Settings) -> socket.socket:
    """A socket that listens on the address of the settings. Raises QABuildError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it, each answer takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen()
    except (OSError, UnicodeError) as error:
        listener.close()
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise QABuildError(
            f"{settings.host}, port {settings.port}: {problem}", "choose another --port or --host"
        ) from None
    return listener


async def serve(
    sources: Mapping[str, str],
    load: Callable[[str], Model],
    settings: Settings,
    listener: socket.socket,
    *,
    reporter: Reporter,
    ready: Callable[[], None],
) -> None:
    """Answer on `listener` from the artifacts at `sources`, by name, until SIGTERM or SIGINT.

    `load` loads an artifact; `ready` is called when all of them are. Raises what `load` raises. Once it stops, SIGINT
    ends the process at once.
    """
    from qabuild.serving import app
    from qabuild.serving.connections import Server
    from qabuild.serving.metrics import Metrics
    from qabuild.serving.service import Service

    metrics = Metrics()
    service = Service(sources, load, settings, metrics, reporter)
    server = Server(app.make(service, settings, metrics))

    def stop() -> None:
        service.stop()
        server.should_exit = True

    def loaded(loading: asyncio.Task[None]) -> None:
        if loading.cancelled() or loading.exception():
            stop()
        elif service.unready is None:
            ready()

    loading = asyncio.create_task(service.start())
    loading.add_done_callback(loaded)
    with _on_signals(stop):
        await server.serve(sockets=[listener])
    if loading.done():
        loading.result()


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first SIGINT or SIGTERM inside the block; then SIGINT ends the process at once.

    A further SIGTERM changes nothing: some supervisors send several.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # A command started in the background ignores SIGINT.
    heeded = [number for number, handler in before.items() if handler != signal.SIG_IGN]

    stopping = False

    def received() -> None:
        nonlocal stopping
        stopping = True
        for number in heeded:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        stop()

    for number in heeded:
        loop.add_signal_handler(number, received)
    try:
        yield
    finally:
        for number in () if stopping else heeded:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
