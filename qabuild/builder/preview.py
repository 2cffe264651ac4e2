"""Plans of builds that may come: nothing is fetched, made or changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qabuild.artifact.manifest import FOLDER
from qabuild.builder.facts import gather
from qabuild.builder.plan import DAMAGED, NOT_NEEDED, Plan, PlanStep, history_name, make
from qabuild.builder.store.local import Store, is_whole
from qabuild.target import lock
from qabuild.target.model import Target


def plan(
    target: Target | str | Path, output: str | Path = FOLDER, *, locked: bool = False, results: Store | None = None
) -> Plan:
    """What building `target`, a path or what was read from one, into `output` would do, and why. A dry run.

    A path is read through its lock, and with `locked` through nothing else. Raises what `preview` raises.
    """
    target = target if isinstance(target, Target) else lock.load(target, locked=locked)
    return preview(target, results or Store(), history_name(target, Path(output)))


def previews(targets: Iterable[Target], results: Store, output: Path) -> list[Plan]:
    """The plans of builds into `output`, one after another: what one makes is there for those behind it.

    Raises what `preview` raises.
    """
    makers: dict[str, str] = {}
    plans = []
    for target in targets:
        plan = preview(target, results, history_name(target, output))
        steps = [
            replace(step, kept=True, reason=f"{makers[step.key]} makes it") if step.key in makers else step
            for step in plan.steps
        ]
        makers |= {step.key: target.name for step in steps if step.key and not step.kept}
        plans.append(replace(plan, steps=tuple(steps)))
    return plans


def preview(target: Target, results: Store, name: str) -> Plan:
    """The plan of one build, whose history the store has under `name`.

    What the store holds is held against its sums, and questions that are here and would be read are checked, so that
    the build finds what the plan says. Raises what `qabuild.builder.plan.gather` and, for those questions,
    `qabuild.builder.leakage.refuse_leakage` raise.
    """
    made = make(target, gather(target, results, name, fetch=False))
    made = replace(made, steps=tuple(_held(step, results) for step in made.steps))
    if made.reads_data:
        from qabuild.builder import leakage  # only now: a plan with nothing to do is over before it is imported

        leakage.refuse_leakage(target, offline=True, here_only=True)
    return made


def _held(step: PlanStep, results: Store) -> PlanStep:
    """The step, to be made anew where its result is damaged."""
    if not (step.kept and step.key and step.inputs) or step.reason == NOT_NEEDED:
        return step
    entry = results.find(step.key)
    return step if entry and is_whole(entry) else replace(step, kept=False, reason=DAMAGED)
