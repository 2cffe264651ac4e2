"""What a build would do, and why.

`gather` looks: at the checkpoint's bytes, installed versions, what the store holds, what was built before. `make` is
pure: from a target and those facts it makes the steps, each with the key of all that decides its result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild import artifact as artifacts
from qabuild import machine, reference, roundtrip
from qabuild.backends import BACKENDS, backend
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.hub import commit, is_path
from qabuild.sample import HELDOUT, TRAIN
from qabuild.store import Entry, Inputs, Store, key_of
from qabuild.target import Target

if TYPE_CHECKING:
    from qabuild.checkpoint import Checkpoint

STEPS = ("compile", "reference", "verify")

UNKNOWN = "unknown until its Hub id is resolved"

# Modules and packages whose code decides a step's result, beside the backend's own.
CODE: dict[str, tuple[str, ...]] = {
    "compile": ("checkpoint", "compiling", "examination", "serving", "weights"),
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
    """None where it is not known yet: a Hub id that was not resolved."""
    data: str | None
    """Digest or commit sha of the data set; None where it is not known yet."""
    versions: Mapping[str, str]
    code: Mapping[str, str]
    """SHA-256 of each module that takes part in a step."""
    machine: Mapping[str, Any]
    missing: tuple[str, ...]
    """What this machine lacks for the target."""
    kept: frozenset[str]
    """Keys of the results in the store."""
    previous: Mapping[str, Entry]
    """The results of the last build under the same name, by step."""


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
    missing: tuple[str, ...]
    steps: tuple[Step, ...]

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
    `qabuild.checkpoint.resolve` raises, but for a Hub id that is not in the cache when `fetch` is false.
    """
    module = backend(target.backend.name)
    checkpoint = _checkpoint(target, fetch=fetch, offline=offline)
    if checkpoint is not None:
        module.check(checkpoint.config, target.backend, target.runtime)
    return Facts(
        checkpoint=checkpoint,
        data=_data(target, fetch=fetch, offline=offline),
        versions=machine.versions({*roundtrip.PACKAGES, *module.PACKAGES}),
        code=_code(),
        machine=machine.describe(),
        missing=tuple(machine.missing(module.PACKAGES, target.runtime.device)),
        kept=results.keys(),
        previous=results.recall(name),
    )


def make(target: Target, facts: Facts) -> Plan:
    """The steps of `target`. Pure."""
    steps = [_checkpoint_step(facts)]
    for name, inputs in zip(STEPS, _inputs(target, facts), strict=True):
        steps.append(_step(name, inputs, facts, steps))
    return Plan(target=target, checkpoint=facts.checkpoint, missing=facts.missing, steps=tuple(steps))


def history_name(target: Target, output: Path) -> str:
    """Under which name the store remembers what `target` was last built from into `output`."""
    return f"{target.name}-{hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:16]}"


# --- facts ----------------------------------------------------------------------------------------------------------


def _checkpoint(target: Target, *, fetch: bool, offline: bool) -> Checkpoint | None:
    from qabuild.checkpoint import resolve

    model, revision, digest = target.checkpoint.model, target.checkpoint.revision, target.checkpoint.digest
    if fetch or is_path(model) or model == "sample":
        return resolve(model, revision, digest=digest, offline=offline)
    try:
        return resolve(model, revision, digest=digest, offline=True)
    except QABuildError as error:
        _require_unknown(error)
        return None


def _data(target: Target, *, fetch: bool, offline: bool) -> str | None:
    """What identifies the data set, without reading it: the digest of a file, the commit of a Hub repository."""
    source, split = target.verify.dataset, target.verify.split
    if source == "sample":
        return artifacts.sha256(TRAIN if split == "train" else HELDOUT)
    if is_path(source):
        try:
            return artifacts.sha256(Path(source))
        except OSError as error:
            raise BadTarget(f"{source}: {error.strerror}", "let verify.dataset name a SQuAD-layout file") from None
    try:
        return commit(source, target.verify.revision, "dataset", offline=offline or not fetch)
    except QABuildError as error:
        if fetch:
            raise
        _require_unknown(error)
        return None


def _require_unknown(error: QABuildError) -> None:
    """Pass only what a network would mend; an id that is none, or a damaged checkpoint, is wrong now."""
    if isinstance(error, (BadTarget, UntrustedInput)):
        raise error


def _code() -> dict[str, str]:
    """The version of a step's own code is the code: no number that someone could forget to raise."""
    here = Path(__file__).parent
    return {path.relative_to(here).with_suffix("").as_posix(): artifacts.sha256(path) for path in here.rglob("*.py")}


