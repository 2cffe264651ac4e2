"""Engines make the parts of a run: here, or with workers on any number of machines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, runtime_checkable

from qabuild.qa.bulk.part_writer import PartWriter
from qabuild.qa.bulk.parts import Part
from qabuild.qa.bulk.tally import Tally
from qabuild.system.reporter import Advance, Reporter


@runtime_checkable
class Engine(Protocol):
    def made(
        self, parts: Iterable[Part], writer: PartWriter, advance: Advance, reporter: Reporter
    ) -> Generator[tuple[Part, Tally], None, None]:
        """Make the parts, and yield each with its counts once it is complete, in any order.

        `advance` gets the number of rows just answered. Closing the generator ends the work.
        """


class ThisProcess:
    """Makes one part after the other with a pipeline."""

    def __init__(self, pipeline: Callable[..., Any]) -> None:
        self._pipeline = pipeline

    def made(
        self, parts: Iterable[Part], writer: PartWriter, advance: Advance, reporter: Reporter
    ) -> Generator[tuple[Part, Tally], None, None]:
        for part in parts:
            yield part, writer.write(self._pipeline, part, advance)
