"""Two builds, stopped at every file-system step: killed, or told that the disk is full.

    python tests/faults.py kill|full_disk [--every N]

builds two targets that share steps, over artifacts of an earlier version of both, in processes that end just before
their 1st, 2nd, 3rd... change to a file or folder. After each it looks at what is there, lets the builds run to their
end, and holds every sealed byte against those of builds that nothing stopped. Prints what was tried and what was lost.

Compiling runs inside the process here, so that its steps count too. The processes are forks of this one, which has
imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

# What these read is set before anything is imported; the test suite has its own.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import evaluate.evaluator
import torch
import transformers

from qabuild.artifact.manifest import open_artifact
from qabuild.builder import build as builder
from qabuild.builder import execute
from qabuild.builder.store.local import Store
from qabuild.errors import QABuildError
from qabuild.models.backends import backend
from qabuild.models.runtime import Runtime

IMPORTED = (datasets, evaluate.evaluator, torch, transformers)

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = {samples}
seed = {seed}
"""
NAMES = ("one", "other")

CHANGES = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "os.utime"}
"""Audit events (PEP 578) of what changes a file system, beside `open` for writing."""

Stop = Callable[[], None]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class Report:
    """What was tried, and what went wrong."""

    steps: int
    tried: int
    losses: list[str]


def stop_everywhere(stop: Stop, every: int = 1) -> Report:
    """Stop the builds at every `every`-th step by `stop`, and look at what is left."""
    with tempfile.TemporaryDirectory() as folder:
        before, goal = Path(folder, "before"), Path(folder, "goal")
        old = _in_child(lambda: _build(before, samples=3))
        assert old is None, old
        shutil.copytree(before, goal)
        count = Path(folder, "count")
        done = _in_child(lambda: count.write_text(str(_counted(goal, None, stop))))
        assert done is None, done
        wanted = {name: {_digest(before, name), _digest(goal, name)} for name in NAMES}
        steps = int(count.read_text())
        points = range(1, steps + 1, every)
        work = partial(_one, Path(folder), stop, wanted)
        with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
            losses = pool.map(work, points, chunksize=1)
        return Report(steps=steps, tried=len(points), losses=list(chain.from_iterable(losses)))


def _one(folder: Path, stop: Stop, wanted: dict[str, set[str]], point: int) -> list[str]:
    """Stop once, and say what is not as it should be."""
    work = folder / f"work-{point}"
    shutil.copytree(folder / "before", work)
    try:
        losses = _losses(work, folder / "goal", stop, wanted, point)
        return [f"stopped before step {point}: {loss}" for loss in losses]
    finally:
        shutil.rmtree(work)


def _losses(work: Path, goal: Path, stop: Stop, wanted: dict[str, set[str]], point: int) -> Iterator[str]:
    ended = _in_child(lambda: _counted(work, point, stop))
    # None: that step was not needed, as a folder that exists is not. The command line tells an OSError as it is.
    if ended not in ("killed", "QABuildError", None) and not str(ended).startswith("OSError: [Errno 28]"):
        yield f"it ended with {ended}"
    for name in NAMES:
        try:
            if _digest(work, name) not in wanted[name]:
                yield f"{name} is neither the old artifact nor the new"
        except QABuildError as error:
            yield f"{name} is not whole: {error}"
    names = {path.name for path in (work / "artifacts").iterdir() if not path.name.startswith(".")}
    if names != set(NAMES):
        yield f"there are {sorted(names)}"
    if (again := _in_child(lambda: _build(work, samples=4))) is not None:
        yield f"the next build ended with {again}"
        return
    for name in NAMES:
        if _sealed(work, name) != _sealed(goal, name):
            yield f"{name} differs from one that nothing stopped"
    if {path.name for path in (work / "artifacts").iterdir()} != set(NAMES):
        yield f"left behind: {sorted(path.name for path in (work / 'artifacts').iterdir())}"
    # A folder whose removal the disk refused stays, empty: the next change of that result or `cache prune` removes it.
    if any(path for folder in (work / "cache" / "v1" / "staging").iterdir() for path in folder.iterdir()):
        yield "left behind in the store's staging folder"


def _build(work: Path, samples: int) -> None:
    """Both targets, one after the other, from one store."""
    execute.compile_apart = _compile_here
    torch.set_num_threads(1)
    work.mkdir(exist_ok=True)
    for name, seed in zip(NAMES, (0, 1), strict=True):
        path = work / f"{name}.toml"
        path.write_text(TARGET.format(samples=samples, seed=seed), encoding="utf-8")
        built = builder.build(path, work / "artifacts", results=Store(work / "cache"))
        assert built.verification is not None
        assert built.verification.passed


def _compile_here(checkpoint: object, options: object, runtime: Runtime, directory: Path) -> object:
    module = backend(options.name)  # type: ignore[attr-defined]
    return module.compile(checkpoint, options, runtime, directory)  # type: ignore[arg-type]


def _counted(work: Path, point: int | None, stop: Stop) -> int:
    """Build, and stop before change number `point`; returns how many there were."""
    seen = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or not _within(arguments[0], work):
            return
        seen += 1
        if seen == point:
            stop()

    sys.addaudithook(watch)
    _build(work, samples=4)
    return seen


def _within(path: object, folder: Path) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(str(folder))


def _in_child(work: Callable[[], object]) -> str | None:
    """Run in a fork: None where it returned, else "killed" or the name of the exception."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        try:
            work()
            os._exit(0)
        except BaseException as error:
            base = QABuildError if isinstance(error, QABuildError) else type(error)
            os.write(writing, f"{base.__name__}{'' if base is QABuildError else f': {error}'}".encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else text or None


def _digest(work: Path, name: str) -> str:
    return open_artifact(work / "artifacts" / name).digest


def _sealed(work: Path, name: str) -> dict[str, bytes]:
    artifact = open_artifact(work / "artifacts" / name)
    return {each: (artifact.directory / each).read_bytes() for each in ("manifest.json", *artifact.manifest.files)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stop", choices=[kill.__name__, full_disk.__name__])
    parser.add_argument("--every", type=int, default=1, help="stop at every N-th step only")
    arguments = parser.parse_args()
    report = stop_everywhere(globals()[arguments.stop], arguments.every)
    print(f"{arguments.stop}: {report.steps} steps, stopped at {report.tried}, losses: {len(report.losses)}")
    for loss in report.losses:
        print(f"  {loss}")


if __name__ == "__main__":
    main()
