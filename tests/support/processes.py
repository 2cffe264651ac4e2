"""Processes that tests start and watch."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

SECONDS = 600.0
"""How long anything may take; tests fail far earlier if the process ends."""

T = TypeVar("T")


def wait_for(what: Callable[[], T], process: subprocess.Popen[str]) -> T:
    """What `what` returns, once that is true; fails if the process ends before."""
    ends = time.monotonic() + SECONDS
    while not (value := what()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends
        time.sleep(0.01)
    return value


def assert_ended(processes: Collection[int]) -> None:
    """Each of these processes has ended or does so soon."""
    ends = time.monotonic() + 30
    while any(Path(f"/proc/{process}/fd").exists() for process in processes):
        assert time.monotonic() < ends
        time.sleep(0.1)
