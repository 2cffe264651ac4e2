"""The models of a server, from loading them to the last answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from qabuild.serving.batching import Batcher
from qabuild.serving.metrics import Metrics
from qabuild.serving.model import Model
from qabuild.serving.refusal import Refusal
from qabuild.serving.settings import Settings
from qabuild.system.reporter import Reporter

LOADING, STOPPING = "the models are being loaded", "the server is stopping"

Load = Callable[[str], Model]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model that can be asked."""

    name: str
    model: Model
    batcher: Batcher


class Service:
    """The models by name, and whether they can be asked."""

    def __init__(
        self, sources: Mapping[str, str], load: Load, settings: Settings, metrics: Metrics, reporter: Reporter
    ):
        """`sources` is where the artifact of each name lies; `load` loads it."""
        self.unready: str | None = LOADING
        """Why no new question should come; None where nothing speaks against it."""
        self._sources, self._load, self._settings = sources, load, settings
        self._metrics, self._reporter = metrics, reporter
        self._served: dict[str, Served] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._limits: dict[asyncio.Timeout, float] = {}
        """Time limits that become as many seconds when the server stops."""

    async def start(self) -> None:
        """Load the models and begin to answer. Raises what `load` raises."""
        served = [await self._start(name, source) for name, source in self._sources.items()]
        self._served = {each.name: each for each in served}
        if self.unready == LOADING:
            self.unready = None

    def stop(self) -> None:
        """Be no longer ready, and answer at once what waits."""
        self.unready = STOPPING
        now = asyncio.get_running_loop().time()
        for limit, seconds in self._limits.items():
            limit.reschedule(min(limit.when() or now, now + seconds))
        for served in self._served.values():
            served.batcher.drain()

    @asynccontextmanager
    async def timeout(self, seconds: float, last_seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError after so many `seconds`, or after `last_seconds` once the server stops."""
        async with asyncio.timeout(last_seconds if self.unready == STOPPING else seconds) as limit:
            self._limits[limit] = last_seconds
            try:
                yield
            finally:
                del self._limits[limit]

    def served(self, name: str | None) -> Served:
        """The model of that name, or the only one. Raises Refusal."""
        if not self._served:
            raise Refusal(503, self.unready or LOADING, {"Retry-After": "1"})
        if name is None and len(self._served) > 1:
            raise Refusal(422, f"model: missing; this server has {', '.join(self._served)}")
        found = next(iter(self._served.values())) if name is None else self._served.get(name)
        if found is None:
            raise Refusal(404, f"no such model; this server has {', '.join(self._served)}")
        return found

    def changed(self) -> list[str]:
        """Names of the models whose artifacts were changed since; they answer as before."""
        return [name for name, served in self._served.items() if served.model.is_changed]

    def report(self, served: Served, error: Exception) -> None:
        """Say why a question was not answered."""
        lines = str(error).splitlines() or [""]
        self._reporter.say(f"{served.name}: a question cannot be answered ({type(error).__name__}: {lines[0]})")

    async def _start(self, name: str, source: str) -> Served:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        model = await asyncio.get_running_loop().run_in_executor(thread, self._load, source)
        batcher = Batcher(
            model.answer,
            thread,
            max_batch=self._settings.max_batch,
            max_wait=self._settings.max_wait,
            max_queue=self._settings.max_queue,
            observe=lambda questions: self._metrics.add_batch(name, questions),
        )
        self._metrics.watch_queue(name, batcher.__len__)
        self._answering.add(asyncio.create_task(batcher.run()))
        return Served(name=name, model=model, batcher=batcher)
