"""An engine that makes parts with workers of a Ray cluster, each of which loads the artifact once.

Ray starts the workers and tells when one died; which part each makes is decided here. A worker gets a part when it has
none, so that no part waits for a worker that is slow, or has not started.
"""

from __future__ import annotations

import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from qabuild.artifact.artifact_ref import ArtifactRef
from qabuild.artifact.load import damage_explained, require_verified
from qabuild.artifact.manifest import Artifact
from qabuild.errors import MissingEnvironment, QABuildError
from qabuild.qa.bulk.engine import Outcome
from qabuild.qa.bulk.part_writer import PartWriter, UnusableQuestions
from qabuild.qa.bulk.parts import Part
from qabuild.qa.bulk.tally import Tally
from qabuild.system import packages
from qabuild.system.ray_cluster import connected, get, resources
from qabuild.system.reporter import Advance, Reporter
from qabuild.system.version import VERSION

LOADING = "the artifact"
MAX_DEATHS = 3
"""Workers that may die of one part, or in a row before they can make any."""
LOCK_SECONDS = 30.0
"""What a worker waits for a part that another is writing: Ray can tell of a death before the process has ended."""
PATIENCE = 60.0
"""Seconds without any news after which a wait for the first worker is reported."""


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Makes parts with workers of the Ray cluster at `address`; without one, Ray is started here for that time."""

    artifact: ArtifactRef
    address: str | None = None
    workers: int | None = None
    """By default one for each node or, if they need GPUs, as many as these suffice for."""
    gpus_per_worker: float = 0

    def made(
        self, parts: Iterable[Part], writer: PartWriter, advance: Advance, reporter: Reporter
    ) -> Generator[tuple[Part, Outcome], None, None]:
        """Raises QABuildError where no cluster answers, or workers die again and again, MissingEnvironment where it has
        not what they need, and what making a part raises on a worker."""
        missing = deque(parts)
        if not missing:
            return
        with connected(self.address) as ray:
            count, options = resources(ray.nodes(), self.workers, self.gpus_per_worker)
            worker_class = ray.remote(Worker).options(**options)
            work = ray.put((self.artifact, writer.elsewhere(), socket.gethostname()))
            pool = _Pool(ray=ray, start=lambda: worker_class.remote(work), missing=missing, reporter=reporter)
            for part, outcome in pool.made(count):
                if isinstance(outcome, Tally):
                    advance(outcome.rows)
                yield part, outcome


def engine_for(
    artifact: Artifact, ref: ArtifactRef, *, address: str | None, workers: int | None, gpus_per_worker: float | None
) -> RayEngine:
    """The engine for an artifact, whose workers get a GPU each if it needs one.

    Raises MissingEnvironment without Ray, and as `load_model` does where the artifact's evidence does not say that it
    passed.
    """
    packages.require({"ray": ["ray"]}, "cpu")
    if not ref.allow_unverified:
        require_verified(artifact)
    if gpus_per_worker is None:
        gpus_per_worker = 1 if artifact.manifest.runtime.device == "cuda" else 0
    return RayEngine(artifact=ref, address=address, workers=workers, gpus_per_worker=gpus_per_worker)


class Worker:
    """What runs in a worker's process."""

    def __init__(self, work: tuple[ArtifactRef, PartWriter, str]) -> None:
        self._artifact, self._writer, self._driver = work

    def load(self, version: str) -> None:
        """Load the artifact, or raise why parts cannot be made here; the message names this machine if it is another
        than the driver's."""
        try:
            if version != VERSION:
                raise QABuildError(f"has qabuild {VERSION}, not {version}", f"pip install qabuild=={version} there")
            self._writer.require_shared()
            self._artifact.load(self._writer.parameters)
        except QABuildError as error:
            if socket.gethostname() != self._driver:
                error.message = f"{socket.gethostname()}: {error.message}"
            raise

    def make(self, part: Part) -> Tally:
        loaded = self._artifact.load(self._writer.parameters)
        with damage_explained(loaded.directory):
            return self._writer.write(loaded.pipeline, part, lambda rows: None, wait_seconds=LOCK_SECONDS)


@dataclass(kw_only=True)
class _Pool:
    """Workers at work."""

    ray: Any
    start: Callable[[], Any]
    missing: deque[Part]
    reporter: Reporter
    running: dict[Any, tuple[Any, Part | None]] = field(default_factory=dict)
    """The worker and its part, by the reference to what it will return; no part while it loads the artifact."""
    deaths: Counter[str] = field(default_factory=Counter)

    def made(self, count: int) -> Generator[tuple[Part, Outcome], None, None]:
        from ray.exceptions import RayError

        left = len(self.missing)
        try:
            for _ in range(min(count, left)):
                self._begin()
            while left:
                result = self._next()
                worker, part = self.running.pop(result)
                try:
                    outcome: Outcome = get(self.ray, result)
                except UnusableQuestions as error:
                    outcome = error
                except RayError as error:
                    self._replace(worker, part, error)
                    continue
                self._occupy(worker)
                if part:
                    left -= 1
                    yield part, outcome
                else:
                    self.deaths[LOADING] = 0
        finally:
            for worker, _ in self.running.values():
                self.ray.kill(worker)

    def _begin(self) -> None:
        worker = self.start()
        self.running[worker.load.remote(VERSION)] = worker, None

    def _occupy(self, worker: Any) -> None:
        """Give the worker a part; end it if there is none, so that its CPUs are there for one that waits for them."""
        if self.missing:
            part = self.missing.popleft()
            self.running[worker.make.remote(part)] = worker, part
        else:
            self.ray.kill(worker)

    def _next(self) -> Any:
        """The first result that is there."""
        while True:
            ready, _ = self.ray.wait(list(self.running), timeout=PATIENCE)
            if ready:
                return ready[0]
            if not any(part for _, part in self.running.values()):
                self.reporter.say("no worker is ready: the cluster starts one when it has the CPUs and GPUs for it")

    def _replace(self, worker: Any, part: Part | None, error: Exception) -> None:
        """Start a worker in place of one that died; its part is the next to be made.

        Raises QABuildError for the last death that there may be, MissingEnvironment if no worker can start.
        """
        self.ray.kill(worker)  # Ray may have lost the connection only
        if getattr(error, "actor_init_failed", False):
            raise MissingEnvironment(
                f"a worker of Ray cannot start: {str(error).strip().splitlines()[-1]}",
                f"install ray, and qabuild {VERSION} with the extras of this machine, on every node",
            ) from error
        name = part.name if part else LOADING
        self.deaths[name] += 1
        if self.deaths[name] == MAX_DEATHS:
            raise QABuildError(
                f"{name}: {MAX_DEATHS} workers died of it: {' '.join(str(error).split())}",
                "if memory ran out, have fewer --workers; the same command makes the parts that are missing",
            ) from error
        self.reporter.say(f"{name}: its worker died, and another one starts")
        if part:
            self.missing.appendleft(part)
        self._begin()
