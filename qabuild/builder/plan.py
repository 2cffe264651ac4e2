"""What a build would do, and why.

`gather` looks: at the checkpoint's bytes, installed versions, what the store holds, what was built before. `make` is
pure: from a target and those facts it makes the steps, each with the key of all that decides its result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qabuild.builder.facts import Look
from qabuild.builder.requirements import needed
from qabuild.builder.steps import train as training
from qabuild.builder.steps.train import Stage
from qabuild.builder.store.local import Entry, Inputs, Store, key_of
from qabuild.evaluation import stock_pipeline
from qabuild.models import calibration
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.training import options
from qabuild.models.training.options import Autocast
from qabuild.qa import ask
from qabuild.system import files, machine, packages
from qabuild.system.hub import is_path
from qabuild.system.packages import distributions, versions
from qabuild.target.lineage import trainings
from qabuild.target.model import Target
from qabuild.target.paths import require_paths

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

STEPS = ("compile", "reference", "verify")
"""Of every target. Those of a training come before, and `teacher`, its answers, before `verify`."""

UNKNOWN = "unknown until its Hub id is resolved"
NEEDLESS = "not needed"
GONE = "its last result is no longer in the store"
DAMAGED = "its result in the store is damaged"
UNKNOWN_PARTS = (
    *("checkpoint", "teacher", "logits", "search", "train.dataset"),
    *("calibration", "verify.dataset", "compile", "reference"),
)
"""Inputs that may not be known yet."""

BYTES = {
    "checkpoint": "checkpoint",
    "teacher": "teacher",
    "train.dataset": "training data",
    "calibration": "calibration data",
    "verify.dataset": "data set",
}
"""Inputs that are digests, and of what."""

FOLLOWING = ("verify.seed", "verify.split")
"""Inputs that come and go with another: a seed with a number of samples, a split with a source that has some."""

# Modules and packages whose code decides a step's result, beside the backend's own.
CODE: dict[str, tuple[str, ...]] = {
    "compile": ("checkpoint", "compiling", "examination", "serving", "weights"),
    "calibration": ("data", "pipeline", "squad"),
    "reference": ("checkpoint", "data", "pipeline", "reference"),
    "verify": (
        *("data", "evidence", "loading", "pipeline", "reference", "roundtrip", "squad", "statistics"),
        "verification",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a plan depends on beside the target."""

    checkpoint: Checkpoint | None
    """None where it is not known yet: a Hub id that was not resolved, a training that was not carried out."""
    stages: tuple[Stage, ...] = ()
    """The trainings that lead to it."""
    data: str | None
    """Digest or commit sha of the data set; None where it is not known yet."""
    calibration: str | None = None
    """The same of the questions that compiling reads, where it reads any."""
    versions: Mapping[str, str]
    code: Mapping[str, str]
    """SHA-256 of each module that takes part in a step."""
    machine: Mapping[str, Any]
    missing: tuple[str, ...]
    """What this machine lacks for the target."""
    kept: frozenset[str]
    """Keys of the results in the store."""
    previous: Mapping[str, Entry | None]
    """The results of the last build under the same name, by step; None for one that is no longer in the store."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a plan."""

    name: str
    key: str | None
    """None where something that decides the result is not known yet."""
    kept: bool
    reason: str
    inputs: Inputs = field(repr=False)
    seconds: float | None
    """How long it took last time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of one target, in order."""

    target: Target
    checkpoint: Checkpoint | None
    stages: tuple[Stage, ...]
    missing: tuple[str, ...]
    steps: tuple[Step, ...]

    @property
    def reads_data(self) -> bool:
        """Whether questions are read before the verification: to learn from them, or for the checkpoint's answers."""
        return not all(step.kept for step in self.steps if step.name != "verify")

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def to_dict(self) -> dict[str, Any]:
        return {
            "target": self.target.name,
            "missing": list(self.missing),
            "steps": [
                {"name": s.name, "key": s.key, "kept": s.kept, "reason": s.reason, "seconds": s.seconds}
                for s in self.steps
            ],
        }


