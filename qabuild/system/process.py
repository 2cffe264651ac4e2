"""Work in a child process: one protocol for compiling, training and timing.

Compilers and training patch libraries, set global state and take memory. Verification must run in a process without
these changes, and a child that is killed must not end the build.

The child, `python -m MODULE`, reads requests from stdin and writes messages to stdout, one JSON object a line: any
number of progress reports (`progress`), then the result (`record`) or the exception (`error`, `errno`). `Child` is the
parent's side, `serve` the child's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Any, Self, TextIO

from qabuild import errors
from qabuild.system.files import disk_error

Tell = Callable[[Mapping[str, Any]], None]
"""Sends or receives a progress report, a JSON object."""


class Child:
    """A child process that runs `module`; it ends with the `with` block, or with this process."""

    def __init__(
        self,
        module: str,
        what: str,
        *,
        environment: Mapping[str, str] | None = None,
        remedy: str = "build on a machine with more",
        python: str | None = None,
    ) -> None:
        """`what` is its name in messages; `environment` is added to this process' own; `remedy` is the hint if it is
        killed for lack of memory. Another `python` needs a PYTHONPATH of its own in `environment`."""
        self._what, self._remedy = what, remedy
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        self._process = subprocess.Popen(
            # -P: import nothing from the current folder; PYTHONPATH: import what this process would.
            [python or sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        self.kill()

    def ask(
        self,
        request: Mapping[str, Any],
        hear: Tell = lambda progress: None,
        directory: Path | None = None,
        *,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Send a request and return the record that answers it. Raises what the child raised.

        `hear` receives progress reports; `directory` is where the child writes. After so many `seconds` the child is
        killed: TimeoutError.
        """
        ends = inf if seconds is None else time.monotonic() + seconds
        timer = threading.Timer(seconds or 0, self._process.kill)
        if seconds is not None:
            timer.start()
        try:
            message = self._exchange(request, hear)
        finally:
            timer.cancel()
        if message is None and time.monotonic() >= ends:
            raise TimeoutError(f"{self._what} took more than {seconds:.0f} s")
        if message is None:
            raise self._death(directory)
        if "errno" in message:
            raise OSError(message["errno"], os.strerror(message["errno"]), message["file"])
        if "error" in message:
            raise getattr(errors, message["error"])(message["message"], message["hint"])
        return dict(message["record"])

    def finish(self) -> None:
        """Close the requests and wait for the child to end."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def kill(self) -> None:
        """Kill the child at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(BrokenPipeError):  # requests that it did not read
                stream.close()  # type: ignore[union-attr]

    def _exchange(self, request: Mapping[str, Any], hear: Tell) -> Mapping[str, Any] | None:
        """The message with the record or the error; None if the child dies first."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # it died early; its exit status says more
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            try:
                message: Mapping[str, Any] = json.loads(line)
            except ValueError:  # truncated by its death
                return None
            if "progress" not in message:
                return message
            hear(message["progress"])
        return None

    def _death(self, directory: Path | None) -> Exception:
        """The error for a child that died without an answer; a note holds the end of its stderr."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        status = self._process.wait()
        self._stderr.seek(0)
        stderr = self._stderr.read().decode(errors="backslashreplace")
        # On a full disk torch aborts instead of raising, so stderr and the free space are checked.
        if directory and (full := disk_error(RuntimeError(stderr), directory)):
            return full
        lines = stderr.strip().splitlines()
        problem = f"ended with status {status}: {lines[-1] if lines else 'nothing said'}"
        hint = "-v shows everything it printed"
        if status < 0:
            problem = f"was killed by signal {-status} ({signal.strsignal(-status)})"
        if status == -signal.SIGKILL:
            hint = f"most likely out of memory: close other programs, or {self._remedy}"
        error = errors.QABuildError(f"{self._what} {problem}", hint)
        error.add_note("\n".join([f"What {self._what} printed last:", *lines[-50:]]))
        return error


def run_in_child(
    module: str,
    request: Mapping[str, Any],
    directory: Path,
    what: str,
    hear: Tell = lambda progress: None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run one request of `module` in a fresh process and return its record. Raises what the child raised."""
    with Child(module, what, environment=environment) as child:
        return child.ask({**request, "directory": str(directory)}, hear, directory)


def serve(work: Callable[[Any, Tell], Mapping[str, Any]]) -> None:
    """Answer requests from stdin until it closes, on the real stdout; what libraries print goes to stderr."""
    _die_with_parent()
    with _reserve_stdout() as messages:

        def send(message: Mapping[str, Any]) -> None:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

        for line in sys.stdin:
            send(_answer(work, json.loads(line), send))


def _answer(work: Callable[[Any, Tell], Mapping[str, Any]], request: Any, send: Tell) -> Mapping[str, Any]:
    try:
        return {"record": work(request, lambda progress: send({"progress": progress}))}
    except errors.QABuildError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:
        if "directory" in request and (full := disk_error(error, Path(request["directory"]))):
            return {"errno": full.errno, "file": full.filename2 or full.filename}
        raise


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (prctl PR_SET_PDEATHSIG, Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _reserve_stdout() -> TextIO:
    """Reserve the real stdout for messages: what libraries print from now on goes to stderr."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return messages
