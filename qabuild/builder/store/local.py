"""The cache of step results, on this machine: each under the key of everything that decided it.

    <store>/v1/
        results/<key>/entry.json    the step, its inputs, and its files with size and SHA-256
        results/<key>/files/        the files
        results/<key>/unsigned      a mark, see `UNSIGNED`
        staging/<key>/              a result in the making; the next build removes what a killed one left
        work/<key>/                 from where a long step resumes after an interruption; removed when it is done
        locks/                      one per key and per artifact
        history/                    the keys that a target was last built from, to say what changed

A result is staged, hashed and renamed, so a key either has all of its files or does not exist. Files leave the store
as hard links, or copies where the file system has none; `find_intact` checks them against their digests first.

With a remote cache, `make` and `fetch` look there for what is not here; see `remote`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact.manifest import SealedFile, measure_files
from qabuild.builder.keys import Inputs, json_digest, step_key
from qabuild.errors import QABuildError, UntrustedInput
from qabuild.system import documents, files, user_folders
from qabuild.system.cache import LAYOUT
from qabuild.system.files import errors_explained

if TYPE_CHECKING:
    from qabuild.builder.store.remote import Remote

ENTRY = "entry.json"
FILES = "files"
SUM = "sha256"
UNSIGNED = "unsigned"
"""Marks a result of a remote cache without signatures, and what was made of it. Where signatures are demanded, the
store has no such result, so that nobody signs what others have made."""
DROPPED, REMOTE = ".dropped", ".remote"
"""Endings of staging folders, beside that of the result itself: what goes, and what is sent or received."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A cached result."""

    __pydantic_config__ = documents.CLOSED

    directory: Path
    """Folder with the files."""
    step: str
    key: str
    inputs: Inputs
    files: Mapping[str, SealedFile]
    seconds: float
    """How long the step took."""
    record: Mapping[str, Any]
    """What the step reported beside its files."""


Produce = Callable[[Path], Mapping[str, Any]]
"""Writes a result into an empty folder, and returns its record."""
Accepts = Callable[[Entry], bool]
"""Whether a result will do."""


def _any(entry: Entry) -> bool:
    return True