# --- keys -----------------------------------------------------------------------------------------------------------


def _inputs(target: Target, facts: Facts) -> tuple[Inputs, Inputs, Inputs]:
    """What decides compiling, the reference and the verification, as flat names and values."""
    checkpoint = facts.checkpoint.digest if facts.checkpoint else None
    backend_packages = backend(target.backend.name).PACKAGES
    compiling = {
        "checkpoint": checkpoint,
        **_flat("backend", target.backend.model_dump(mode="json")),
        **_flat("runtime", target.runtime.model_dump(mode="json")),
        **_packages(facts, {*reference.PACKAGES, *backend_packages}),
        **_kernels(target, facts),
        "code": _code_of(facts, CODE["compile"], target.backend.name),
    }
    asking = {
        "checkpoint": checkpoint,
        **_flat("verify", _questions(target, facts)),
        "reference.device": _reference_device(target, facts),
        **_packages(facts, reference.PACKAGES),
        "code": _code_of(facts, CODE["reference"]),
    }
    verifying = {
        "compile": key_of(compiling) if checkpoint else None,
        "reference": key_of(asking) if checkpoint and facts.data else None,
        "verify.stock": target.verify.stock,
        "verify.batch_size": target.verify.batch_size,
        **_flat("machine", {k: v for k, v in facts.machine.items() if k in ("cpu", "cores", "gpus", "driver")}),
        **_packages(facts, facts.versions),
        "code": _code_of(facts, CODE["verify"], target.backend.name),
    }
    return compiling, asking, verifying


def _questions(target: Target, facts: Facts) -> dict[str, Any]:
    """Which questions, and all that the sealed answers say of where the questions are."""
    verify = target.verify
    return {
        "dataset": facts.data,
        "source": f"the file {Path(verify.dataset).name}" if is_path(verify.dataset) else verify.dataset,
        "split": verify.split,
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


def _packages(facts: Facts, packages: Iterable[str]) -> dict[str, str]:
    names = {name for package in packages for name in machine.distributions(package)}
    return {f"package {name}": facts.versions[name] for name in sorted(names) if name in facts.versions}


def _code_of(facts: Facts, rooms: tuple[str, ...], own_backend: str | None = None) -> str:
    """One digest over the modules of `rooms`, and over those of the backend: what no other backend owns."""
    others = {f"backends/{name}" for name in BACKENDS if name != own_backend}
    wanted = (*rooms, "backends") if own_backend else rooms
    return key_of(
        {
            module: digest
            for module, digest in facts.code.items()
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
    if facts.checkpoint is None:
        key, reason = None, UNKNOWN
    else:
        key, previous = facts.checkpoint.digest, facts.previous.get("compile")
        changed = previous is not None and previous.inputs.get("checkpoint") != key
        reason = "its bytes changed" if changed else "its bytes are here"
    return Step(name="checkpoint", key=key, kept=key is not None, reason=reason, inputs={}, seconds=None)


def _step(name: str, inputs: Inputs, facts: Facts, before: list[Step]) -> Step:
    previous = facts.previous.get(name)
    unknown = any(inputs.get(part, "") is None for part in ("checkpoint", "verify.dataset", "compile", "reference"))
    key = None if unknown else key_of(inputs)
    kept = key in facts.kept
    return Step(
        name=name,
        key=key,
        kept=kept,
        reason=_reason(inputs, previous, unknown, kept, before),
        inputs=inputs,
        seconds=previous.seconds if previous else None,
    )


def _reason(inputs: Inputs, previous: Entry | None, unknown: bool, kept: bool, before: list[Step]) -> str:
    if unknown:
        return UNKNOWN
    if previous is None:
        return "another build made it" if kept else "not built before"
    if changes := describe_changes(previous.inputs, inputs, {step.name for step in before[1:]}):
        return "; ".join(changes) + (", and that was built before" if kept else "")
    return "nothing changed" if kept else "its result is no longer in the store"


def describe_changes(old: Inputs, new: Inputs, steps: set[str]) -> list[str]:
    """What differs between two sets of inputs, in words."""
    changes = []
    for name in dict.fromkeys([*new, *old]):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        if name in steps:
            changes.append(f"follows {name}")
        elif name in ("checkpoint", "verify.dataset"):
            changes.append(f"the bytes of the {'checkpoint' if name == 'checkpoint' else 'data set'} changed")
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
