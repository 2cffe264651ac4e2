"""A farm of builds: the nodes of a Ray cluster make the steps of several targets, each step once.

Ray starts the workers and tells when one died; which node makes which step, and when, is decided here. A step begins
when those that it follows are made. Results travel through the remote cache, but for evidence, which it does not share
unsigned: that comes back from the worker, which this process started, and so trusts; and goes to those that need it.

A node makes a step only if the step has the key there that the plan states, so that node and driver are alike in
whatever decides the result. It has the node for itself, or an equal share of it for each GPU: a step uses all threads,
and some measure times.
"""

from __future__ import annotations

import os
import pickle
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qabuild.builder import plan as plans
from qabuild.builder.farm.planner import FarmStep, Planner
from qabuild.builder.farm.worker import StepWork, View, Views, make, view
from qabuild.builder.keys import Inputs, step_key
from qabuild.builder.plan import BYTES, Plan, PlanStep
from qabuild.builder.store import remote
from qabuild.builder.store.local import Store
from qabuild.builder.store.remote import Remote
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.system import machine, packages, storage
from qabuild.system.ray_cluster import connected, get
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.version import VERSION
from qabuild.target.model import Target

MAX_DEATHS = 3
"""Workers that may die of one step."""
PATIENCE = 10.0
"""Seconds without any news after which the cluster is looked at again."""
GRACE = 20.0
"""Seconds that an interruption gives workers to end a step and its lease."""


@dataclass(frozen=True, kw_only=True)
class Farmed:
    """What a farm did. The results are in the caches: what is left to each target is its assembly."""

    steps: tuple[FarmStep, ...]
    errors: Mapping[str, QABuildError | OSError | MemoryError]
    """Of targets, by their names."""


def make_steps(
    targets: Sequence[Target],
    output: Path,
    results: Store,
    *,
    address: str | None = None,
    key: Path | None = None,
    compile_only: bool = False,
    reporter: Reporter = SILENT,
) -> Farmed:
    """Have the steps of builds into `output` made on the Ray cluster at `address`; without one, Ray is started here.

    `key` is the file of the remote cache's key. Raises BadTarget where `results` has no remote cache that may be
    written, MissingEnvironment without Ray, QABuildError where no cluster answers. What fails a target is returned.
    """
    shared = _writable(results.remote)
    packages.require({"ray": ["ray"]}, "cpu")
    environment = {
        **{remote.URL: _absolute(os.environ.get(remote.URL)), remote.KEY: _absolute(key or os.environ.get(remote.KEY))},
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),  # Ray sets it, and a plain build has other defaults
    }
    planner = Planner(output=output, results=results, remote=shared, compile_only=compile_only, reporter=reporter)
    planner.begin(targets)
    if any(ready(planner.plans.values(), planner.done, ())):
        with connected(address) as ray:
            farm = _Farm(ray=ray, planner=planner, environment=environment, reporter=reporter)
            farm.run()
    return Farmed(steps=tuple(planner.report(targets)), errors=planner.errors)


def ready(plans: Iterable[Plan], done: Collection[str], begun: Collection[str]) -> Iterator[tuple[Plan, PlanStep]]:
    """The steps that can begin now, each key once: all that they follow are cached or done. Pure."""
    passed = {*done, *begun}
    for plan in plans:
        for step in plan.steps:
            if step.cached or step.key is None or step.key in passed:
                continue
            if all(each.cached or each.key in done for each in plan.before(step)):
                passed.add(step.key)
                yield plan, step