class Store:
    """The results under one folder: `root`, or QABUILD_CACHE, or the platform's cache folder."""

    def __init__(self, root: Path | None = None, remote: Remote | None = None, *, signed: bool = False) -> None:
        """With `signed`, results that came unsigned do not count; so it is where `remote` is signed."""
        self.root = root or user_folders.cache()
        self.remote = remote
        self._signed = signed or (remote is not None and remote.is_signed)
        self._base = self.root / LAYOUT

    def keys(self) -> frozenset[str]:
        """Keys of all results. Raises QABuildError where the store cannot be read."""
        with self._explained(), suppress(FileNotFoundError):
            return frozenset(key for key in os.listdir(self._base / "results") if not self.refuses(key))
        return frozenset()

    def refuses(self, key: str) -> bool:
        """Whether there is a result with that key that does not count, since it came unsigned."""
        return self._signed and self._is_unsigned(key)

    def _is_unsigned(self, key: str) -> bool:
        return (self.folder(key) / UNSIGNED).exists()

    def folder(self, key: str) -> Path:
        """Where the result with that key is, or would be."""
        return self._base / "results" / key

    def work(self, key: str) -> Path:
        """A folder for the step with that key, to go on from after an interruption. It goes when the result is here."""
        return self._base / "work" / key

    def unfinished(self) -> list[Path]:
        """Folders of results that are being made, or that killed builds left behind."""
        return [path for name in ("staging", "work") for path in sorted((self._base / name).glob("*"))]

    def find(self, key: str) -> Entry | None:
        """The result with that key, its entry read and no file hashed; None where there is none that can be read."""
        folder = self.folder(key)
        if self.refuses(key):
            return None
        try:
            return entry_of(documents.read_json(files.read(folder / ENTRY)), folder / FILES)
        except (OSError, ValueError):
            return None

    def find_intact(self, key: str) -> Entry | None:
        """The result with that key, every file hashed; it counts as used. A damaged one is dropped: None."""
        entry = self.find(key)
        if entry and is_intact(entry):
            with suppress(OSError):  # of another user, or on a disk that is read-only: its age is of little matter
                os.utime(self.folder(key) / ENTRY)
            return entry
        if not self.refuses(key):
            self.drop(key)
        return None

    def make(
        self,
        step: str,
        inputs: Inputs,
        produce: Produce,
        accepts: Accepts = _any,
        *,
        follows: Iterable[str] = (),
        together: bool = False,
    ) -> Entry:
        """The result of `inputs`: the cached one, or what `produce` writes into the empty folder it is given.

        Two processes that want the same result make it once: the second waits; so it is on several hosts that share a
        remote cache, unless they make it `together`. Where `produce` raises, or the process is killed, nothing is
        stored. A result of the remote cache that `accepts` refuses does not count. `produce` reads the results with the
        keys `follows`.
        """
        key = step_key(inputs)
        with self.lock(key), self._explained():
            if entry := self.find(key):
                return entry
            if self.remote is None or not self.remote.shares(step):
                return self._produce(step, inputs, produce, follows)
            with self.remote.lease(step, key) as lease:
                lease.held |= together
                while (entry := self._fetch(self.remote, step, key, accepts)) is None and not lease.held:
                    lease.acquire()
                if entry is None:
                    entry = self._produce(step, inputs, produce, follows)
                    with self._staging(f"{key}{REMOTE}") as scratch:
                        self.remote.put(key, self.folder(key), scratch)
            return entry

    def fetch(self, step: str, key: str, accepts: Accepts = _any, *, replace: bool = False) -> Entry | None:
        """The result with that key where the remote cache has one that `accepts` takes, now in the store.

        What is in the store already is returned, or with `replace` replaced by that. None where neither has it.
        """
        if self.remote is None or not self.remote.shares(step):
            return None
        with self.lock(key), self._explained():
            return (None if replace else self.find(key)) or self._fetch(self.remote, step, key, accepts)

    def share(self, step: str, key: str) -> None:
        """Put the result with that key into the remote cache, if it is here and may be there."""
        if self.remote is not None and self.remote.shares(step) and self.find_intact(key):
            with self.lock(key), self._explained(), self._staging(f"{key}{REMOTE}") as scratch:
                if self.find(key):
                    self.remote.put(key, self.folder(key), scratch)

    def receive(self, key: str, unpack: Callable[[Path], None]) -> None:
        """Take what was made elsewhere, unsigned, in place of the own result: `unpack` writes it into a folder."""
        with self.lock(key), self._explained(), self._staging(key) as stage:
            unpack(stage)
            (stage / UNSIGNED).touch()
            self._promote(stage, key)

    def _fetch(self, remote: Remote, step: str, key: str, accepts: Accepts) -> Entry | None:
        with self._staging(f"{key}{REMOTE}") as scratch, self._staging(key) as stage:
            if remote.fetch(step, key, stage, scratch):
                if not remote.is_signed:
                    (stage / UNSIGNED).touch()
                if accepts(entry_of(documents.read_json(files.read(stage / ENTRY)), stage / FILES)):
                    self._promote(stage, key)
        return self.find(key)

    def _produce(self, step: str, inputs: Inputs, produce: Produce, follows: Iterable[str]) -> Entry:
        key = step_key(inputs)
        is_unsigned = any(map(self._is_unsigned, follows))
        self._begin_work(key, is_unsigned)
        with self._staging(key) as stage:
            started = time.monotonic()
            (stage / FILES).mkdir()
            record = produce(stage / FILES)
            entry = Entry(
                directory=self.folder(key) / FILES,
                step=step,
                key=key,
                inputs=inputs,
                files=measure_files(stage / FILES),
                seconds=round(time.monotonic() - started, 3),
                record=record,
            )
            (stage / ENTRY).write_text(document_of(entry), encoding="utf-8")
            if is_unsigned:
                (stage / UNSIGNED).touch()
            self._promote(stage, key)
        return entry

    def _begin_work(self, key: str, is_unsigned: bool) -> None:
        """Mark what a step will go on from, if it follows unsigned results; drop what is marked, if it does not."""
        work = self.work(key)
        if is_unsigned:
            work.mkdir(parents=True, exist_ok=True)
            (work / UNSIGNED).touch()
        elif (work / UNSIGNED).exists():
            shutil.rmtree(work)

    def _promote(self, stage: Path, key: str) -> None:
        """Give the result in the staging folder its name, in place of what is there."""
        self._drop(key)
        self.folder(key).parent.mkdir(parents=True, exist_ok=True)
        os.rename(stage, self.folder(key))
        shutil.rmtree(self.work(key), ignore_errors=True)

    def drop(self, key: str) -> None:
        """Forget a result."""
        with self.lock(key), self._explained():
            self._drop(key)

    def _drop(self, key: str) -> None:
        folder = self.folder(key)
        if folder.exists():
            with self._staging(f"{key}{DROPPED}") as stage:
                os.rename(folder, stage / key)  # away first, so that no one sees half of it

    @contextmanager
    def lock(self, name: str, *, wait: bool = True, what: str = "another build of this artifact") -> Iterator[None]:
        """Hold the lock of that name. With `wait` false, QABuildError where another process holds it.

        `what` is what the message says is running.
        """
        from filelock import FileLock, Timeout

        folder = self._base / "locks"
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}.lock", timeout=-1 if wait else 0)
            try:
                lock.acquire()
            except Timeout:
                raise QABuildError(f"{what} is running", "wait for it, or name another --output") from None
        try:
            yield
        finally:
            lock.release()

    def remember(self, name: str, keys: Mapping[str, str]) -> None:
        """Note from which results `name` was last built. The lock of `name` is held."""
        path = self._base / "history" / f"{name}.json"
        with self._explained(), self._staging(name) as stage:
            (stage / path.name).write_text(json.dumps(dict(keys)), encoding="utf-8")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / path.name, path)

    def recall(self, name: str) -> dict[str, Entry | None]:
        """The results that `name` was last built from, by step; None for one that is gone."""
        try:
            keys = documents.read_json(files.read(self._base / "history" / f"{name}.json"))
            return {step: self.find(key) for step, key in documents.typed(dict[str, str], keys).items()}
        except (OSError, ValueError):
            return {}

    @contextmanager
    def _staging(self, name: str) -> Iterator[Path]:
        """An empty folder, gone afterwards. The lock of `name` is held, so what is there was left by a killed build."""
        stage = self._base / "staging" / name
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _explained(self) -> AbstractContextManager[None]:
        return errors_explained(
            self.root, "the store", "make room or make it writable, or point QABUILD_CACHE at another folder"
        )


