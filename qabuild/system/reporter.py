"""Progress of long work, as its caller is told of it: a protocol, and one that says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

Advance = Callable[[int], None]


class Reporter(Protocol):
    """What long work tells its caller while it goes on."""

    def say(self, message: str) -> None:
        """One line about what is being done."""

    def progress(self, label: str, total: int) -> Any:
        """A context manager that gives a function: call it with how many more are done."""


class Silent:
    """The reporter of the Python API: says nothing."""

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda count: None


SILENT = Silent()
