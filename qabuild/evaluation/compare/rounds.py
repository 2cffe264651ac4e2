"""Run the questions in rounds: in each, all artifacts answer the same questions, in rotating order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from qabuild.errors import QABuildError
from qabuild.evaluation.compare.contestants import Contestant
from qabuild.evaluation.compare.result import Failure, Time
from qabuild.evaluation.compare.worker_pool import Turn, Worker, start_workers
from qabuild.evaluation.differences import batch_sizes as judged_batch_sizes
from qabuild.qa import ask
from qabuild.qa.data import QuestionSet
from qabuild.system.reporter import Reporter

AUDIT_QUESTIONS = 2 * ask.CHUNK
"""How many questions are first run in the same batches as in the verification, for the audit."""
FURTHER_QUESTIONS = 256
"""How many questions, at most, are run at further batch sizes, and one by one."""
WARM_UP = 8
"""Questions that each contestant answers before the first round of a series."""
LEAST_ROUNDS = 2
"""Rounds over all contestants that an interrupted comparison needs: one says nothing about the variance."""


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
    interrupted: bool = False
    """Whether they are what had been measured when the user interrupted: complete rounds and series only."""

    @property
    def questions(self) -> int:
        """How many of the first questions were run."""
        return sum(len(turn.answers) for turn in next(iter(self.runs[0].throughput.values())))


def sampled(questions: QuestionSet, samples: int | None) -> QuestionSet:
    """About `samples` of the questions: as many whole rounds as hold them, spread evenly over the set.

    Whole, so that each question keeps its batch of the verification, on which answers may depend.
    """
    rounds = ask.chunks(questions.questions)
    count = len(rounds) if samples is None else min(-(-samples // ask.CHUNK), len(rounds))
    chosen = [rounds[number * len(rounds) // count] for number in range(count)]
    return replace(questions, questions=tuple(itertools.chain.from_iterable(chosen)))


def measure(
    contestants: Sequence[Contestant],
    failures: Sequence[Failure],
    questions: QuestionSet,
    batch_sizes: Sequence[int],
    *,
    squad_v2: bool,
    latency: bool,
    allow_native: bool = False,
    reporter: Reporter,
) -> Runs:
    """Load each contestant in its own process, and run the questions on them in rounds.

    `squad_v2` lets them answer that a question has no answer. A contestant that fails is dropped, and the others
    continue; the result's failures are `failures` and these. Raises the error of the last contestant if all fail;
    KeyboardInterrupt if the user interrupts before `LEAST_ROUNDS` are complete.
    """
    main_batch_size = int(contestants[0].artifact.manifest.verify["batch_size"])
    count, subset = len(questions), min(len(questions), FURTHER_QUESTIONS)
    throughput = {main_batch_size: Series(questions=count, batch_size=main_batch_size)}
    throughput |= {size: Series(questions=subset, batch_size=size) for size in batch_sizes if size != main_batch_size}
    single = Series(questions=subset, batch_size=1, one_by_one=True)
    with start_workers(contestants, allow_native=allow_native) as workers:
        scheduler = _Scheduler(workers, list(failures), reporter)
        started = time.perf_counter()
        load_seconds = scheduler.load(questions, squad_v2=squad_v2)
        loaded = time.perf_counter()
        audit = {worker: _audit(worker.contestant, count) for worker in workers}
        judged = {worker: _judged(worker.contestant, count) for worker in workers}
        shared = [*throughput.values(), *([single] if latency else [])]
        own = {worker: [audit[worker], *shared, *judged[worker].values()] for worker in workers}
        interrupted = False
        try:
            for series in dict.fromkeys([*audit.values(), *shared, *itertools.chain(*own.values())]):
                scheduler.run(series, [worker for worker in workers if series in own[worker]])
        except KeyboardInterrupt:
            if scheduler.keep_complete(shared[0]) < LEAST_ROUNDS:
                raise
            interrupted = True
        turns = scheduler.turns
        finished = time.perf_counter()
    runs = [
        Run(
            contestant=worker.contestant,
            load_seconds=load_seconds[worker],
            audit=turns[audit[worker]][worker],
            judged=_turns(turns, judged[worker], worker) if turns.keys() >= {*judged[worker].values()} else {},
            throughput=_turns(turns, throughput, worker),
            latency=turns[single][worker] if latency and single in turns else [],
        )
        for worker in scheduler.workers
    ]
    duration = Time(loading=loaded - started, measuring=finished - loaded, answering=scheduler.answering)
    return Runs(runs=runs, failures=scheduler.failures, time=duration, interrupted=interrupted)


def _audit(contestant: Contestant, count: int) -> Series:
    """The first of `count` questions, in batches of the size whose answers the verification recorded."""
    batch_size = contestant.verification.measurement.batch_size
    return Series(questions=min(count, AUDIT_QUESTIONS), batch_size=batch_size)


def _judged(contestant: Contestant, count: int) -> dict[int, Series]:
    """All `count` questions at each batch size that a verification of this artifact judges, if it names any."""
    manifest = contestant.artifact.manifest
    sizes = judged_batch_sizes(manifest.options, manifest.runtime, manifest.verify["batch_size"])
    return {size: Series(questions=count, batch_size=size) for size in sizes.values() if size is not None}


_Turns = dict[Series, dict[Worker, list[Turn]]]


def _turns(turns: _Turns, by_size: Mapping[int, Series], worker: Worker) -> dict[int, Sequence[Turn]]:
    """The worker's turns by batch size, of those series that were run."""
    return {size: turns[series][worker] for size, series in by_size.items() if series in turns}


