"""Dynamic batching: questions of several requests are answered together.

The queue lives in the event loop, so it needs no lock; one thread per model computes.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from qabuild.qa.pipeline.inputs import Pair
from qabuild.qa.pipeline.parameters import Parameters

Answer = Callable[[Sequence[Pair], Parameters], Sequence[Any]]
"""The results of the pairs, in their order. Blocks, and is called in one thread."""


class QueueFull(Exception):
    """More questions wait than the server holds."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A question in the queue."""

    pair: Pair
    parameters: Parameters
    result: asyncio.Future[Any]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Gathers questions with equal parameters, in the order of their arrival, and answers each batch at once.

    A batch starts when it has `max_batch` questions or its oldest one has waited for `max_wait` seconds. While one is
    computed, questions wait and are gathered.
    """

    def __init__(
        self,
        answer: Answer,
        thread: Executor,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        observe: Callable[[int], None],
    ) -> None:
        """`thread` runs `answer`; `observe` is called with the number of questions of each batch."""
        self._answer, self._thread, self._observe = answer, thread, observe
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._draining = False

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._queue)

    async def submit(self, pairs: Sequence[Pair], parameters: Parameters) -> list[Any]:
        """The results of the pairs; where this is cancelled, those that still wait leave the queue.

        Raises QueueFull if not all of them find room, and what the model raises.
        """
        if len(self._queue) + len(pairs) > self._max_queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(pair, parameters, loop.create_future()) for pair in pairs]
        self._queue.extend(waiting)
        self._changed.set()
        try:
            return await asyncio.gather(*(question.result for question in waiting))
        except asyncio.CancelledError:
            self._queue = deque(question for question in self._queue if not question.result.cancelled())
            raise

    async def run(self) -> None:
        """Answer batches until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            self._observe(len(batch))
            outcomes = await loop.run_in_executor(self._thread, self._outcomes, batch)
            for question, outcome in zip(batch, outcomes, strict=True):
                if question.result.done():  # its client went away
                    continue
                if isinstance(outcome, Exception):
                    question.result.set_exception(outcome)
                else:
                    question.result.set_result(outcome)

    def drain(self) -> None:
        """From now on, no question waits for others."""
        self._draining = True
        self._changed.set()

    async def _next(self) -> Sequence[_Waiting]:
        while True:
            self._changed.clear()
            batch = self._batch()
            left = batch[0].arrived + self._max_wait - time.monotonic() if batch else None
            if left is not None and (len(batch) == self._max_batch or self._draining or left <= 0):
                taken = set(batch)
                self._queue = deque(question for question in self._queue if question not in taken)
                return batch
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    def _batch(self) -> list[_Waiting]:
        """The oldest question and those that can be answered with it."""
        batch: list[_Waiting] = []
        for question in self._queue:
            if question.parameters == self._queue[0].parameters:
                batch.append(question)
                if len(batch) == self._max_batch:
                    break
        return batch

    def _outcomes(self, batch: Sequence[_Waiting]) -> Sequence[Any]:
        """The result of each question, or what the model raises for it alone."""
        try:
            return self._answer([question.pair for question in batch], batch[0].parameters)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [self._outcomes([question])[0] for question in batch]
