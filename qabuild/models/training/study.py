"""The trials of a search, which several processes on several hosts may share.

The storage decides who does what: a trial belongs to the worker that began it, which shows from time to time that it is
alive. No clocks are compared: a worker counts as dead if its count stands still for `DEAD_SECONDS` while another one
watches. Its trial is given up then, and another trial takes its parameters. If it was alive after all, its result comes
too late and is dropped.
"""

from __future__ import annotations

import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState

from qabuild.errors import MissingEnvironment, QABuildError, UntrustedInput
from qabuild.models.training.options import Search
from qabuild.system import files

ALIVE_SECONDS = 30.0
"""Between two signs of life."""
DEAD_SECONDS = 300.0
"""Without a sign of life after which a worker counts as dead."""
POLL_SECONDS = 2.0
TRIES = 3
"""To open a database."""
LOCAL = "trials.log"
WORKER, ALIVE, GIVEN_UP = "worker", "alive", "given_up"
"""What is known of a trial: who runs it, a count that rises while it is run, and whether nobody runs it any more."""
JOURNAL = "journal://"
RECORD = b'{"op_code":'
"""How each line of a journal begins."""
BLOCK = 1 << 12  # bytes


class Study:
    """The trials of one search, as one worker sees them."""

    def __init__(self, study: optuna.Study, worker: str, options: Search) -> None:
        """`worker` is the same for a worker that was interrupted and started again."""
        self._study, self._worker, self._options = study, worker, options
        self._last_seen: dict[int, tuple[int, float]] = {}
        """Of each trial of another worker, its count and when it was first seen, by this process's clock."""

    def claim(self) -> FrozenTrial | None:
        """The next trial for this worker, which may be one that it was interrupted in; waits for trials of others.

        None once all trials of the search are finished.
        """
        while True:
            if trial := self._interrupted() or self._next():
                return trial
            if not self._running():
                return None
            time.sleep(POLL_SECONDS)
            self._watch()

    @contextmanager
    def alive(self, trial: FrozenTrial) -> Iterator[None]:
        """Shows that the trial is being run, and watches the others."""
        stopped = threading.Event()

        def show() -> None:
            count = trial.user_attrs.get(ALIVE, 0)
            while not stopped.wait(ALIVE_SECONDS):
                count += 1
                try:
                    self._note(trial.number, ALIVE, count)
                    self._watch()
                except Exception:  # a storage that is away for a while ends no training
                    pass

        thread = threading.Thread(target=show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def finish(self, trial: FrozenTrial, value: float | None) -> None:
        """Enter the value of a trial; None, or what is not finite, if it failed. One that was given up meanwhile keeps
        its state."""
        if value is None or not math.isfinite(value):
            self._tell(trial.number, None, TrialState.FAIL)
        else:
            self._tell(trial.number, value, TrialState.COMPLETE)

    def trials(self) -> Sequence[FrozenTrial]:
        """All trials in their order, but those that were given up."""
        return [
            trial for trial in self._study.trials if trial.state != TrialState.FAIL or GIVEN_UP not in trial.user_attrs
        ]

    # --- which trial is next ------------------------------------------------------------------------------------------

    def _interrupted(self) -> FrozenTrial | None:
        """The trial in which this worker was interrupted."""
        for trial in self._running():
            if trial.user_attrs.get(WORKER) == self._worker:
                if {"alpha", "temperature"} <= trial.params.keys():
                    return trial
                self._give_up(trial)
        return None

    def _next(self) -> FrozenTrial | None:
        """A new trial; None where there are enough."""
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if len(self.trials()) >= self._options.trials and not waiting:
            return None
        # A sampler for each trial: one seeded at the start would repeat its draws after an interruption. Workers that
        # share a study would draw alike if they had one seed.
        seed = None if self._options.storage else self._options.seed + len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = self._study.ask()
        trial.set_user_attr(WORKER, self._worker)
        if sum(other.number < trial.number for other in self.trials()) >= self._options.trials:
            self._give_up(self._study.trials[trial.number])  # others took the last ones at the same time
            return None
        trial.suggest_float("alpha", *self._options.alpha)
        trial.suggest_float("temperature", *self._options.temperature)
        return self._study.trials[trial.number]

    def _running(self) -> list[FrozenTrial]:
        running: list[FrozenTrial] = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return running

    # --- workers that died --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Give up trials whose workers show no sign of life."""
        now = time.monotonic()
        for trial in self._running():
            if trial.user_attrs.get(WORKER) == self._worker:
                continue
            count = trial.user_attrs.get(ALIVE, 0)
            seen, since = self._last_seen.get(trial.number, (None, now))
            if seen != count:
                self._last_seen[trial.number] = (count, now)
            elif now - since > DEAD_SECONDS:
                self._give_up(trial)

    def _give_up(self, trial: FrozenTrial) -> None:
        """Leave the trial; another one takes its parameters."""
        self._note(trial.number, GIVEN_UP, True)
        if self._tell(trial.number, None, TrialState.FAIL) and trial.params:
            self._study.enqueue_trial(trial.params)

    def _tell(self, number: int, value: float | None, state: TrialState) -> bool:
        """Whether this ended the trial; False where it had ended before."""
        try:
            self._study.tell(number, value, state=state)
        except (UpdateFinishedTrialError, ValueError):
            return False
        return True

    def _note(self, number: int, name: str, value: Any) -> None:
        with suppress(UpdateFinishedTrialError):
            optuna.Trial(self._study, self._study.trials[number]._trial_id).set_user_attr(name, value)


@contextmanager
def opened(work: Path, options: Search) -> Iterator[Study]:
    """The study of a search whose folder is `work`, in that folder or in the storage of the options.

    The folder's name, which is the search's key, is also that of the study in a shared storage. Raises QABuildError
    where the storage cannot be opened, UntrustedInput for a file that is damaged or holds no study, and
    MissingEnvironment where the driver of its database is missing.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with _damage_explained(options.storage, work / LOCAL):
            study = optuna.create_study(
                storage=_storage(options.storage) if options.storage else _journal(work / LOCAL),
                study_name=work.name if options.storage else "distill",
                direction="maximize",
                load_if_exists=True,
            )
        yield Study(study, _worker(work), options)
    finally:
        optuna.logging.set_verbosity(verbosity)


def require_usable(storage: str) -> None:
    """Raise what `opened` raises for a shared storage that cannot be used."""
    with _damage_explained(storage):
        optuna.get_all_study_names(_storage(storage))


@contextmanager
def _damage_explained(url: str | None, local: Path | None = None) -> Iterator[None]:
    """Turn what Optuna raises in the block for a file that it cannot read into UntrustedInput: a shared one at `url`,
    or without one, that of a single host, `local`."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AssertionError) as error:
        cause = f"({type(error).__name__}: {error})"
        if url is None:
            raise UntrustedInput(f"{local}: is damaged {cause}", "remove it: the search begins anew") from error
        if not url.startswith(JOURNAL):
            raise
        raise UntrustedInput(
            f"distill.search.storage: {url.removeprefix(JOURNAL)}: is damaged, or no study of Optuna {cause}",
            "name another file, or restore this one",
        ) from error


def _worker(work: Path) -> str:
    """What identifies this worker, also after an interruption."""
    path = work / WORKER
    if not path.exists():
        files.write(path, uuid.uuid4().hex.encode())
    return path.read_text()


def _journal(path: Path) -> BaseStorage:
    lock = _Lock(path)
    backend = JournalFileBackend(str(path), lock_obj=lock)
    lock.acquire()  # a file that cannot be appended to is refused now
    lock.release()
    return JournalStorage(backend)


class _Lock:
    """The lock of who appends to a journal. It removes the half line that a killed process or a full disk left, since
    Optuna would append to that, and refuse the journal from then on."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, JournalFileSymlinkLock(str(path))

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _remove_half_line(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _remove_half_line(journal: Path) -> None:
    """Raises ValueError where the half line is none of a journal, which is left as it is."""
    with open(journal, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        begin, tail = end, b""
        while begin and b"\n" not in tail:
            begin = max(0, begin - BLOCK)
            file.seek(begin)
            tail = file.read(end - begin)
        line = tail.rpartition(b"\n")[2]
        if line and line[: len(RECORD)] != RECORD[: len(line)]:
            raise ValueError(f"its last line is {line[:40]!r}")
        file.truncate(end - len(line))


def _storage(url: str) -> BaseStorage:
    """The storage at `url`, `journal://` and the path of a file, or the address of a database."""
    if url.startswith(JOURNAL):
        path = Path(url.removeprefix(JOURNAL))
        try:
            return _journal(path)
        except OSError as error:
            raise QABuildError(
                f"distill.search.storage: {path}: {error.strerror}", "name a file in a folder that all hosts share"
            ) from None
    return _database(url)


def _database(url: str) -> BaseStorage:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    shown = url
    for tries_left in reversed(range(TRIES)):
        try:
            shown = make_url(url).render_as_string(hide_password=True)
            return RDBStorage(url)
        except ImportError as error:
            raise MissingEnvironment(
                f"distill.search.storage: {shown}: {error}", "install the driver of the database, as psycopg2-binary"
            ) from None
        except SQLAlchemyError as error:
            if tries_left:  # two workers that begin on an empty database both make its tables
                time.sleep(POLL_SECONDS)
                continue
            problem = str(error).splitlines()[0].replace(url, shown)
            raise QABuildError(
                f"distill.search.storage: {shown}: {problem}", "check the address, and that the database is up"
            ) from None
    raise AssertionError  # for mypy