def document_of(entry: Entry) -> str:
    """What entry.json holds: all of the entry but its folder, and a sum over that, so that damage is noticed."""
    fields = {name: value for name, value in asdict(entry).items() if name != "directory"}
    document = json.loads(json.dumps(fields))  # as it will be read: the sum must not know a tuple from a list
    return json.dumps({**document, SUM: json_digest(document)}, indent=1, ensure_ascii=False)


def entry_of(document: Any, directory: Path) -> Entry:
    """The entry that the content of an entry.json states, of the files in `directory`. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError("an entry is a JSON object")
    fields = {name: value for name, value in document.items() if name != SUM}
    if document.get(SUM) != json_digest(fields):
        raise ValueError("the entry's sum is wrong")
    return documents.typed(Entry, {**fields, "directory": str(directory)})


def is_intact(entry: Entry) -> bool:
    """Whether the files of a result are the very ones that were stored: each is hashed."""
    try:
        return measure_files(entry.directory) == entry.files
    except (OSError, UntrustedInput):  # unreadable, or no longer plain files
        return False


def link_or_copy(entry: Entry, directory: Path) -> None:
    """Put the files of a result into `directory`, as hard links where the file system allows."""
    for name in entry.files:
        goal = directory / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(entry.directory / name, goal)
        except OSError:
            shutil.copyfile(entry.directory / name, goal)
