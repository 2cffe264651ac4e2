"""The time that a tuning may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """So many seconds from the moment it is made."""

    seconds: float
    _began: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds; negative once it has ended."""
        return self.seconds - self.spent

    def __str__(self) -> str:
        return shown(self.seconds)


def shown(seconds: float) -> str:
    """A duration for messages."""
    return f"{seconds:.0f} s" if seconds < 300 else f"{seconds / 60:.0f} min"
