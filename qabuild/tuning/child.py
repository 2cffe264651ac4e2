"""Build one candidate in a process of its own.

So a runtime that crashes, takes too long or too much memory ends its own build only, and what it keeps in memory
disturbs no other.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qabuild.artifact import staging
from qabuild.system.process import Child, Tell, serve
from qabuild.system.reporter import Advance, Reporter


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a build left behind."""

    directory: Path
    """OUTPUT/NAME, or OUTPUT/NAME.failed."""
    peak_memory: int
    """Of its process, in bytes."""


def build(
    target: Path, overrides: Sequence[str], output: Path, *, offline: bool, seconds: float | None, reporter: Reporter
) -> Made:
    """Build the target into `output` and verify it.

    Raises what the build raises, QABuildError where its process dies, TimeoutError after so many `seconds`.
    """
    request = {
        "target": str(target.absolute()),
        "overrides": list(overrides),
        "output": str(output.absolute()),
        "offline": offline,
    }
    remedy = "tune it on a machine with more"
    with (
        _cleaned_up(output / target.stem),
        Child(__name__, f"the build of {target.stem}", remedy=remedy) as child,
        _heard(reporter) as hear,
    ):
        record = child.ask(request, hear, seconds=seconds)
    return Made(directory=Path(record["directory"]), peak_memory=record["peak_memory"])


@contextmanager
def _cleaned_up(goal: Path) -> Iterator[None]:
    """Removes what the build of the artifact left where it did not come to its end: no next build may follow."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            staging.clean_up(goal)
        raise


@contextmanager
def _heard(reporter: Reporter) -> Iterator[Tell]:
    """Passes the progress of a child on to `reporter`."""
    with ExitStack() as stack:
        advance: Advance = lambda count: None  # noqa: E731

        def hear(told: Mapping[str, Any]) -> None:
            nonlocal advance
            if "label" in told:
                stack.close()
                advance = stack.enter_context(reporter.progress(told["label"], told["total"]))
            else:
                advance(told["count"])

        yield hear


class _Told:
    """The reporter of the child: it tells its parent of progress; what it says is for who builds a single target."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        self._tell({"label": label, "total": total})
        yield lambda count: self._tell({"count": count})


def _work(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    from qabuild.builder.build import build as build_target
    from qabuild.evaluation.compare.worker import peak_memory
    from qabuild.target.lock import load

    target = load(request["target"], request["overrides"])
    built = build_target(target, request["output"], offline=request["offline"], reporter=_Told(tell))
    return {"directory": str(built.directory), "peak_memory": peak_memory()}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process group; the parent kills this process
    serve(_work)
