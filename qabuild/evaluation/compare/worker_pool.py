"""The parent's side of the worker processes, one for each artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.worker import Call
from qabuild.qa.data import QuestionSet
from qabuild.system.process import Child


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One worker's answers to some questions, and their times."""

    answers: Sequence[tuple[str, int, int]]
    """Text, begin and end (characters of the context) of each answer."""
    seconds: Sequence[float]
    """Duration of each call of the pipeline."""
    calls: Sequence[Call]
    """Calls of the model."""
    peak_memory: int
    """Peak resident memory of the process so far, in bytes."""


class Worker:
    """A process that loads one artifact and answers questions with it."""

    def __init__(self, contestant: Contestant, *, allow_native: bool = False) -> None:
        self.contestant = contestant
        self._allow_native = allow_native
        self._child = Child(
            "qabuild.evaluation.compare.worker", "its worker process", remedy="compare fewer artifacts at once"
        )

    def load(self, questions: QuestionSet, *, squad_v2: bool) -> float:
        """Load the artifact and send it the questions; returns the seconds of loading, including imports.

        Raises the error of loading, or QABuildError if the process died.
        """
        artifact = self.contestant.artifact
        request = {
            "artifact": str(artifact.directory),
            "digest": artifact.digest,
            "allow_native": self._allow_native,
            "squad_v2": squad_v2,
            "questions": [
                {"question": question.question, "context": question.context} for question in questions.questions
            ],
        }
        return float(self._child.ask(request)["load_seconds"])

    def answer(self, start: int, stop: int, *, batch_size: int | None, one_by_one: bool = False) -> Turn:
        """Answer questions `start` to `stop`; raises as `load` does."""
        request = {"start": start, "stop": stop, "batch_size": batch_size, "one_by_one": one_by_one}
        return Turn(**self._child.ask(request))

    def close(self) -> None:
        """Kill the process."""
        self._child.kill()


@contextmanager
def start_workers(contestants: Sequence[Contestant], *, allow_native: bool = False) -> Iterator[list[Worker]]:
    """Start a worker for each contestant, without loading it; kills all of them at the end."""
    workers: list[Worker] = []
    try:
        for contestant in contestants:
            workers.append(Worker(contestant, allow_native=allow_native))
        yield workers
    finally:
        for worker in workers:
            worker.close()
