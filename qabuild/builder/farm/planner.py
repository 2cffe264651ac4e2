"""What is left of the targets of a farm: plans that change as checkpoints are made, and what became of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from qabuild.artifact import staging
from qabuild.builder import plan as plans
from qabuild.builder.build import already_built, require_machine
from qabuild.builder.facts import is_checkpoint
from qabuild.builder.farm.worker import Made, inputs_from_scratch, packed, receive
from qabuild.builder.keys import Inputs
from qabuild.builder.plan import NOT_NEEDED, Plan, PlanStep, history_name
from qabuild.builder.steps.verify import Verify
from qabuild.builder.store.local import Store
from qabuild.builder.store.remote import EVIDENCE, Remote
from qabuild.errors import QABuildError
from qabuild.system.reporter import Reporter
from qabuild.target.model import Target


@dataclass(frozen=True, kw_only=True)
class FarmStep:
    """What became of one step of a target."""

    target: str
    step: str
    key: str | None
    state: str
    """`made`; `cached` if it was there, or another target of the same command had it made; else `not made`."""
    node: str | None
    """The node that made it."""
    seconds: float | None
    """How long it took."""


@dataclass(kw_only=True)
class Planner:
    """The plans of the targets, which stages change when they are made, and what became of the steps."""

    output: Path
    results: Store
    remote: Remote
    compile_only: bool
    reporter: Reporter
    plans: dict[str, Plan] = field(default_factory=dict)
    """Of the targets that have steps to be made and did not fail, by name."""
    last: dict[str, Plan] = field(default_factory=dict)
    """The last plan of each target."""
    wanted: dict[str, dict[str, Inputs]] = field(default_factory=dict)
    """The inputs of the steps of each target here, see `inputs_from_scratch`."""
    errors: dict[str, QABuildError | OSError | MemoryError] = field(default_factory=dict)
    done: dict[str, tuple[str | None, Made | None]] = field(default_factory=dict)
    """The node and what it returned, by key; None for what was in the remote cache."""
    shared: set[str] = field(default_factory=set)
    intact: set[str] = field(default_factory=set)
    """Keys of results that were cached, and are intact."""

    def begin(self, targets: Sequence[Target]) -> None:
        for target in targets:
            self._attempt(target.name, partial(self._begin, target))

    def finish(self, step: PlanStep, node: str, made: Made) -> None:
        """Note that a node made the step. What its checkpoint decides has another key now."""
        if step.key and made.content is not None:
            receive(self.results, step.key, made.content)
        elif step.key and not self.remote.holds(step.key):
            raise QABuildError(
                "its result is not in the remote cache that this machine sees",
                "QABUILD_REMOTE_CACHE must name the same place on all nodes and here",
            )
        self.done[step.key or ""] = node, made
        for name, plan in list(self.plans.items()):
            if any(derivation.key == step.key for derivation in plan.facts.derivations):
                self._attempt(name, partial(self._plan, plan.target))

    def is_there(self, step: PlanStep) -> bool:
        """Whether the remote cache has a good result of the step, which is fetched, and noted."""
        if step.key and self.results.fetch(step.name, step.key):
            self.done[step.key] = None, None
            return True
        return False

    def share(self, plan: Plan, step: PlanStep) -> None:
        """Put what the step follows, and is only here, into the remote cache."""
        for each in plan.before(step):
            if each.cached and each.key and each.reason != NOT_NEEDED and each.key not in self.shared:
                self.results.share(each.name, each.key)
                self.shared.add(each.key)

    def unshared(self, plan: Plan, step: PlanStep) -> dict[str, bytes]:
        """By key, what the step follows and the remote cache does not share, packed for the node."""
        before = [each for each in plan.before(step) if each.name in EVIDENCE and not self.remote.shares(each.name)]
        keys = [each.key for each in before if each.key]
        return {key: packed(self.results, key) for key in keys if self.results.find_intact(key)}

    def fail(self, step: PlanStep, error: QABuildError | OSError | MemoryError) -> None:
        """Give up the targets that need the step."""
        for name, plan in list(self.plans.items()):
            if any(each.key == step.key and not each.cached for each in plan.steps):
                self.give_up(name, error)

    def give_up(self, name: str, error: QABuildError | OSError | MemoryError) -> None:
        message = error.message if isinstance(error, QABuildError) else str(error)
        self.reporter.say(f"{name}: given up: {message.splitlines()[0]}")
        self.errors[name] = error
        self.plans.pop(name, None)

    def report(self, targets: Sequence[Target]) -> Iterator[FarmStep]:
        reported: set[str] = set()
        for target in targets:
            for step in self.last[target.name].steps if target.name in self.last else ():
                if not step.inputs or step.reason == NOT_NEEDED:
                    continue
                node, made = self.done.get(step.key or "", (None, None))
                entry = self.results.find(step.key) if step.key and not made else None
                is_new = made is not None and not made.cached and step.key not in reported
                is_there = step.cached or step.key in self.done
                reported.add(step.key or "")
                yield FarmStep(
                    target=target.name,
                    step=step.name,
                    key=step.key,
                    state="made" if is_new else "cached" if is_there else "not made",
                    node=node,
                    seconds=made.seconds if made else entry.seconds if entry else None,
                )

    def _begin(self, target: Target) -> None:
        require_machine(target, self.compile_only)
        goal = self.output / target.name
        staging.require_ours(goal)
        plan = plans.current(target, self.results, history_name(target, self.output), offline=False)
        if already_built(goal, plan, self.results, self.compile_only):
            return
        plan = self._plan(target)
        if plan.reads_data:
            from qabuild.builder import leakage

            leakage.refuse_leakage(target, offline=False)
        self.wanted[target.name] = inputs_from_scratch(target)

    def _plan(self, target: Target) -> Plan:
        """Plan what is left of the target. Checkpoints that the remote cache has are fetched."""
        plan = plans.current(target, self.results, history_name(target, self.output), offline=False)
        if self._is_any_damaged(plan):
            return self._plan(target)
        for derivation in plan.facts.derivations:
            step = plan.step(f"{derivation.label}{derivation.derived.stage}")
            if step.cached:
                if step.key and step.key not in self.shared:
                    self.shared.add(step.key)
                    # If it is there, of another training with other bytes, then all go on from that one.
                    self.results.fetch(step.name, step.key, is_checkpoint, replace=True)
                    self.results.share(step.name, step.key)
                    return self._plan(target)
            elif step.key and self.results.fetch(step.name, step.key, is_checkpoint):
                self.shared.add(step.key)
                return self._plan(target)
            elif step.key in self.done:
                raise QABuildError(
                    f"{step.name}: its result cannot be fetched from the remote cache",
                    "QABUILD_REMOTE_CACHE must name the same place on all nodes and here, and one without results of a "
                    "newer version of qabuild, which stay there",
                )
        steps = tuple(step for step in plan.steps if not (self.compile_only and step.name == Verify.name))
        self.plans[target.name] = self.last[target.name] = replace(plan, steps=steps)
        return plan

    def _is_any_damaged(self, plan: Plan) -> bool:
        """Whether a cached result was damaged, and so is cached no longer. Each is hashed once."""
        stored = (step for step in plan.steps if step.cached and step.inputs and step.reason != NOT_NEEDED)
        cached = {step.key for step in stored if step.key}
        damaged = [key for key in cached - self.intact if not self.results.find_intact(key)]
        self.intact |= cached.difference(damaged)
        return bool(damaged)

    def _attempt(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except (QABuildError, OSError, MemoryError) as error:
            self.give_up(name, error)