def gather(target: Target, results: Store, name: str, *, fetch: bool, offline: bool = False) -> Facts:
    """Look at everything the plan depends on; with `fetch`, Hub ids are resolved and checkpoints downloaded.

    `name` is that of the build whose previous results count, see `history_name`. Raises what
    `qabuild.models.checkpoint.resolve.resolve` raises, but for a Hub id that is not in the cache when `fetch` is false.
    """
    require_paths(target)
    module = backend(target.backend.name)
    code, here = _code(), machine.describe()
    look = Look(
        target.origin,
        results,
        versions=_packages(versions(options.PACKAGES), options.PACKAGES),
        code={name: _code_of(code, rooms) for name, rooms in training.CODE.items()},
        conditions={name: training.conditions(here, name) for name in get_args(Autocast)},
        fetch=fetch,
        offline=offline,
    )
    checkpoint = look.checkpoint(target.origin)
    if checkpoint is not None:
        module.check(checkpoint.config, target.backend, target.runtime)
    return Facts(
        checkpoint=checkpoint,
        stages=tuple(map(look.stage, trainings(target.origin))),
        data=look.data(target.verify, "verify.dataset"),
        calibration=look.data(target.calibrated.source, "backend.calibration") if target.calibrated else None,
        versions=versions({*stock_pipeline.PACKAGES, *module.PACKAGES}),
        code=code,
        machine=here,
        missing=tuple(packages.missing(needed(target), target.runtime.device)),
        kept=results.keys(),
        previous=results.recall(name),
    )


def make(target: Target, facts: Facts) -> Plan:
    """The steps of `target`. Pure."""
    steps = [_checkpoint_step(facts)]
    for stage in facts.stages:
        steps.extend(_stage_steps(stage, facts, steps))
    for name, inputs in _inputs(target, facts).items():
        steps.append(_step(name, inputs, facts, steps))
    return Plan(
        target=target, checkpoint=facts.checkpoint, stages=facts.stages, missing=facts.missing, steps=tuple(steps)
    )


def current(target: Target, results: Store, name: str, *, offline: bool) -> Plan:
    """The plan of a build that is about to begin: every Hub id is resolved and every checkpoint fetched."""
    return make(target, gather(target, results, name, fetch=True, offline=offline))


def history_name(target: Target, output: Path) -> str:
    """Under which name the store remembers what `target` was last built from into `output`."""
    return f"{target.name}-{hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:16]}"


# --- facts ----------------------------------------------------------------------------------------------------------


def _code() -> dict[str, str]:
    """The version of a step's own code is the code: no number that someone could forget to raise."""
    here = Path(__file__).parent
    return {path.relative_to(here).with_suffix("").as_posix(): files.sha256(path) for path in here.rglob("*.py")}


# --- keys -----------------------------------------------------------------------------------------------------------


def _inputs(target: Target, facts: Facts) -> dict[str, Inputs]:
    """What decides each step after the checkpoint's own, as flat names and values."""
    checkpoint = _identity(facts)
    backend_packages = backend(target.backend.name).PACKAGES
    compiling = {
        "checkpoint": checkpoint,
        **_flat("backend", calibration.sealed(target.backend)),
        **({"calibration": facts.calibration} if target.calibrated else {}),
        **_flat("runtime", target.runtime.model_dump(mode="json")),
        **_packages(facts.versions, {*ask.PACKAGES, *backend_packages}),
        **_kernels(target, facts),
        "code": _code_of(
            facts.code, CODE["compile"] + (CODE["calibration"] if target.calibrated else ()), target.backend.name
        ),
    }
    asking = {
        "checkpoint": checkpoint,
        **_flat("verify", _questions(target, facts)),
        "reference.device": _reference_device(target, facts),
        **_packages(facts.versions, ask.PACKAGES),
        "code": _code_of(facts.code, CODE["reference"]),
    }
    verifying = {
        "compile": None if None in (checkpoint, compiling.get("calibration", "")) else key_of(compiling),
        "reference": key_of(asking) if checkpoint and facts.data else None,
        "verify.stock": target.verify.stock,
        "verify.batch_size": target.verify.batch_size,
        **_flat("machine", {k: v for k, v in facts.machine.items() if k in ("cpu", "cores", "gpus", "driver")}),
        **_packages(facts.versions, facts.versions),
        "code": _code_of(facts.code, CODE["verify"], target.backend.name),
    }
    teaching = {"teacher": {**asking, "checkpoint": _teacher(facts)}} if target.distill else {}
    return {"compile": compiling, "reference": asking, **teaching, "verify": verifying}


def _identity(facts: Facts) -> str | None:
    """The checkpoint's digest, or the key of the training that will make it."""
    if facts.checkpoint is not None:
        return facts.checkpoint.digest
    return facts.stages[-1].key if facts.stages else None


def _teacher(facts: Facts) -> str | None:
    """The digest of the teacher's checkpoint, which answers the questions as a reference too."""
    teacher = facts.stages[-1].teacher
    return teacher.digest if teacher else None


def _questions(target: Target, facts: Facts) -> dict[str, Any]:
    """Which questions, and all that the sealed answers say of where the questions are."""
    verify = target.verify
    return {
        "dataset": facts.data,
        "source": f"the file {Path(verify.dataset).name}" if is_path(verify.dataset) else verify.dataset,
        "split": None if is_path(verify.dataset) else verify.split,  # a file has none
        "samples": verify.samples,
        "seed": verify.seed if verify.samples else None,  # it draws nothing where all are asked
    }


