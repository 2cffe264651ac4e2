"""The command line in this process, for tests."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from qabuild.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left on its streams, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run `qabuild` with the arguments."""
    capfd.readouterr()
    with signals_kept(), pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    streams = capfd.readouterr()
    return Ran(int(left.value.code or 0), streams.out, streams.err)


@contextmanager
def signals_kept() -> Iterator[None]:
    """What the block does on signals ends with it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
