"""What a build would do, and why: a pure function of a target and the facts about it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.builder.facts import Derivation, TargetFacts, gather
from qabuild.builder.keys import Inputs, is_known, step_key
from qabuild.builder.steps import STEPS
from qabuild.builder.steps.step import ARTIFACT, VERIFICATION
from qabuild.builder.store.local import Store
from qabuild.target.model import Target

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

UNRESOLVED = "unknown until its Hub id is resolved"
NOT_NEEDED = "not needed"
GONE = "its last result is no longer in the store"
DAMAGED = "its result in the store is damaged"

BYTES = {
    "checkpoint": "checkpoint",
    "teacher": "teacher",
    "train.dataset": "training data",
    "prune.dataset": "pruning data",
    "prune.recover.dataset": "training data",
    "calibration": "calibration data",
    "verify.dataset": "data set",
}
"""Inputs that are digests, and of what."""

FOLLOWING = ("verify.seed", "verify.split")
"""Inputs that come and go with another: a seed with a number of samples, a split with a source that has some."""


@dataclass(frozen=True, kw_only=True)
class PlanStep:
    """One step of a plan."""

    name: str
    key: str | None
    """None where something that decides the result is not known yet."""
    cached: bool
    reason: str
    inputs: Inputs = field(repr=False)
    seconds: float | None
    """How long it took last time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one target, in order."""

    target: Target
    facts: TargetFacts
    steps: tuple[PlanStep, ...]

    @property
    def reads_data(self) -> bool:
        """Whether questions are read before the verification: to learn from them, or for the checkpoint's answers."""
        return not all(step.cached for step in self.steps if step.name != "verify")

    @property
    def checkpoint(self) -> Checkpoint | None:
        """What is compiled, where it is known."""
        return self.facts.checkpoint

    def has(self, name: str) -> bool:
        return any(step.name == name for step in self.steps)

    def step(self, name: str) -> PlanStep:
        return next(step for step in self.steps if step.name == name)

    def before(self, step: PlanStep) -> list[PlanStep]:
        """The steps that it follows: its inputs hold their keys. What is verified is made of the results of all."""
        keys = list(step.inputs.values())
        others = (each for each in self.steps if each.inputs and each.name != step.name)
        return [each for each in others if step.name == "verify" or each.key in keys]

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target.name,
            "missing": list(self.facts.missing),
            "steps": [
                {"name": s.name, "key": s.key, "cached": s.cached, "reason": s.reason, "seconds": s.seconds}
                for s in self.steps
            ],
        }


def make(target: Target, facts: TargetFacts) -> Plan:
    """The steps of `target`. Pure."""
    steps = [_checkpoint_step(facts)]
    for derivation in facts.derivations:
        steps.extend(_derivation_steps(derivation, facts, steps))
    for step in STEPS:
        if step.stage in (ARTIFACT, VERIFICATION) and (inputs := step.inputs(target, facts)) is not None:
            steps.append(_step(step.name, inputs, facts, steps))
    return Plan(target=target, facts=facts, steps=tuple(steps))


def current(target: Target, results: Store, name: str, *, offline: bool) -> Plan:
    """The plan of a build that is about to begin: every Hub id is resolved and every checkpoint fetched."""
    return make(target, gather(target, results, name, fetch=True, offline=offline))


def history_name(target: Target, output: Path) -> str:
    """The name under which the store records what `target` was last built from into `output`."""
    return f"{target.name}-{hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:16]}"


# --- reasons --------------------------------------------------------------------------------------------------------


def _checkpoint_step(facts: TargetFacts) -> PlanStep:
    """What all others follow. Its key is the digest of its bytes, and nothing of it is cached in the store."""
    first = facts.derivations[0] if facts.derivations else None
    checkpoint = first.facts.checkpoint if first else facts.checkpoint
    if checkpoint is None:
        key, reason = None, UNRESOLVED
    else:
        follower = f"{first.label}{first.derived.stage}" if first else "compile"
        key, previous = checkpoint.digest, facts.previous.get(follower)
        changed = previous is not None and previous.inputs.get("checkpoint") != key
        reason = "its bytes changed" if changed else "its bytes are here"
    return PlanStep(name="checkpoint", key=key, cached=key is not None, reason=reason, inputs={}, seconds=None)


def _derivation_steps(derivation: Derivation, facts: TargetFacts, before: list[PlanStep]) -> Iterator[PlanStep]:
    """The steps of one stage; those that only lead to its result are not needed where that is cached."""
    for name, inputs in derivation.inputs.items():
        step = _step(f"{derivation.label}{name}", inputs, facts, before)
        needless = derivation.result is not None and name != derivation.derived.stage
        yield replace(step, cached=True, reason=NOT_NEEDED) if needless else step


def _step(name: str, inputs: Inputs, facts: TargetFacts, before: list[PlanStep]) -> PlanStep:
    previous = facts.previous.get(name)
    key = step_key(inputs) if is_known(inputs) else None
    makers = [f"{each.label}{each.derived.stage}" for each in facts.derivations]
    maker = next((step.name for step in reversed(before) if step.name in makers), None)
    return PlanStep(
        name=name,
        key=key,
        cached=key in facts.cached,
        reason=_reason(name, inputs, facts, key, before, maker),
        inputs=inputs,
        seconds=previous.seconds if previous else None,
    )


def _reason(
    name: str, inputs: Inputs, facts: TargetFacts, key: str | None, before: list[PlanStep], maker: str | None
) -> str:
    if key is None:
        return UNRESOLVED
    cached, previous = key in facts.cached, facts.previous.get(name)
    if previous is None and cached:
        return "another build made it"
    if previous is None:
        return GONE if name in facts.previous else "not built before"
    if changes := describe_changes(previous.inputs, inputs, {step.name for step in before[1:]}, maker):
        return "; ".join(changes) + (", and that was built before" if cached else "")
    return "nothing changed" if cached else GONE


def describe_changes(old: Inputs, new: Inputs, steps: set[str], maker: str | None = None) -> list[str]:
    """What differs between two sets of inputs, in words; `maker` is the step that makes the checkpoint."""
    changes = []
    for name in dict.fromkeys([*new, *old]):
        was, now = old.get(name), new.get(name)
        if was == now or (name in FOLLOWING and None in (was, now)):
            continue
        if name in steps or (maker and name == "checkpoint"):
            changes.append(f"follows {name if name in steps else maker}")
        elif name in BYTES:
            changes.append(f"the bytes of the {BYTES[name]} changed")
        elif name == "code":
            changes.append("qabuild's own code for this step changed")
        elif name.startswith("package "):
            changes.append(f"{name.removeprefix('package ')} {was or '(none)'} became {now or '(none)'}")
        else:
            changes.append(f"{name}: {word(was)} became {word(now)}")
    return changes


def word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)
