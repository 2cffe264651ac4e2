"""What is best."""

from __future__ import annotations

from typing import Literal, get_args

Objective = Literal["throughput", "latency", "size"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
