"""Work in a process of its own: one protocol for all that compiles, trains or is timed apart.

What compiles or trains patches libraries, sets global state and takes memory; verification must run in a process that
saw none of it, and one that is killed must not take the build with it.

`python -m MODULE` reads requests from stdin, a JSON line each, and writes messages to stdout, a JSON line each: any
number that report progress (`progress`), then one that answers (`record`) or says what was raised (`error`, `errno`).
`Child` is the one side, `serve` the other.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from qabuild import errors
from qabuild.system.files import disk_error

Tell = Callable[[Mapping[str, Any]], None]
"""Sends a report of progress, a JSON object, or takes one."""


class Child:
    """A process that runs `module`; it ends with the block, or with this process."""

    def __init__(
        self,
        module: str,
        what: str,
        *,
        environment: Mapping[str, str] | None = None,
        remedy: str = "build on a machine with more",
    ) -> None:
        """`what` is what messages call it; `environment` is added to this process' own; `remedy` is for one that was
        killed for memory."""
        self._what, self._remedy = what, remedy
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        self._process = subprocess.Popen(
            # With -P it imports nothing that lies in the current folder, and with this path what this process would.
            [sys.executable, "-P", "-m", module],
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
        self, request: Mapping[str, Any], hear: Tell = lambda progress: None, directory: Path | None = None
    ) -> dict[str, Any]:
        """The record that it answers the request with. Raises what it raised.

        `hear` takes its reports of progress; `directory` is where it writes.
        """
        message = self._converse(request, hear)
        if message is None:
            raise self._died(directory)
        if "errno" in message:
            raise OSError(message["errno"], os.strerror(message["errno"]), message["file"])
        if "error" in message:
            raise getattr(errors, message["error"])(message["message"], message["hint"])
        return dict(message["record"])

    def finish(self) -> None:
        """Let it come to its end: there are no more requests."""
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            with suppress(BrokenPipeError):  # of what it did not read any more
                stream.close()  # type: ignore[union-attr]

    def _converse(self, request: Mapping[str, Any], hear: Tell) -> Mapping[str, Any] | None:
        """The message that ends the answer; None where it dies before."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # it died at once: its status says more
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            try:
                message: Mapping[str, Any] = json.loads(line)
            except ValueError:  # cut off by its death
                return None
            if "progress" not in message:
                return message
            hear(message["progress"])
        return None

    def _died(self, directory: Path | None) -> Exception:
        """What to say of a process that gave no answer; the end of what it printed is shown with the traceback."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        status = self._process.wait()
        self._stderr.seek(0)
        printed = self._stderr.read().decode(errors="backslashreplace")
        # Of a full disk torch dies instead of raising, so that what is left of it is in stderr and on the disk.
        if directory and (full := disk_error(RuntimeError(printed), directory)):
            return full
        lines = printed.strip().splitlines()
        how = f"ended with status {status}: {lines[-1] if lines else 'nothing said'}"
        hint = "-v shows all that it printed"
        if status < 0:
            how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
        if status == -signal.SIGKILL:
            hint = f"as a rule the memory did not suffice: close other programs, or {self._remedy}"
        error = errors.QABuildError(f"{self._what} {how}", hint)
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
    """Let `module` answer one request in a fresh process, and return what it recorded. Raises what it raised."""
    with Child(module, what, environment=environment) as child:
        return child.ask({**request, "directory": str(directory)}, hear, directory)


def serve(work: Callable[[Any, Tell], Mapping[str, Any]]) -> None:
    """Answer requests from stdin until it ends, on the real stdout; whatever libraries print goes to stderr."""
    _die_with_parent()
    with _take_stdout() as messages:

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
    """Ask the kernel to end this process with its parent, however that ends (prctl PR_SET_PDEATHSIG, Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _take_stdout() -> TextIO:
    """The real stdout for messages alone: whatever libraries print from now on goes to stderr."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return messages
