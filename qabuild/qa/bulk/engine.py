"""Engines make the parts of a run: here, or with workers on any number of machines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol, runtime_checkable

from qabuild.qa.bulk.part_writer import PartWriter, UnusableQuestions
from qabuild.qa.bulk.parts import Part
from qabuild.qa.bulk.tally import Tally
from qabuild.system.reporter import Advance, Reporter

Outcome = Tally | UnusableQuestions
"""The counts of a complete part, or why it cannot be made."""


@runtime_checkable
class Engine(Protocol):
    def made(
        self, parts: Iterable[Part], writer: PartWriter, advance: Advance, reporter: Reporter
    ) -> Generator[tuple[Part, Outcome], None, None]:
        """Make the parts, and yield each with its outcome, in any order. A part whose questions cannot be used does not
        keep the others from being made.

        `advance` gets the number of rows just answered. Closing the generator ends the work.
        """


class ThisProcess:
    """Makes one part after the other with a pipeline."""

    def __init__(self, pipeline: Callable[..., Any]) -> None:
        self._pipeline = pipeline

    def made(
        self, parts: Iterable[Part], writer: PartWriter, advance: Advance, reporter: Reporter
    ) -> Generator[tuple[Part, Outcome], None, None]:
        for part in parts:
            try:
                outcome: Outcome = writer.write(self._pipeline, part, advance)
            except UnusableQuestions as error:
                outcome = error
            yield part, outcome