class _Scheduler:
    """Runs series on the workers, in rotating order; drops a worker that fails."""

    def __init__(self, workers: Sequence[Worker], failures: list[Failure], reporter: Reporter) -> None:
        self.workers = list(workers)
        self.failures = failures
        self.answering = 0.0
        self.turns: _Turns = {}
        """The turns of each worker in each series so far; they may include workers that failed since."""
        self._reporter = reporter

    def load(self, questions: QuestionSet, *, squad_v2: bool) -> dict[Worker, float]:
        """Load one after another, since parallel loading would distort the times; returns the seconds of each."""
        seconds = {}
        with self._reporter.progress("loading", len(self.workers)) as advance:
            for worker in list(self.workers):
                with self._drop_on_failure(worker):
                    seconds[worker] = worker.load(questions, squad_v2=squad_v2)
                advance(1)
        return seconds

    def run(self, series: Series, chosen: Sequence[Worker]) -> None:
        """Run a series on those of `chosen` that have not failed.

        The order rotates, so that no worker always goes first.
        """
        turns = self.turns[series] = {worker: [] for worker in self.workers if worker in chosen}
        for worker in turns:
            self._answer(worker, series, 0, min(WARM_UP, series.questions))
        label = "one by one" if series.one_by_one else f"batch {series.batch_size}" if series.batch_size else "audit"
        with self._reporter.progress(label, series.questions * len(turns)) as advance:
            for number, start in enumerate(range(0, series.questions, ask.CHUNK)):
                stop = min(start + ask.CHUNK, series.questions)
                running = [worker for worker in self.workers if worker in turns]
                first = number % max(len(running), 1)
                for worker in running[first:] + running[:first]:
                    turns[worker] += self._answer(worker, series, start, stop)
                    advance(stop - start)

    def keep_complete(self, main: Series) -> int:
        """Keep complete rounds of `main`, and of the other series those that are complete; returns those rounds."""
        complete: _Turns = {}
        rounds = 0
        for series, turns in self.turns.items():
            least = min((len(turns[worker]) for worker in self.workers if worker in turns), default=0)
            if series == main:
                rounds = least
                complete[series] = {worker: its[:rounds] for worker, its in turns.items()}
            elif least == -(-series.questions // ask.CHUNK):
                complete[series] = turns
        self.turns = complete
        return rounds

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
