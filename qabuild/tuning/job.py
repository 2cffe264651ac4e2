"""What every part of a tuning is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qabuild.system.reporter import Reporter
from qabuild.tuning.objective import Objective
from qabuild.tuning.start import Start


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is tuned, for what, and where the files go."""

    start: Start
    folder: Path
    objective: Objective
    offline: bool
    reporter: Reporter
