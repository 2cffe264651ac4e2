"""What a farm runs on a node of its cluster: the node's own view of the targets, and single steps.

Each call has a process of its own. What it is to do arrives pickled, and is read only once the node is known to have
the driver's version of qabuild.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, cast

from qabuild.builder import plan as plans
from qabuild.builder.build import require_machine, sealed_facts
from qabuild.builder.execute import Execution, changed
from qabuild.builder.facts import is_checkpoint
from qabuild.builder.keys import Inputs
from qabuild.builder.plan import Plan
from qabuild.builder.steps.verify import Verify
from qabuild.builder.store import archive
from qabuild.builder.store.local import Entry, Store
from qabuild.builder.store.remote import WITHOUT_IT, Remote, open_store
from qabuild.errors import QABuildError
from qabuild.system.reporter import Advance
from qabuild.system.version import VERSION
from qabuild.target.model import Target

Views = Mapping[str, Mapping[str, Inputs] | str]
"""By the name of a target: the inputs of its steps, or why it cannot be built here."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A look at targets."""

    targets: tuple[Target, ...]
    compile_only: bool


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """A step to be made."""

    target: Target
    name: str
    key: str
    owner: str
    """Of the leases."""
    environment: Mapping[str, str | None]
    """Variables to set, or to unset."""
    results: Mapping[str, bytes]
    """By key, the packed results that it follows and that the remote cache does not share."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A step that is made, and whose result is in the remote cache."""

    seconds: float
    cached: bool
    content: bytes | None
    """The packed result, if the remote cache does not share those of this step."""
    remarks: tuple[str, ...]


def view(version: str, work: bytes) -> Views:
    """How this node sees the targets of a pickled `View`. Raises QABuildError with another version of qabuild."""
    asked: View = _opened(version, work)
    return {target.name: _view(target, asked.compile_only) for target in asked.targets}


def make(version: str, work: bytes) -> Made:
    """Make the step of a pickled `StepWork`. Raises what the step raises, and QABuildError without the remote cache."""
    asked: StepWork = _opened(version, work)
    for name, value in asked.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    remarks = _Remarks()
    store = open_store(reporter=remarks, owner=asked.owner)
    remote = store.remote
    assert remote is not None
    for key, result in asked.results.items():
        receive(store, key, result)
    cached = store.find(asked.key) is not None or store.fetch(asked.name, asked.key) is not None
    _require_use(remote, remarks)
    entry = _result(asked, store, remarks)
    store.share(asked.name, asked.key)  # it may have been in this node's store all along
    _require_use(remote, remarks)
    content = None if remote.shares(asked.name) else packed(store, asked.key)
    return Made(seconds=entry.seconds, cached=cached, content=content, remarks=tuple(remarks.messages))


def inputs_from_scratch(target: Target) -> dict[str, Inputs]:
    """The inputs of the steps of a target, by name, as if nothing were cached: on like machines they are the same."""
    with tempfile.TemporaryDirectory(prefix="qabuild-") as empty:
        plan = plans.current(target, Store(Path(empty)), "", offline=False)
    return {step.name: step.inputs for step in plan.steps if step.inputs}


def packed(store: Store, key: str) -> bytes:
    """The result with that key, which the store has, as it travels between driver and nodes."""
    content = BytesIO()
    archive.write(store.folder(key), content, None)
    return content.getvalue()


def receive(store: Store, key: str, content: bytes) -> None:
    """Take the packed result with that key, in place of the own one. Raises QABuildError for a damaged one."""

    def unpack(stage: Path) -> None:
        with BufferedReader(cast(Any, BytesIO(content))) as file:
            archive.read(file, key, stage, None)

    try:
        store.receive(key, unpack)
    except archive.Refused as error:
        raise QABuildError(f"the result {key[:16]} arrived damaged: {error}", "run the same command again") from None


def _opened(version: str, work: bytes) -> Any:
    if version != VERSION:
        raise QABuildError(f"has qabuild {VERSION}, not {version}", f"pip install qabuild=={version} there")
    return pickle.loads(work)


def _view(target: Target, compile_only: bool) -> dict[str, Inputs] | str:
    try:
        require_machine(target, compile_only)
        return inputs_from_scratch(target)
    except QABuildError as error:
        return error.message
    except OSError as error:
        return str(error)


def _result(asked: StepWork, store: Store, remarks: _Remarks) -> Entry:
    name = plans.history_name(asked.target, store.root)
    execution = Execution(store=store, name=name, offline=False, reporter=remarks)
    plan = _plan(asked, store, name)
    remarks.routine = tuple(f"{step.name}: {what}" for step in plan.steps for what in ("cached (", step.reason))
    if asked.name == Verify.name:
        return _measured(asked.key, plan, execution)
    return execution.make_step(plan, asked.name, asked.key)


def _plan(asked: StepWork, store: Store, name: str) -> Plan:
    """The plan in which the step has the key that the driver states, if its checkpoint is in the remote cache.

    This node may have made the checkpoint before: a training need not give the same bytes on two machines. All go on
    from that of the remote cache.
    """
    plan = plans.current(asked.target, store, name, offline=False)
    for number in range(len(plan.facts.derivations)):
        if plan.step(asked.name).key == asked.key:
            break
        derivation = plan.facts.derivations[number]
        step = f"{derivation.label}{derivation.derived.stage}"
        if derivation.key and store.fetch(step, derivation.key, is_checkpoint, replace=True):
            plan = plans.current(asked.target, store, name, offline=False)
    return plan


def _measured(key: str, plan: Plan, execution: Execution) -> Entry:
    """The measurement of the artifact, which is assembled here for that time."""
    plan = execution.make_checkpoint(plan)
    if plan.step(Verify.name).key != key:
        raise changed(Verify.name)
    stage = execution.store.work(key) / "artifact"
    with execution.store.lock(f"{key}.artifact"):
        try:
            shutil.rmtree(stage, ignore_errors=True)  # what a killed one left
            stage.mkdir(parents=True)
            return execution.measure(execution.assemble(plan, stage, sealed_facts(plan)), plan)
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def _require_use(remote: Remote, remarks: _Remarks) -> None:
    if not remote.writes:
        raise QABuildError(
            remarks.messages[-1].removesuffix(WITHOUT_IT) if remarks.messages else "the remote cache is read-only here",
            "every node must reach QABUILD_REMOTE_CACHE and may write there",
        )


@dataclass(kw_only=True)
class _Remarks:
    """A reporter that keeps what is said, for the driver to repeat, without what it says itself."""

    routine: tuple[str, ...] = ()
    """How messages begin that are not kept."""
    messages: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        if not message.startswith(self.routine):
            self.messages.append(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Advance]:
        yield lambda count: None
