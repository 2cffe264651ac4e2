"""What the user sees: progress on stderr, results on stdout. The only room that knows rich."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from qabuild.errors import QABuildError
from qabuild.system.reporter import Advance

WORDS = 30  # characters of a line that some words fit into


class Console:
    """The reporter of the command line. Progress bars only on a terminal; nothing but results on stdout."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.json = json

    def say(self, message: str) -> None:
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        if self.quiet or not _takes_escapes(sys.stderr):
            yield lambda count: None
            return
        from rich import progress as bars

        columns = (
            bars.TextColumn("  {task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=_rich(sys.stderr, sys.stderr), transient=True) as shown:
            task = shown.add_task(label, total=total, rate="")

            def advance(count: int) -> None:
                shown.update(task, advance=count)
                speed = shown.tasks[task].speed
                shown.update(task, rate=f"{speed:.1f}/s" if speed else "")

            yield advance

    def result(self, document: Any, show: Callable[[], None]) -> None:
        """The command's result: as one JSON document, or as `show` prints it."""
        if self.json:
            emit(json.dumps(document, indent=2, default=_plain))
        else:
            show()


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else list(value) if isinstance(value, (set, tuple)) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; columns whose every cell is a number stand flush right.

    Where a terminal is too narrow for its columns, each row becomes a record with a line for each of them.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = io.StringIO()
    console = _rich(sys.stdout, drawn)
    if _is_too_wide(columns, rows, console.width):
        emit("\n\n".join(_record(columns, row) for row in rows))
        return
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    shown = Table(box=box.SIMPLE_HEAD if unicode else box.ASCII, pad_edge=False)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows if row[index] not in ("", "-")]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell[:1] in "+-" for cell in cells)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
    emit("\n".join(line.rstrip() for line in drawn.getvalue().splitlines() if line.strip()))


def _record(columns: Sequence[str], row: Sequence[str]) -> str:
    name = max(map(len, columns))
    return "\n".join(f"{column:{name}}  {cell}" for column, cell in zip(columns, row, strict=True) if cell)


def _is_too_wide(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the table does not fit into so many characters, its widest column broken into lines of some words."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    spare = width - (sum(widths) - max(widths) + 2 * len(widths))
    return spare < min(max(widths), WORDS)


def emit(text: str) -> None:
    """Print a result on stdout, whatever characters that takes. That its reader has gone (`| head`) is no failure.

    Raises QABuildError where it cannot be written.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries, and fails, again
        if not isinstance(error, BrokenPipeError):
            raise QABuildError(f"the result cannot be written: {error.strerror}", "look at where stdout goes") from None


def _takes_escapes(stream: TextIO) -> bool:
    """Whether colours and moves of the cursor are wanted there. See https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _rich(shown_on: TextIO, file: TextIO) -> Any:
    """A rich console that writes into `file` what is to be seen on `shown_on`."""
    from rich.console import Console as Rich

    return Rich(
        file=file,
        highlight=False,
        force_terminal=shown_on.isatty(),
        color_system="auto" if _takes_escapes(shown_on) else None,
        width=None if shown_on.isatty() else 10_000,  # a pipe has no width: no column is cut there
    )