def _reference_device(target: Target, facts: Facts) -> str:
    """The checkpoint answers on the target's device where that is here, on the CPU where it is not."""
    return "cuda" if target.runtime.device == "cuda" and facts.machine.get("gpus") else "cpu"


def _kernels(target: Target, facts: Facts) -> dict[str, Any]:
    """What low-precision kernels and GPU graphs are made for."""
    if target.runtime.device == "cuda":
        return {"gpu architecture": facts.machine.get("gpu_architecture")}
    if target.runtime.dtype == "int8":
        return {"instruction sets": facts.machine["instruction_sets"]}
    return {}


def _packages(versions: Mapping[str, str], packages: Iterable[str]) -> dict[str, str]:
    names = {name for package in packages for name in distributions(package)}
    return {f"package {name}": versions[name] for name in sorted(names) if name in versions}


def _code_of(code: Mapping[str, str], rooms: tuple[str, ...], own_backend: str | None = None) -> str:
    """One digest over the modules of `rooms`, and over those of the backend: what no other backend owns."""
    others = {f"backends/{name}" for name in BACKENDS if name != own_backend}
    wanted = (*rooms, "backends") if own_backend else rooms
    return key_of(
        {
            module: digest
            for module, digest in code.items()
            if module not in others and any(module == room or module.startswith(f"{room}/") for room in wanted)
        }
    )


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


# --- reasons --------------------------------------------------------------------------------------------------------


def _checkpoint_step(facts: Facts) -> Step:
    """What all others follow. Its key is the digest of its bytes, and nothing of it is kept in the store."""
    found = facts.stages[0].start if facts.stages else facts.checkpoint
    if found is None:
        key, reason = None, UNKNOWN
    else:
        key, previous = found.digest, facts.previous.get("train" if facts.stages else "compile")
        changed = previous is not None and previous.inputs.get("checkpoint") != key
        reason = "its bytes changed" if changed else "its bytes are here"
    return Step(name="checkpoint", key=key, kept=key is not None, reason=reason, inputs={}, seconds=None)


def _stage_steps(stage: Stage, facts: Facts, before: list[Step]) -> Iterator[Step]:
    """The steps of one training; those that only lead to it are not needed where its result is kept."""
    for name, inputs in stage.inputs.items():
        step = _step(f"{stage.label}{name}", inputs, facts, before)
        needless = stage.result is not None and name != "train"
        yield replace(step, kept=True, reason=NEEDLESS) if needless else step


def _step(name: str, inputs: Inputs, facts: Facts, before: list[Step]) -> Step:
    previous = facts.previous.get(name)
    unknown = any(inputs.get(part, "") is None for part in UNKNOWN_PARTS)
    key = None if unknown else key_of(inputs)
    return Step(
        name=name,
        key=key,
        kept=key in facts.kept,
        reason=_reason(name, inputs, facts, key, before),
        inputs=inputs,
        seconds=previous.seconds if previous else None,
    )


def _reason(name: str, inputs: Inputs, facts: Facts, key: str | None, before: list[Step]) -> str:
    if key is None:
        return UNKNOWN
    kept, previous = key in facts.kept, facts.previous.get(name)
    if previous is None and kept:
        return "another build made it"
    if previous is None:
        return GONE if name in facts.previous else "not built before"
    trained = any(step.name.endswith("train") for step in before)
    if changes := describe_changes(previous.inputs, inputs, {step.name for step in before[1:]}, trained):
        return "; ".join(changes) + (", and that was built before" if kept else "")
    return "nothing changed" if kept else GONE


def describe_changes(old: Inputs, new: Inputs, steps: set[str], trained: bool = False) -> list[str]:
    """What differs between two sets of inputs, in words; `trained` says that the checkpoint is made by a step."""
    changes = []
    for name in dict.fromkeys([*new, *old]):
        was, now = old.get(name), new.get(name)
        if was == now or (name in FOLLOWING and None in (was, now)):
            continue
        if name in steps or (trained and name == "checkpoint"):
            changes.append(f"follows {name if name in steps else 'train'}")
        elif name in BYTES:
            changes.append(f"the bytes of the {BYTES[name]} changed")
        elif name == "code":
            changes.append("qabuild's own code for this step changed")
        elif name.startswith("package "):
            changes.append(f"{name.removeprefix('package ')} {was or '(none)'} became {now or '(none)'}")
        else:
            changes.append(f"{name}: {_word(was)} became {_word(now)}")
    return changes


def _word(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)
