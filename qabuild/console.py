"""What the user sees: progress on stderr, results on stdout. The only room that knows rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
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


class Console:
    """The reporter of the command line. Progress bars only on a terminal; nothing but results on stdout."""

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.json = json

    @property
    def _stderr(self) -> Any:
        from rich.console import Console as Rich

        return Rich(stderr=True, highlight=False, soft_wrap=True)

    def say(self, message: str) -> None:
        if not self.quiet:
            self._stderr.print(message, markup=False)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        if self.quiet or not sys.stderr.isatty():
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
        with bars.Progress(*columns, console=self._stderr, transient=True) as shown:
            task = shown.add_task(label, total=total, rate="")

            def advance(count: int) -> None:
                shown.update(task, advance=count)
                speed = shown.tasks[task].speed
                shown.update(task, rate=f"{speed:.1f}/s" if speed else "")

            yield advance

    def result(self, document: Any, show: Callable[[], None]) -> None:
        """The command's result: as one JSON document, or as `show` prints it."""
        if self.json:
            print(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))
        else:
            show()


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else list(value) if isinstance(value, (set, tuple)) else str(value)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None) -> None:
    """A table on stdout; columns whose every cell is a number stand flush right."""
    from rich import box
    from rich.console import Console as Rich
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows if row[index] not in ("", "-")]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell[:1] in "+-" for cell in cells)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    if sys.stdout.isatty():
        Rich(highlight=False).print(shown)
        return
    plain = Rich(highlight=False, width=400)  # a pipe has no width: no column is cut there
    with plain.capture() as captured:
        plain.print(shown)
    for line in captured.get().splitlines():
        if line.strip():
            print(line.rstrip())
