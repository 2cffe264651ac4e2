"""Errors as the command line prints them, and signal handling."""

from __future__ import annotations

import errno
import json
import signal
import sys
import traceback
from typing import Any, NoReturn

from qabuild.cli.console import emit, print_message
from qabuild.errors import INTERRUPTED, QABuildError

received: list[int] = []
"""The SIGINT and SIGTERM that this process received."""


goes_on: list[bool] = []
"""Whether the command that runs goes on from where it was interrupted when it is given again."""


def handle_signals() -> None:
    """Make SIGTERM interrupt as SIGINT does, so that cleanup runs."""

    def stop(number: int, _: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    received.clear()
    goes_on.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a command started in the background ignores SIGINT
            signal.signal(number, stop)


def require_uninterrupted(error: BaseException | None = None) -> None:
    """Raise KeyboardInterrupt if a signal arrived: libraries replace one that hits an import by errors of their own."""
    if received:
        raise KeyboardInterrupt from error


_HINTS = {
    errno.EACCES: "give this user the rights to it",
    errno.EPERM: "give this user the rights to it",
    errno.EROFS: "make the disk writable",
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room: this user's quota is used up",
    errno.EMFILE: "allow this user more open files: ulimit -n",
}
"""What to do about an error of the operating system, by its number."""


def to_qabuild_error(error: QABuildError | OSError | MemoryError) -> QABuildError:
    """The error to report. One of the operating system that no caller explained keeps its own message."""
    if isinstance(error, QABuildError):
        return error
    if isinstance(error, MemoryError):
        return QABuildError("out of memory", "close other programs, or use a machine with more memory")
    at = f"{error.filename2 or error.filename}: " if error.filename else ""
    return QABuildError(f"{at}{error.strerror or error}", _HINTS.get(error.errno or 0, "-v shows where it came from"))


def print_error(error: QABuildError, *, verbose: bool = False) -> None:
    if verbose:
        print_message(traceback.format_exc().rstrip())
    print_message(f"error: {error}")


def print_json_error(error: QABuildError, as_json: bool) -> None:
    """With `--json`, print the error as the only document on stdout."""
    if as_json:
        emit(json.dumps(error_document(error), indent=2))


def exit_interrupted(as_json: bool = False) -> NoReturn:
    """End the process as interrupted, with a document on stdout for `--json`."""
    status = 128 + received[-1] if received else INTERRUPTED
    hint = "the same command goes on from there" if goes_on else None
    print_message(f"interrupted; {hint}" if hint else "interrupted")
    if as_json:
        emit(json.dumps({"error": "interrupted", "hint": hint, "status": status}, indent=2))
    sys.exit(status)


def error_document(error: QABuildError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "status": error.exit_status}
