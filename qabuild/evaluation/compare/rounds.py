"""Let the artifacts take turns: the same questions, round by round, A B C A B C."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qabuild.errors import QABuildError
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.result import Failure, Time
from qabuild.evaluation.compare.worker_pool import Turn, Worker, hired
from qabuild.qa import ask
from qabuild.qa.data import QuestionSet
from qabuild.system.reporter import Reporter

AUDITED = 2 * ask.CHUNK
"""Questions that are asked first in the very batches in which they were asked when the artifact was verified."""
FURTHER_QUESTIONS = 256
"""How many questions, at most, are asked at further batch sizes, and one by one."""
WARM_UP = 8
"""Questions that each answers before the first round of a series."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Rounds over the first `questions` questions, all asked in the same way."""

    questions: int
    batch_size: int | None
    """None leaves it to the pipeline, as verification does."""
    one_by_one: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one contestant did: a turn for each round of each series."""

    contestant: Contestant
    load_seconds: float
    audit: Sequence[Turn]
    throughput: Mapping[int, Sequence[Turn]]
    """By batch size; the first over all questions."""
    latency: Sequence[Turn]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What was measured, of those that came to the end."""

    runs: Sequence[Run]
    failures: Sequence[Failure]
    time: Time


def measure(
    contestants: Sequence[Contestant],
    failures: Sequence[Failure],
    questions: QuestionSet,
    batch_sizes: Sequence[int],
    *,
    latency: bool,
    reporter: Reporter,
) -> Runs:
    """Load each in a process of its own, and let them answer in turns.

    Those that fail on the way are added to `failures`, and the others go on. Raises what the last of them raised
    where none is left.
    """
    scored = int(contestants[0].artifact.manifest.verify["batch_size"])
    count, few = len(questions), min(len(questions), FURTHER_QUESTIONS)
    audit = Series(questions=min(count, AUDITED), batch_size=None)
    throughput = {scored: Series(questions=count, batch_size=scored)}
    throughput |= {size: Series(questions=few, batch_size=size) for size in batch_sizes if size != scored}
    singly = Series(questions=few, batch_size=1, one_by_one=True)
    with hired(contestants) as workers:
        team = _Team(workers, list(failures), reporter)
        started = time.perf_counter()
        loading = team.load(questions)
        loaded = time.perf_counter()
        turns = {series: team.run(series) for series in (audit, *throughput.values(), *([singly] if latency else []))}
        finished = time.perf_counter()
    runs = [
        Run(
            contestant=worker.contestant,
            load_seconds=loading[worker],
            audit=turns[audit][worker],
            throughput={size: turns[series][worker] for size, series in throughput.items()},
            latency=turns[singly][worker] if latency else [],
        )
        for worker in team.workers
    ]
    spent = Time(loading=loaded - started, measuring=finished - loaded, answering=team.answering)
    return Runs(runs=runs, failures=team.failures, time=spent)


class _Team:
    """Those at work, in the order of the command line; one that fails drops out."""

    def __init__(self, workers: Sequence[Worker], failures: list[Failure], reporter: Reporter) -> None:
        self.workers = list(workers)
        self.failures = failures
        self.answering = 0.0
        self._reporter = reporter

    def load(self, questions: QuestionSet) -> dict[Worker, float]:
        """The seconds that each took to load: one after another, since together they would slow each other down."""
        seconds = {}
        with self._reporter.progress("loading", len(self.workers)) as advance:
            for worker in list(self.workers):
                with self._dropping(worker):
                    seconds[worker] = worker.load(questions)
                advance(1)
        return seconds

    def run(self, series: Series) -> dict[Worker, list[Turn]]:
        """The turns of each. Who goes first changes from round to round, so that no place is better for one."""
        turns: dict[Worker, list[Turn]] = {worker: [] for worker in self.workers}
        for worker in list(self.workers):
            self._ask(worker, series, 0, min(WARM_UP, series.questions))
        label = "one by one" if series.one_by_one else f"batch {series.batch_size}" if series.batch_size else "audit"
        with self._reporter.progress(label, series.questions) as advance:
            for number, start in enumerate(range(0, series.questions, ask.CHUNK)):
                stop = min(start + ask.CHUNK, series.questions)
                first = number % len(self.workers)
                for worker in self.workers[first:] + self.workers[:first]:
                    turns[worker] += self._ask(worker, series, start, stop)
                advance(stop - start)
        return turns

    def _ask(self, worker: Worker, series: Series, start: int, stop: int) -> list[Turn]:
        """One turn, or none of a worker that failed."""
        with self._dropping(worker):
            turn = worker.ask(start, stop, batch_size=series.batch_size, one_by_one=series.one_by_one)
            self.answering += sum(turn.seconds)
            return [turn]
        return []

    @contextmanager
    def _dropping(self, worker: Worker) -> Iterator[None]:
        """Take the worker out where it fails; the last one's failure is that of all."""
        try:
            yield
        except QABuildError as error:
            self.workers.remove(worker)
            if not self.workers:
                raise
            contestant = worker.contestant
            self._reporter.say(f"{contestant.name} drops out: {error.message.splitlines()[0]}")
            self.failures.append(Failure.of(contestant.name, contestant.artifact.directory, error))
            worker.close()
