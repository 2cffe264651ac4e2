"""The request to the training subprocess, sent as JSON on its stdin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.training.options import Distill, Fit, Recover, StepName, Train


@dataclass(frozen=True, kw_only=True)
class Request:
    """One step of a training, with all its inputs."""

    step: StepName
    start: Checkpoint
    teacher: Checkpoint | None
    train: Fit
    """Of the step `recover`, a `Recover`; of others, a `Train`."""
    distill: Distill | None
    device: Literal["cpu", "cuda"]
    dtype: Literal["fp32", "bf16", "fp16"]
    """The dtype of autocast."""
    logits: Path | None
    """The folder with the teacher's logits."""
    work: Path
    """The folder for saved states, which survives an interruption."""
    directory: Path
    """The empty folder for the result."""
    offline: bool

    def to_dict(self) -> dict[str, Any]:
        tables = {name: table and table.model_dump(mode="json") for name, table in self._tables().items()}
        checkpoints = {"start": self.start.to_dict(), "teacher": self.teacher and self.teacher.to_dict()}
        paths = {name: value and str(value) for name, value in self._paths().items()}
        return {**self.__dict__, **tables, **checkpoints, **paths}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        return cls(
            **{
                **document,
                "start": Checkpoint.from_dict(document["start"]),
                "teacher": document["teacher"] and Checkpoint.from_dict(document["teacher"]),
                "train": (Recover if document["step"] == "recover" else Train).model_validate(document["train"]),
                "distill": document["distill"] and Distill.model_validate(document["distill"]),
                **{name: document[name] and Path(document[name]) for name in ("logits", "work", "directory")},
            }
        )

    def _tables(self) -> dict[str, Fit | Distill | None]:
        return {"train": self.train, "distill": self.distill}

    def _paths(self) -> dict[str, Path | None]:
        return {"logits": self.logits, "work": self.work, "directory": self.directory}
