"""Training curves: a log of JSON lines, and the progress messages of a training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from qabuild.qa import squad_metric
from qabuild.qa.ask import answerer
from qabuild.system import files
from qabuild.system.process import Tell

if TYPE_CHECKING:
    from qabuild.qa.data import Question

FILE = "curves.jsonl"


class Curves(TrainerCallback):  # type: ignore[misc]
    """Logs loss and speed at every logging step, EM and F1 on the held-out questions after every epoch, to `path`.

    When an interrupted training resumes, lines of the steps that it repeats are dropped, and the EM and F1 of an epoch
    that it was interrupted after are added.
    """

    def __init__(self, path: Path, held_out: Sequence[Question], tokenizer: Any, tell: Tell) -> None:
        self._path, self._held_out, self._tokenizer, self._tell = path, held_out, tokenizer, tell
        self._since: tuple[float, int] = (0.0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self._since = time.perf_counter(), state.global_step
        if state.is_world_process_zero:
            lines = self._drop_after(state.global_step)
            self._tell({"step": state.global_step, "steps": state.max_steps})
            # The state of an epoch's last step is saved before its scores are known.
            ends = state.global_step > 0 and (state.epoch == round(state.epoch) or state.global_step == state.max_steps)
            if ends and not any("f1" in line for line in lines if line["step"] == state.global_step):
                self.on_epoch_end(args, state, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self._tell({"step": state.global_step, "steps": state.max_steps})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        if state.is_world_process_zero and "loss" in logs:
            now, (then, step) = time.perf_counter(), self._since
            speed = (state.global_step - step) / (now - then)
            self._since = now, state.global_step
            point = {"loss": logs["loss"], "learning_rate": logs["learning_rate"], "steps_per_second": round(speed, 3)}
            self._write(state, point)
            left = (state.max_steps - state.global_step) / speed if speed else None
            self._tell({"loss": logs["loss"], "steps_per_second": speed, "seconds_left": left})

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if state.is_world_process_zero and self._held_out:
            scores = score(getattr(model, "module", model), self._tokenizer, self._held_out)
            point = {"exact_match": round(scores.exact_match, 4), "f1": round(scores.f1, 4)}
            self._write(state, point)
            self._tell({"epoch": round(state.epoch), **point})
            self._since = time.perf_counter(), state.global_step

    def _write(self, state: Any, point: Mapping[str, Any]) -> None:
        line = {"step": state.global_step, "epoch": round(state.epoch, 4), **point}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_after(self, step: int) -> list[dict[str, Any]]:
        """Drop what was logged after that step; returns what is left."""
        lines = [line for line in read(self._path) if line["step"] <= step]
        files.write(self._path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return lines


def read(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log, without a last one that was truncated by a kill."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def score(model: Any, tokenizer: Any, questions: Sequence[Question]) -> squad_metric.Scores:
    """EM and F1 of the model in eval mode; its training mode is restored."""
    training = model.training
    model.eval()
    try:
        unanswerable = any(not question.answers for question in questions)
        result = answerer(model, tokenizer, handle_impossible_answer=unanswerable)(questions)
    finally:
        model.train(training)
    return squad_metric.score(dict(result.answers), {question.id: list(question.answers) for question in questions})
