"""A cache of what is computed from texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Memo(Generic[Value]):
    """A thread-safe LRU cache of values computed from texts, limited by their total cost."""

    def __init__(
        self, compute: Callable[[list[str]], Sequence[Value]], cost: Callable[[Value], int], limit: int
    ) -> None:
        self._compute, self._cost, self._limit = compute, cost, limit
        self._cache: OrderedDict[str, Value] = OrderedDict()
        self._total = 0
        self._lock = Lock()

    def __call__(self, texts: Sequence[str]) -> list[Value]:
        """The values of distinct `texts`, in their order; missing ones are computed in one call."""
        with self._lock:
            return self._values(texts)

    def _values(self, texts: Sequence[str]) -> list[Value]:
        new = [text for text in texts if text not in self._cache]
        for text in texts if len(new) < len(texts) else ():
            if text in self._cache:
                self._cache.move_to_end(text)
        for text, value in zip(new, self._compute(new) if new else (), strict=True):
            self._cache[text] = value
            self._total += self._cost(value)
        values = [self._cache[text] for text in texts]
        while self._total > self._limit:
            self._total -= self._cost(self._cache.popitem(last=False)[1])
        return values
