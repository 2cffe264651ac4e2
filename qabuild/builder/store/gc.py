"""Housekeeping of the store: what is in it, what may go, whether it is intact."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qabuild.builder.store.local import DROPPED, ENTRY, REMOTE, Store
from qabuild.errors import QABuildError
from qabuild.system.cache import compiled_for_this_machine

DAMAGED = "damaged"
"""The step of a result whose entry cannot be read."""


@dataclass(frozen=True, kw_only=True)
class CachedResult:
    """One result of a step, or what is left of one."""

    key: str
    step: str
    """compile, reference, verify, a step of a training; or `DAMAGED`."""
    what: str
    """What it was made from, in a few words."""
    size: int
    """Bytes of its files. An artifact that has them as hard links keeps them on the disk when the result goes."""
    age: float
    """Seconds since it was last made or taken; 0 where the clock was set back since."""


def contents(store: Store) -> list[CachedResult]:
    """Every result in the store, the longest unused first."""
    found = (_cached_result(store, key) for key in store.keys())  # noqa: SIM118 - a Store is no mapping
    return sorted(filter(None, found), key=lambda result: -result.age)


def prune(
    store: Store, *, older_than: float | None = None, max_size: int | None = None, dry_run: bool = False
) -> list[CachedResult]:
    """Drop results not used for `older_than` seconds, then the longest unused until `max_size` bytes are left.

    Damaged results and the partial results of killed builds go in any case. Returns what went, or with
    `dry_run` what would.
    """
    everything = contents(store)
    left = sum(result.size for result in everything)
    going: list[CachedResult] = []
    for result in everything:
        too_old = older_than is not None and result.age > older_than
        too_much = max_size is not None and left > max_size
        if too_old or too_much or result.step == DAMAGED:
            going.append(result)
            left -= result.size
    if not dry_run:
        for result in going:
            store.drop(result.key)
        _clear_unfinished(store)
        shutil.rmtree(compiled_for_this_machine("", store.root), ignore_errors=True)
    return going


def verify(store: Store) -> tuple[list[CachedResult], list[CachedResult]]:
    """Hash every file of every result. Returns those that are intact, and those that were not and were dropped."""
    intact: list[CachedResult] = []
    damaged: list[CachedResult] = []
    for result in contents(store):
        (intact if store.find_intact(result.key) else damaged).append(result)
    return intact, damaged


def _cached_result(store: Store, key: str) -> CachedResult | None:
    """None where the result went in the meantime."""
    folder = store.folder(key)
    try:
        size = sum(path.stat().st_size for path in _files(folder))
        used = max(path.stat().st_mtime for path in (folder, folder / ENTRY) if path.exists())
    except (OSError, ValueError):
        return None
    entry = store.find(key)
    return CachedResult(
        key=key,
        step=entry.step if entry else DAMAGED,
        what=_what(entry.inputs) if entry else "",
        size=size,
        age=max(0.0, time.time() - used),
    )


def _what(inputs: object) -> str:
    """The data set, the backend and its runtime, the questions asked, or how it was pruned or trained."""
    if not isinstance(inputs, dict):
        return ""
    made = ("questions", "backend.name", "runtime.device", "runtime.dtype", "verify.split", "verify.samples")
    names = (*made, "train.split", "train.samples", "train.device", "train.dtype")
    sizes = ("prune.ffn", "prune.heads", "prune.flops", "prune.speedup")
    pruned = [f"{name.removeprefix('prune.')} {inputs[name]}" for name in sizes if inputs.get(name) is not None]
    return " ".join([*(str(inputs[name]) for name in names if inputs.get(name) is not None), *pruned])


def _files(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder):
        yield from (Path(at, name) for name in names)


def _clear_unfinished(store: Store) -> None:
    """Remove what killed builds left: folders that no running build holds the lock of."""
    for folder in store.unfinished():
        try:
            with store.lock(folder.name.removesuffix(DROPPED).removesuffix(REMOTE), wait=False):
                shutil.rmtree(folder, ignore_errors=True)
        except QABuildError:
            continue  # a build is at work on it
