"""Results of steps, kept by the key of all that decided them.

    <store>/v1/results/<key>/entry.json     what the step was, what decided it, the files with size and SHA-256
    <store>/v1/results/<key>/files/         what it made
    <store>/v1/staging/                     what is being made; a killed build leaves its folder here
    <store>/v1/locks/                       one per key and per artifact
    <store>/v1/history/                     which keys a target was last built from, to tell what changed

A result is staged, hashed and renamed, so a key either has all of its files or does not exist. Files leave the store
as hard links, or copies where the file system has none, and are held against their sums by whoever takes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qabuild.artifact import SealedFile, measure_files
from qabuild.errors import QABuildError

LAYOUT = "v1"
ENTRY = "entry.json"
FILES = "files"

Inputs = Mapping[str, Any]
"""Everything that decides a step's result, as flat `name: JSON value` pairs."""


def key_of(inputs: Inputs) -> str:
    """The key of a step: SHA-256, in hex, of its inputs in canonical JSON."""
    text = json.dumps(dict(inputs), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A result that is whole."""

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


class Store:
    """The results under one folder: `root`, or QABUILD_CACHE, or the platform's cache folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self._base = self.root / LAYOUT

    def keys(self) -> frozenset[str]:
        """Keys of all results."""
        try:
            return frozenset(os.listdir(self._base / "results"))
        except OSError:
            return frozenset()

    def find(self, key: str) -> Entry | None:
        """The result with that key, its entry read and nothing hashed; None where there is none that can be read."""
        folder = self._base / "results" / key
        try:
            document = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
            files = {name: SealedFile(**file) for name, file in document.pop("files").items()}
            return Entry(directory=folder / FILES, files=files, **document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def make(self, step: str, inputs: Inputs, produce: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """The result of `inputs`: the kept one, or what `produce` writes into the empty folder it is given.

        Two processes that want the same result make it once: the second waits. Where `produce` raises, or the
        process is killed, nothing is kept.
        """
        key = key_of(inputs)
        with self.lock(key), _explained(self.root):
            if entry := self.find(key):
                return entry
            self.drop(key)  # an entry that cannot be read
            with self._staging() as stage:
                started = time.monotonic()
                (stage / FILES).mkdir()
                record = produce(stage / FILES)
                entry = Entry(
                    directory=self._base / "results" / key / FILES,
                    step=step,
                    key=key,
                    inputs=inputs,
                    files=measure_files(stage / FILES),
                    seconds=round(time.monotonic() - started, 3),
                    record=record,
                )
                document = {k: v for k, v in asdict(entry).items() if k != "directory"}
                (stage / ENTRY).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
                entry.directory.parent.parent.mkdir(parents=True, exist_ok=True)
                os.rename(stage, entry.directory.parent)
        return entry

    def drop(self, key: str) -> None:
        """Forget a result: renamed away first, so that no one sees half of it."""
        folder = self._base / "results" / key
        if folder.exists():
            with self._staging() as stage:
                os.rename(folder, stage / key)

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of that name. With `wait` false, QABuildError where another process holds it."""
        from filelock import FileLock, Timeout

        folder = self._base / "locks"
        with _explained(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}.lock", timeout=-1 if wait else 0)
            try:
                lock.acquire()
            except Timeout:
                raise QABuildError(
                    "another build of this artifact is running", "wait for it, or build to another --output"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def remember(self, name: str, keys: Mapping[str, str]) -> None:
        """Note from which results `name` was last built."""
        path = self._base / "history" / f"{name}.json"
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(dict(keys)), encoding="utf-8")
            os.replace(partial, path)

    def recall(self, name: str) -> dict[str, Entry]:
        """The results that `name` was last built from, by step; those that are gone are left out."""
        try:
            keys = json.loads((self._base / "history" / f"{name}.json").read_text(encoding="utf-8"))
            entries = {step: self.find(key) for step, key in keys.items()}
        except (OSError, ValueError, AttributeError):
            return {}
        return {step: entry for step, entry in entries.items() if entry}

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        folder = self._base / "staging"
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=folder))
        try:
            yield stage
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def default_root() -> Path:
    """QABUILD_CACHE, or qabuild's folder in the platform's cache folder."""
    if root := os.environ.get("QABUILD_CACHE"):
        return Path(root).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("qabuild")


def place(entry: Entry, directory: Path) -> None:
    """Put the files of a result into `directory`, as hard links where the file system allows."""
    for name in entry.files:
        goal = directory / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(entry.directory / name, goal)
        except OSError:
            shutil.copyfile(entry.directory / name, goal)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).is_relative_to(root):
            raise QABuildError(
                f"the store {root}: {error.strerror or error}",
                "make room or make it writable, or point QABUILD_CACHE at another folder",
            ) from error
        raise
