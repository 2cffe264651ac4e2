"""Run the questions in rounds: in each, all artifacts answer the same questions, in rotating order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qabuild.errors import QABuildError
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.result import Failure, Time
from qabuild.evaluation.compare.worker_pool import Turn, Worker, start_workers
from qabuild.evaluation.measure import batch_sizes as judged_batch_sizes
from qabuild.qa import ask
from qabuild.qa.data import QuestionSet
from qabuild.system.reporter import Reporter

AUDIT_QUESTIONS = 2 * ask.CHUNK
"""How many questions are first run in the same batches as in the verification, for the audit."""
FURTHER_QUESTIONS = 256
"""How many questions, at most, are run at further batch sizes, and one by one."""
WARM_UP = 8
"""Questions that each contestant answers before the first round of a series."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Rounds over the first `questions` questions with the same settings."""

    questions: int
    batch_size: int | None
    """Windows of a batch; None leaves it to the pipeline, as verification does where answers do not depend on it."""
    one_by_one: bool = False


@dataclass(frozen=True, kw_only=True)
class Run:
    """The turns of one contestant: one for each round of each series."""

    contestant: Contestant
    load_seconds: float
    audit: Sequence[Turn]
    throughput: Mapping[int, Sequence[Turn]]
    """By batch size; the first covers all questions."""
    judged: Mapping[int, Sequence[Turn]]
    """All questions, by the batch sizes at which a verification asks; empty if answers do not depend on the batch."""
    latency: Sequence[Turn]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of the contestants that finished, and the failures of the others."""

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
    allow_native: bool = False,
    reporter: Reporter,
) -> Runs:
    """Load each contestant in its own process, and run the questions on them in rounds.

    A contestant that fails is dropped, and the others continue; the result's failures are `failures` and these. Raises
    the error of the last contestant if all fail.
    """
    main_batch_size = int(contestants[0].artifact.manifest.verify["batch_size"])
    count, subset = len(questions), min(len(questions), FURTHER_QUESTIONS)
    throughput = {main_batch_size: Series(questions=count, batch_size=main_batch_size)}
    throughput |= {size: Series(questions=subset, batch_size=size) for size in batch_sizes if size != main_batch_size}
    single = Series(questions=subset, batch_size=1, one_by_one=True)
    with start_workers(contestants, allow_native=allow_native) as workers:
        scheduler = _Scheduler(workers, list(failures), reporter)
        started = time.perf_counter()
        load_seconds = scheduler.load(questions)
        loaded = time.perf_counter()
        audit = {worker: _audit(worker.contestant, count) for worker in workers}
        judged = {worker: _judged(worker.contestant, count) for worker in workers}
        shared = [*throughput.values(), *([single] if latency else [])]
        own = {worker: [audit[worker], *shared, *judged[worker].values()] for worker in workers}
        turns = {
            series: scheduler.run(series, [worker for worker in workers if series in own[worker]])
            for series in dict.fromkeys([*audit.values(), *shared, *itertools.chain(*own.values())])
        }
        finished = time.perf_counter()
    runs = [
        Run(
            contestant=worker.contestant,
            load_seconds=load_seconds[worker],
            audit=turns[audit[worker]][worker],
            judged={size: turns[series][worker] for size, series in judged[worker].items()},
            throughput={size: turns[series][worker] for size, series in throughput.items()},
            latency=turns[single][worker] if latency else [],
        )
        for worker in scheduler.workers
    ]
    duration = Time(loading=loaded - started, measuring=finished - loaded, answering=scheduler.answering)
    return Runs(runs=runs, failures=scheduler.failures, time=duration)


def _audit(contestant: Contestant, count: int) -> Series:
    """The first of `count` questions, in batches of the size whose answers the verification recorded."""
    batch_size = contestant.verification.measurement.batch_size
    return Series(questions=min(count, AUDIT_QUESTIONS), batch_size=batch_size)


def _judged(contestant: Contestant, count: int) -> dict[int, Series]:
    """All `count` questions at each batch size that a verification of this artifact judges, if it names any."""
    manifest = contestant.artifact.manifest
    sizes = judged_batch_sizes(manifest.options, manifest.runtime, manifest.verify["batch_size"])
    return {size: Series(questions=count, batch_size=size) for size in sizes.values() if size is not None}


class _Scheduler:
    """Runs series on the workers, in rotating order; drops a worker that fails."""

    def __init__(self, workers: Sequence[Worker], failures: list[Failure], reporter: Reporter) -> None:
        self.workers = list(workers)
        self.failures = failures
        self.answering = 0.0
        self._reporter = reporter

    def load(self, questions: QuestionSet) -> dict[Worker, float]:
        """Load one after another, since parallel loading would distort the times; returns the seconds of each."""
        seconds = {}
        with self._reporter.progress("loading", len(self.workers)) as advance:
            for worker in list(self.workers):
                with self._drop_on_failure(worker):
                    seconds[worker] = worker.load(questions)
                advance(1)
        return seconds

    def run(self, series: Series, chosen: Sequence[Worker]) -> dict[Worker, list[Turn]]:
        """Run a series on those of `chosen` that have not failed; returns the turns of each.

        The order rotates, so that no worker always goes first.
        """
        turns: dict[Worker, list[Turn]] = {worker: [] for worker in self.workers if worker in chosen}
        for worker in turns:
            self._answer(worker, series, 0, min(WARM_UP, series.questions))
        label = "one by one" if series.one_by_one else f"batch {series.batch_size}" if series.batch_size else "audit"
        with self._reporter.progress(label, series.questions) as advance:
            for number, start in enumerate(range(0, series.questions, ask.CHUNK)):
                stop = min(start + ask.CHUNK, series.questions)
                running = [worker for worker in self.workers if worker in turns]
                first = number % max(len(running), 1)
                for worker in running[first:] + running[:first]:
                    turns[worker] += self._answer(worker, series, start, stop)
                advance(stop - start)
        return turns

    def _answer(self, worker: Worker, series: Series, start: int, stop: int) -> list[Turn]:
        """One turn; none if the worker fails."""
        with self._drop_on_failure(worker):
            turn = worker.answer(start, stop, batch_size=series.batch_size, one_by_one=series.one_by_one)
            self.answering += sum(turn.seconds)
            return [turn]
        return []

    @contextmanager
    def _drop_on_failure(self, worker: Worker) -> Iterator[None]:
        """Drop the worker if the body raises; re-raise if it was the last one."""
        try:
            yield
        except QABuildError as error:
            self.workers.remove(worker)
            if not self.workers:
                raise
            contestant = worker.contestant
            self._reporter.say(f"{contestant.name} failed and is dropped: {error.message.splitlines()[0]}")
            self.failures.append(Failure.of(contestant.name, contestant.artifact.directory, error))
            worker.close()
