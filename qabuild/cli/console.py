"""Output: progress and errors on stderr, results on stdout. Only this module imports rich.

All text leaves through `print_message`, `emit`, `table` or a progress bar, which escape control characters:
descriptions, names of files and messages of the Hub are text of others.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from qabuild.errors import QABuildError, without_secrets
from qabuild.system.reporter import Advance
from qabuild.system.terminal import visible

MIN_WIDTH = 30  # characters: the narrowest column that still shows text legibly
SECONDS_PER_LINE = 10.0  # between two lines of progress


class Console:
    """The reporter of the command line. Progress is a bar on a terminal, and lines elsewhere; nothing but results on
    stdout."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.json = json

    def say(self, message: str) -> None:
        if not self.quiet:
            print_message(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        if self.quiet:
            yield lambda count: None
            return
        if not _takes_escapes(sys.stderr):
            yield _ProgressLines(label, total)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=_rich(sys.stderr, sys.stderr), transient=True) as bar:
            task = bar.add_task(visible(label), total=total, rate="")

            def advance(count: int) -> None:
                bar.update(task, advance=count)
                speed = bar.tasks[task].speed
                bar.update(task, rate=_pace(speed) if speed else "")

            yield advance

    def result(self, document: Any, show: Callable[[], None]) -> None:
        """Print the command's result: as one JSON document, or by calling `show`."""
        if self.json:
            emit(json.dumps(document, indent=2, default=_plain))
        else:
            show()


class _ProgressLines:
    """Progress as lines, at most one in `SECONDS_PER_LINE`. Called with the number of items just finished."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None
        """Time and number of items of the first call, which may count items of an earlier run."""

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if now - self._printed < SECONDS_PER_LINE:
            return
        self._printed = now
        of = f" of {self._total}" if self._total else ""  # of a pipe, the total is not known
        print_message(f"  {self._label}: {self._done}{of}{self._speed(now, *self._first)}")

    def _speed(self, now: float, started: float, done_then: int) -> str:
        if self._done == done_then or now == started:
            return ""
        rate = (self._done - done_then) / (now - started)
        left = f", about {(self._total - self._done) / rate:.0f} s left" if self._done < self._total else ""
        return f", {_pace(rate)}{left}"


def _pace(rate: float) -> str:
    """So many items a second, in words."""
    return f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.0f} s each"


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else list(value) if isinstance(value, (set, tuple)) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout, with numeric columns right-aligned.

    On a terminal that is too narrow, each row becomes a record with one line per column.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns, *rows = ([visible(cell) for cell in row] for row in (columns, *rows))
    buffer = io.StringIO()
    console = _rich(sys.stdout, buffer)
    if _is_too_wide(columns, rows, console.width):
        emit("\n\n".join(_record(columns, row) for row in rows))
        return
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    grid = Table(box=box.SIMPLE_HEAD if unicode else box.ASCII, pad_edge=False)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows if row[index] not in ("", "-")]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell[:1] in "+-" for cell in cells)
        grid.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
    _print("\n".join(line.rstrip() for line in buffer.getvalue().split("\n") if line.strip()))


def _record(columns: Sequence[str], row: Sequence[str]) -> str:
    name = max(map(len, columns))
    return "\n".join(f"{column:{name}}  {cell}" for column, cell in zip(columns, row, strict=True) if cell)


def _is_too_wide(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the table exceeds `width` characters even when its widest column wraps at `MIN_WIDTH`."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    spare = width - (sum(widths) - max(widths) + 2 * len(widths))
    return spare < min(max(widths), MIN_WIDTH)


def emit(text: str) -> None:
    """Print a result on stdout; raises QABuildError if that cannot be written."""
    _print(visible(text))


def print_message(text: str) -> None:
    """Print a message on stderr."""
    click.echo(visible(without_secrets(text)), err=True)


def _print(text: str) -> None:
    """Print on stdout, escaping characters that its encoding lacks. A closed pipe (`| head`) is no failure."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        if not isinstance(error, BrokenPipeError):
            raise QABuildError(f"the result cannot be written: {error.strerror}", "check where stdout goes") from None


def _takes_escapes(stream: TextIO) -> bool:
    """Whether to send escape sequences (colours, cursor movement). See https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _rich(stream: TextIO, file: TextIO) -> Any:
    """A rich console that writes to `file`, formatted for `stream`."""
    from rich.console import Console as Rich

    return Rich(
        file=file,
        highlight=False,
        force_terminal=stream.isatty(),
        color_system="auto" if _takes_escapes(stream) else None,
        width=None if stream.isatty() else 10_000,  # a pipe has no width, so no column is cut
    )
