"""Work that may hang, such as a request to a store: given up once it shows no progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

Advanced = Callable[[], None]
"""Called by work that takes long whenever a part of it is done."""


def within(seconds: float, work: Callable[[Advanced], T]) -> T:
    """What `work` returns or raises; TimeoutError once it has shown no progress for `seconds`.

    Drivers of stores name their limits differently, and some have none. The work runs in a thread, which cannot be
    stopped: given up, it ends with the process at the latest, and its caller must not reuse what it was given.
    """
    future: Future[T] = Future()
    latest = time.monotonic()

    def advanced() -> None:
        nonlocal latest
        latest = time.monotonic()

    def run() -> None:
        try:
            future.set_result(work(advanced))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    while True:
        try:
            return future.result(timeout=max(0.0, latest + seconds - time.monotonic()))
        except TimeoutError:
            if future.done():  # the work's own
                return future.result()
            if time.monotonic() - latest >= seconds:
                raise TimeoutError(f"no answer for {seconds:g} s") from None
