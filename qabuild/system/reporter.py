"""Progress reports of long work: the protocol, and a silent reporter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Advance = Callable[[int], None]


class Reporter(Protocol):
    """Receives the messages and progress of long work."""

    def say(self, message: str) -> None:
        """Report one line about the current work."""

    def progress(self, label: str, total: int) -> Any:
        """A context manager that yields a function; call it with the number of items just finished."""


class Silent:
    """Reports nothing; the default of the Python API."""

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda count: None


SILENT = Silent()
