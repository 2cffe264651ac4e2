"""Have a step of a training carried out in a process of its own, and tell how it goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qabuild.models.training import distributed
from qabuild.models.training.request import Request
from qabuild.system.process import run_in_child
from qabuild.system.reporter import Reporter

PAUSE = 30.0
"""Seconds between two lines that say how far a training is."""


def carry_out(request: Request, reporter: Reporter) -> Mapping[str, Any]:
    """The step's record. Raises what the step raises."""
    request.work.mkdir(parents=True, exist_ok=True)
    telling, document = _Telling(request.step, reporter), request.to_dict()
    # All but the training itself one process does alone.
    environment = distributed.current().announce(document) if request.step == "train" else {}
    try:
        return run_in_child(
            "qabuild.models.training", document, request.directory, "the training", telling.hear, environment
        )
    finally:
        telling.end()


class _Telling:
    """Turns messages of the process into a bar that moves, and now and then a line."""

    def __init__(self, step: str, reporter: Reporter) -> None:
        self._step, self._reporter = step, reporter
        self._bar: Any = None
        self._done = 0
        self._said = time.monotonic()

    def hear(self, told: Mapping[str, Any]) -> None:
        if "steps" in told:
            self._advance(told["step"], told["steps"])
        if "resumed" in told:
            self._reporter.say(f"{self._step}: goes on after step {told['resumed']}")
        if "f1" in told:
            scores = f"EM {told['exact_match']:.2f}, F1 {told['f1']:.2f}"
            self._reporter.say(f"{self._step}: epoch {told['epoch']}, held-out questions: {scores}")
        if "loss" in told and time.monotonic() - self._said > PAUSE:
            self._said = time.monotonic()
            self._reporter.say(
                f"{self._step}: step {self._done}, loss {told['loss']:.3f}, {told['steps_per_second']:.2f} steps/s, "
                f"{_minutes(told['seconds_left'])} left"
            )

    def _advance(self, step: int, steps: int) -> None:
        if self._bar is None:
            self._bar = self._reporter.progress(self._step, steps)
            self._move = self._bar.__enter__()
        self._move(step - self._done)
        self._done = step

    def end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def _minutes(seconds: float | None) -> str:
    return "?" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