def shares(node: Mapping[str, Any], gpus: int) -> tuple[int, int]:
    """How many steps with so many GPUs run on a node of these resources at a time, and the CPUs of each. Pure."""
    cpus = int(node.get("CPU", 0))
    steps = min(cpus, int(node.get("GPU", 0)) // gpus if gpus else 1)
    return steps, cpus // steps if steps else 0


def differences(ours: Inputs, theirs: Inputs, keys: Collection[str]) -> list[str]:
    """How inputs on a node differ from the driver's, in words; `keys` are those of steps that they follow. Pure."""
    words = []
    for name in dict.fromkeys([*ours, *theirs]):
        mine, other = ours.get(name), theirs.get(name)
        if mine == other or (isinstance(mine, str) and mine in keys):
            continue
        if name in BYTES:
            words.append(f"another {BYTES[name]}")
        elif name == "code":
            words.append("other code of qabuild")
        else:
            words.append(f"{name.removeprefix('package ')} {plans.word(other)}, not {plans.word(mine)}")
    return words


@dataclass(kw_only=True)
class _Node:
    """A node of the cluster."""

    id: str
    name: str
    cpus: int
    """Of each step."""
    free: int
    """Steps that can begin."""
    views: Views | str | None = None
    """How it sees the targets, or why it cannot make any step; None while it is asked."""
    deaths: int = 0

    def fits(self, target: str, step: str, wanted: Mapping[str, Inputs]) -> bool:
        """Whether the step has the same inputs there as here."""
        seen = self.views.get(target) if isinstance(self.views, Mapping) else None
        return isinstance(seen, Mapping) and seen.get(step) == wanted.get(step)

    def lack(self, target: str, wanted: Mapping[str, Inputs]) -> str:
        """Why it cannot make steps of the target, in words."""
        seen = self.views.get(target, "") if isinstance(self.views, Mapping) else self.views
        if isinstance(seen, Mapping):
            keys = {step_key(inputs) for inputs in wanted.values()}
            words = (differences(wanted[step], seen[step], keys) for step in wanted if step in seen)
            return f"{self.name} has {', '.join(dict.fromkeys(word for step in words for word in step))}"
        return f"{self.name}: {seen}"


@dataclass(kw_only=True)
class _Farm:
    """Steps at work on the nodes of a cluster."""

    ray: Any
    planner: Planner
    environment: Mapping[str, str | None]
    reporter: Reporter
    gpus: int = field(default_factory=lambda: len(machine.gpus()))
    """Of each step: as many as there are here, which keys name."""
    owner: str = field(default_factory=lambda: secrets.token_hex(16))
    nodes: dict[str, _Node] = field(default_factory=dict)
    running: dict[Any, tuple[_Node, PlanStep | None]] = field(default_factory=dict)
    """The node and the step, by the reference to what the worker will return; no step while the node is asked."""
    deaths: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        try:
            while True:
                self._look()
                self._refuse_unmakable()
                while self._begin_ready():
                    pass  # what was there already lets others begin
                if not self.running:
                    return
                finished, _ = self.ray.wait(list(self.running), timeout=PATIENCE)
                for result in finished:
                    self._finish(result)
        finally:
            self._cancel()

    def _look(self) -> None:
        """Forget nodes that are gone, and ask new ones how they see the targets."""
        alive = {node["NodeID"]: node for node in sorted(self.ray.nodes(), key=_name) if node["Alive"]}
        self.nodes = {id: node for id, node in self.nodes.items() if id in alive}
        targets = tuple(plan.target for plan in self.planner.plans.values())
        work = pickle.dumps(View(targets=targets, compile_only=self.planner.compile_only))
        for id in [id for id in alive if id not in self.nodes]:
            resources = alive[id]["Resources"]
            steps, cpus = shares(resources, self.gpus)
            self.nodes[id] = node = _Node(id=id, name=_name(alive[id]), cpus=cpus, free=steps)
            if steps:
                self._begin(node, None, view, work)
            else:
                needs = f"a CPU and {self.gpus} GPU" if self.gpus else "a CPU"
                node.views = f"has not {needs} for a step"

    def _refuse_unmakable(self) -> None:
        """Give up targets with a step that no node can make, once all nodes are asked."""
        if any(node.views is None for node in self.nodes.values()):
            return
        for name, plan in list(self.planner.plans.items()):
            wanted = self.planner.wanted[name]
            for step in plan.steps:
                if step.cached or step.key in self.planner.done:
                    continue
                if not any(node.fits(name, step.name, wanted) for node in self.nodes.values()):
                    self.planner.give_up(name, self._lack(name, step, wanted))
                    break

    def _lack(self, name: str, step: PlanStep, wanted: Mapping[str, Inputs]) -> MissingEnvironment:
        """The error for a step that no node can make."""
        problem = f"{name}: no node can make the step {step.name}"
        if not self.nodes:
            return MissingEnvironment(f"{problem}: all are gone", "the same command goes on from there")
        lacks = "; ".join(node.lack(name, wanted) for node in self.nodes.values())
        return MissingEnvironment(
            f"{problem}: {lacks}",
            "a node must have what this machine has: packages, processor, GPU and files at their paths",
        )

    def _begin_ready(self) -> bool:
        """Begin steps on nodes that are free and fit; those where fewer workers died come first.

        Returns whether the remote cache had a step.
        """
        done = len(self.planner.done)
        begun = {step.key for _, step in self.running.values() if step and step.key}
        for plan, step in list(ready(self.planner.plans.values(), self.planner.done, begun)):
            wanted, name = self.planner.wanted[plan.target.name], plan.target.name
            fitting = [node for node in self.nodes.values() if node.free and node.fits(name, step.name, wanted)]
            if not fitting or self.planner.is_there(step):
                continue
            self.planner.share(plan, step)
            node = min(fitting, key=lambda node: node.deaths)
            assert step.key
            work = StepWork(
                target=plan.target,
                name=step.name,
                key=step.key,
                owner=self.owner,
                environment=self.environment,
                results=self.planner.unshared(plan, step),
            )
            self.reporter.say(f"{step.name}: {step.reason}; {node.name} makes it for {name}")
            self._begin(node, step, make, pickle.dumps(work))
        return len(self.planner.done) > done

    def _begin(self, node: _Node, step: PlanStep | None, work: Callable[[str, bytes], object], content: bytes) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        function = self.ray.remote(max_calls=1, max_retries=0)(work).options(
            num_cpus=node.cpus if step else 0,
            num_gpus=self.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        node.free -= step is not None
        self.running[function.remote(VERSION, content)] = node, step

    def _finish(self, result: Any) -> None:
        from ray.exceptions import RayError

        node, step = self.running.pop(result)
        node.free += step is not None
        try:
            returned = get(self.ray, result)
            if step is None:
                node.views = returned
                return
            for remark in returned.remarks:
                self.reporter.say(f"{node.name}: {remark}")
            self.planner.finish(step, node.name, returned)
        except RayError as error:
            self._replace(node, step, error)
        except Exception as error:
            if step is None:
                node.views = error.message if isinstance(error, QABuildError) else _last_line(error.__cause__ or error)
                return
            if not isinstance(error, (QABuildError, OSError, MemoryError)):
                raise
            if isinstance(error, QABuildError):
                error.message = f"{step.name} on {node.name}: {error.message}"
            self.planner.fail(step, error)

    def _replace(self, node: _Node, step: PlanStep | None, error: Exception) -> None:
        """Let another worker make the step of one that died, which happens in the next round."""
        node.deaths += 1
        if step is None or type(error).__name__ == "TaskUnschedulableError":
            node.views = f"cannot run a worker: {_last_line(error)}"
            return
        self.deaths[step.key or ""] += 1
        if self.deaths[step.key or ""] == MAX_DEATHS:
            self.planner.remote.lease(step.name, step.key or "", self.owner).remove_abandoned()
            self.planner.fail(
                step,
                QABuildError(
                    f"{step.name}: {MAX_DEATHS} workers died of it: {' '.join(str(error).split())}",
                    "if nobody killed them, the node's memory was too small",
                ),
            )
        else:
            self.reporter.say(f"{step.name}: its worker on {node.name} died, and another one makes it")

    def _cancel(self) -> None:
        """Interrupt what runs, so that it releases its leases."""
        for result in self.running:
            self.ray.cancel(result)
        if self.running:
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=GRACE)


def _writable(shared: Remote | None) -> Remote:
    if shared is None:
        raise BadTarget(
            "nodes of a Ray cluster share their results through a remote cache, and there is none",
            f"let {remote.URL} name one that all nodes see, such as s3://bucket/folder or a shared folder",
        )
    if not shared.writes:
        raise BadTarget(
            "nodes of a Ray cluster put their results into the remote cache, and it is read-only",
            f"leave out ?mode=ro in {remote.URL}, and use the private key, if there is one",
        )
    return shared


def _absolute(name: str | Path | None) -> str | None:
    """A path as workers, which have another current folder, can use it; a URL as it is."""
    if not name:
        return None
    return str(name) if storage.is_url(str(name)) else os.path.abspath(storage.plain(str(name)))


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeName") or node["NodeManagerHostname"])
