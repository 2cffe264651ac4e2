"""What the command line says of errors, and what it does when it is told to stop."""

from __future__ import annotations

import json
import signal
import traceback
from typing import Any, NoReturn

import click

from qabuild.cli.console import emit
from qabuild.errors import QABuildError

received: list[int] = []
"""Signals that asked this process to stop."""


def heed_signals() -> None:
    """SIGTERM interrupts as SIGINT does, so that cleaning up still happens."""

    def stop(number: int, _: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    received.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as of a command that was started in the background
            signal.signal(number, stop)


def require_uninterrupted(error: BaseException | None = None) -> None:
    """Raise KeyboardInterrupt where a signal came: libraries make errors of their own of one that hits an import."""
    if received:
        raise KeyboardInterrupt from error


def as_told(error: QABuildError | OSError | MemoryError) -> QABuildError:
    """The error to tell; what the system refuses in a place where no one explained it keeps its own words."""
    if isinstance(error, QABuildError):
        return error
    if isinstance(error, MemoryError):
        return QABuildError("the memory does not suffice", "close other programs, or use a machine with more")
    at = f"{error.filename2 or error.filename}: " if error.filename else ""
    return QABuildError(f"{at}{error.strerror or error}", "-v shows where it came from")


def complain(error: QABuildError, *, verbose: bool = False) -> None:
    if verbose:
        traceback.print_exc()
    click.echo(f"error: {error}", err=True)


def complain_in_json(error: QABuildError, as_json: bool) -> None:
    """The one document on stdout of a command that came to no result."""
    if as_json:
        emit(json.dumps(error_document(error), indent=2))


def error_document(error: QABuildError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "status": error.exit_status}
