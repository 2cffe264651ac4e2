"""Runs a training step in a subprocess and reports its progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from qabuild.models.training import distributed
from qabuild.models.training.request import Request
from qabuild.system.process import run_in_child
from qabuild.system.reporter import Reporter

PAUSE = 30.0
"""Minimum seconds between two progress lines."""


def run_in_subprocess(request: Request, reporter: Reporter) -> Mapping[str, Any]:
    """Run the step in a subprocess and return its record. Raises what the step raises."""
    request.work.mkdir(parents=True, exist_ok=True)
    progress, document = _Progress(request.step, reporter), request.to_dict()
    # Trainings are distributed; rank 0 runs the other steps alone.
    environment = distributed.current().announce(document) if request.step in ("train", "recover") else {}
    try:
        return run_in_child(
            "qabuild.models.training", document, request.directory, "the training", progress.hear, environment
        )
    finally:
        progress.end()


class _Progress:
    """Turns the subprocess's messages into a progress bar and log lines."""

    def __init__(self, step: str, reporter: Reporter) -> None:
        self._step, self._reporter = step, reporter
        self._bar: Any = None
        self._done = 0
        self._last_line = time.monotonic()

    def hear(self, message: Mapping[str, Any]) -> None:
        if "steps" in message:
            self._advance(message["step"], message["steps"])
        if "resumed" in message:
            self._reporter.say(f"{self._step}: resumes after step {message['resumed']}")
        if "f1" in message:
            scores = f"EM {message['exact_match']:.2f}, F1 {message['f1']:.2f}"
            self._reporter.say(f"{self._step}: epoch {message['epoch']}, held-out questions: {scores}")
        if "loss" in message and time.monotonic() - self._last_line > PAUSE:
            self._last_line = time.monotonic()
            self._reporter.say(
                f"{self._step}: step {self._done}, loss {message['loss']:.3f}, "
                f"{message['steps_per_second']:.2f} steps/s, {_minutes(message['seconds_left'])} left"
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
