"""The processes that answer, one for each artifact, as seen from the one that measures."""

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
    """What one worker made of some questions."""

    answers: Sequence[tuple[str, int, int]]
    """Text, begin and end (characters of the context) of the answer to each."""
    seconds: Sequence[float]
    """Of each call of the pipeline."""
    calls: Sequence[Call]
    """Of the model."""
    peak_memory: int
    """Bytes that the process has held so far, at most."""


class Worker:
    """One artifact in a process of its own, loaded once, answering when asked."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self._child = Child(
            "qabuild.evaluation.compare.worker", "the process that held it", remedy="compare fewer artifacts at once"
        )

    def load(self, questions: QuestionSet) -> float:
        """Load the artifact, to be asked of these questions; the seconds that loading took, imports included.

        Raises what loading raised, or QABuildError where the process died.
        """
        artifact = self.contestant.artifact
        request = {
            "artifact": str(artifact.directory),
            "digest": artifact.digest,
            "squad_v2": questions.has_unanswerable,
            "questions": [{"question": each.question, "context": each.context} for each in questions.questions],
        }
        return float(self._child.ask(request)["load_seconds"])

    def ask(self, start: int, stop: int, *, batch_size: int | None, one_by_one: bool = False) -> Turn:
        """The answers to questions `start` to `stop`; raises as `load` does."""
        request = {"start": start, "stop": stop, "batch_size": batch_size, "one_by_one": one_by_one}
        return Turn(**self._child.ask(request))

    def close(self) -> None:
        """End the process."""
        self._child.kill()


@contextmanager
def hired(contestants: Sequence[Contestant]) -> Iterator[list[Worker]]:
    """A worker for each, none of them loaded; all ended in the end."""
    workers: list[Worker] = []
    try:
        for contestant in contestants:
            workers.append(Worker(contestant))
        yield workers
    finally:
        for worker in workers:
            worker.close()
