"""The processes that answer, one for each artifact, as seen from the one that measures."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qabuild import errors
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.worker import Call
from qabuild.qa.data import QuestionSet
from qabuild.system import child


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
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - close() does
        self._process = subprocess.Popen(
            child.command("qabuild.evaluation.compare.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            env=child.environment(),
        )

    def load(self, questions: QuestionSet) -> float:
        """Load the artifact, to be asked of these questions; the seconds that loading took, imports included.

        Raises what loading raised, or QABuildError where the process died.
        """
        artifact = self.contestant.artifact
        reply = self._request(
            artifact=str(artifact.directory),
            digest=artifact.digest,
            squad_v2=questions.has_unanswerable,
            questions=[{"question": each.question, "context": each.context} for each in questions.questions],
        )
        return float(reply["load_seconds"])

    def ask(self, start: int, stop: int, *, batch_size: int | None, one_by_one: bool = False) -> Turn:
        """The answers to questions `start` to `stop`; raises as `load` does."""
        return Turn(**self._request(start=start, stop=stop, batch_size=batch_size, one_by_one=one_by_one))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _request(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise self._died() from None
        if "error" in reply:
            raise getattr(errors, reply["error"])(reply["message"], reply["hint"])
        return dict(reply)

    def _died(self) -> errors.QABuildError:
        status = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="backslashreplace")
        return child.died("the process that held it", status, said, "compare fewer artifacts at once")


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
