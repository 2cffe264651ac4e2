"""Contestants that take turns on the same questions, and the ratios of their speeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from qabuild.qa.ask import Ask
from qabuild.qa.data import Question

WARM_UP = 16
"""Questions that each contestant answers before the first round."""


def seconds_by_round(asks: Mapping[str, Ask], questions: Sequence[Question], rounds: int) -> dict[str, list[float]]:
    """The seconds of every contestant in every round; the order rotates."""
    for ask in asks.values():
        ask(questions[:WARM_UP])
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    names = list(asks)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(asks[name](questions).seconds)
    return seconds


def speedup(base: Sequence[float], own: Sequence[float]) -> tuple[float, float, float]:
    """The median of the rounds' ratios of `base` to `own` seconds, and the least and the greatest of them."""
    ratios = sorted(other / mine for other, mine in zip(base, own, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]
