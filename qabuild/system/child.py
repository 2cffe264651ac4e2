"""Work in a process of its own: how it is started, ends with its parent, and what is said of one that died."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TextIO

from qabuild.errors import QABuildError


def command(module: str) -> list[str]:
    """The command line that runs `module`; with -P it imports nothing that lies about in the current folder."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process' environment, with which `command` imports what this process would."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, however that ends (prctl PR_SET_PDEATHSIG, Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def take_stdout() -> TextIO:
    """The real stdout for answers alone: whatever libraries print from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def died(who: str, status: int, stderr: str, remedy: str = "build on a machine with more") -> QABuildError:
    """What to say of a process that gave no answer; the end of what it printed is shown with the traceback."""
    lines = stderr.strip().splitlines()
    how = f"ended with status {status}: {lines[-1] if lines else 'nothing said'}"
    hint = "-v shows all that it printed"
    if status < 0:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
    if status == -signal.SIGKILL:
        hint = f"as a rule the memory did not suffice: close other programs, or {remedy}"
    error = QABuildError(f"{who} {how}", hint)
    error.add_note("\n".join([f"What {who} printed last:", *lines[-50:]]))
    return error
