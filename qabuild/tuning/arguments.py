"""The arguments of a tuning, as Python and the command line give them, checked."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS
from qabuild.system import arguments
from qabuild.system.hub import is_path
from qabuild.tuning.objective import OBJECTIVES

BUDGET = "30m"
ALLOWED = (PRUNE,) = ("prune",)
"""What changes the checkpoint, and must be allowed."""
FINAL = 1024
"""Questions of the final comparison."""
LEAST_FINAL = 256
"""Eight rounds of questions: fewer say little about the variance."""
DEVICES = ("cpu", "cuda")
UNITS = {"h": 3600, "m": 60, "s": 1}
_TIME = re.compile(r"\s*".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit})?" for unit in UNITS))


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Those that choose among few values, or are numbers."""

    objective: Any
    device: Any
    budget: float
    """Seconds."""
    samples: int
    max_f1_drop: float | None
    backends: tuple[str, ...]
    allow: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        *,
        objective: object,
        device: object,
        budget: object,
        samples: object,
        max_f1_drop: object,
        backends: object,
        allow: object,
    ) -> Arguments:
        """Raises BadTarget that names the first that is wrong."""
        return cls(
            objective=arguments.word("objective", objective, OBJECTIVES),
            device=None if device is None else arguments.word("device", device, DEVICES),
            budget=seconds(budget),
            samples=arguments.whole(
                "samples", samples, LEAST_FINAL, f"give a whole number from {LEAST_FINAL}, as in {FINAL}"
            ),
            max_f1_drop=None if max_f1_drop is None else _points(max_f1_drop),
            backends=arguments.words("backends", backends, BACKENDS),
            allow=arguments.words("allow", allow, ALLOWED),
        )


def seconds(budget: object) -> float:
    """A budget: seconds, or text like 90s, 30m or 1h30m. Raises BadTarget."""
    example = "write 5m, 90s or 1h30m" if isinstance(budget, str) else 'give seconds, as in 300, or text, as in "5m"'
    if isinstance(budget, str):
        match = _TIME.fullmatch(budget.strip().lower())
        if match is None or not any(match.groups()):
            raise BadTarget(f"budget: {budget!r} is not a number with a unit of time ({', '.join(UNITS)})", example)
        given = sum(float(part) * factor for part, factor in zip(match.groups(), UNITS.values(), strict=True) if part)
    else:
        given = arguments.number("budget", budget, example)
    if not 0 < given < math.inf:
        raise BadTarget(f"budget: {budget!r} is no time that can pass", example)
    return given


def named(name: str, source: object) -> str:
    """The text that names a checkpoint or questions; a path object becomes text that is known as a path.

    Raises BadTarget for anything else.
    """
    path = arguments.path(name, source)
    if isinstance(source, os.PathLike):
        return path if is_path(path) else f"./{path}"
    if not path.strip():
        raise BadTarget(f"{name}: is empty", "name a file or folder, a Hub id, or 'sample'")
    return path


def _points(max_f1_drop: object) -> float:
    example = "give points of F1 from 0 to 100, as in 0.5"
    points = arguments.number("max_f1_drop", max_f1_drop, example)
    if not 0 <= points <= 100:
        raise BadTarget(f"max_f1_drop: {max_f1_drop!r} is not from 0 to 100", example)
    return points
