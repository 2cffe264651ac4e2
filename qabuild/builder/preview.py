"""Dry runs: the plans of builds, without fetching, building or changing anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qabuild.artifact.manifest import FOLDER
from qabuild.builder.facts import gather
from qabuild.builder.plan import DAMAGED, NOT_NEEDED, Plan, PlanStep, history_name, make
from qabuild.builder.store.local import Store, is_intact
from qabuild.builder.store.remote import open_store
from qabuild.target import lock
from qabuild.target.model import Target


def plan(
    target: Target | str | Path, output: str | Path = FOLDER, *, locked: bool = False, results: Store | None = None
) -> Plan:
    """What building `target`, a path or what was read from one, into `output` would do, and why. A dry run.

    A path is read through its lock, and with `locked` through nothing else. Raises BadTarget for a bad target,
    UntrustedInput for a damaged checkpoint or questions that differ from their pin, MissingEnvironment for a tokenizer
    that this machine cannot read.
    """
    target = target if isinstance(target, Target) else lock.load(target, locked=locked)
    return preview(target, results or open_store(offline=True), history_name(target, Path(output)))


def previews(targets: Iterable[Target], results: Store, output: Path) -> list[Plan]:
    """The plans of builds into `output`, in order: what one builds is cached for those after it.

    Raises what `preview` raises.
    """
    makers: dict[str, str] = {}
    plans = []
    for target in targets:
        plan = preview(target, results, history_name(target, output))
        steps = [
            replace(step, cached=True, reason=f"{makers[step.key]} makes it") if step.key in makers else step
            for step in plan.steps
        ]
        makers |= {step.key: target.name for step in steps if step.key and not step.cached}
        plans.append(replace(plan, steps=tuple(steps)))
    return plans


def preview(target: Target, results: Store, name: str) -> Plan:
    """The plan of one build, whose history the store has under `name`.

    Cached results are checked against their digests, and the questions on this machine that the build would read are
    checked for leakage, so that the build does what the plan says. Raises what `qabuild.builder.facts.gather` and, for
    those questions, `qabuild.builder.leakage.refuse_leakage` raise.
    """
    plan = make(target, gather(target, results, name, fetch=False))
    plan = replace(plan, steps=tuple(_checked(step, results) for step in plan.steps))
    if plan.reads_data:
        from qabuild.builder import leakage  # only now: a plan with nothing to do is over before it is imported

        leakage.refuse_leakage(target, offline=True, here_only=True)
    return plan


def _checked(step: PlanStep, results: Store) -> PlanStep:
    """The step, no longer cached where its result is damaged."""
    if not (step.cached and step.key and step.inputs) or step.reason == NOT_NEEDED:
        return step
    entry = results.find(step.key)
    return step if entry and is_intact(entry) else replace(step, cached=False, reason=DAMAGED)
