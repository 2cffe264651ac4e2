"""Builds a target: plan, make its checkpoint, assemble, verify, promote. The screen to read first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import measurements, staging
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact
from qabuild.artifact.validation import judged_evidence
from qabuild.builder import plan as plans
from qabuild.builder.plan import Plan
from qabuild.builder.requirements import missing, requirements
from qabuild.builder.steps import verify as measured
from qabuild.builder.steps.step import described, require_checkpoint
from qabuild.builder.store.local import Store
from qabuild.builder.store.remote import open_store
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models import calibration
from qabuild.system import packages
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.version import VERSION
from qabuild.target import lock
from qabuild.target.lineage import Derived
from qabuild.target.model import Target

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


SEALED = ("compile", "reference", "original", "deviation")
"""The steps whose results the manifest seals."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build left behind."""

    directory: Path
    """artifacts/NAME, or artifacts/NAME.failed."""
    plan: Plan
    manifest: str
    """Digest of the manifest."""
    verification: Verification | None
    """None where the artifact was compiled only."""
    cached: bool
    """Whether everything was there already."""


def build(
    target: Target | str | Path,
    output: str | Path = artifacts.FOLDER,
    *,
    compile_only: bool = False,
    locked: bool = False,
    offline: bool = False,
    results: Store | None = None,
    reporter: Reporter = SILENT,
) -> Built:
    """Build `target`, a path or what was read from one, into `output`/NAME, and verify it.

    A path is read through its lock, and with `locked` through nothing else; see `qabuild.target.lock`. Results of steps
    come from the store `results`, by default this machine's, with the remote cache that QABUILD_REMOTE_CACHE names.

    Raises MissingEnvironment before any work where this machine lacks what the target needs (with `compile_only`,
    a missing device is no hindrance), and whatever the steps raise. An artifact whose verification fails is returned,
    not raised: it lies in NAME.failed, and NAME is as it was.
    """
    target = target if isinstance(target, Target) else lock.load(target, locked=locked)
    store = results or open_store(offline=offline, reporter=reporter)
    goal = Path(output) / target.name
    require_machine(target, compile_only)
    staging.require_ours(goal)
    name = plans.history_name(target, goal.parent)
    with store.lock(name, wait=False, what=f"another build of {goal}"), staging.disk_explained(goal.parent):
        staging.clean_up(goal)
        plan = plans.current(target, store, name, offline=offline)
        if built := already_built(goal, plan, store, compile_only):
            reporter.say(f"{goal}: nothing to do")
            return built
        staging.require_writable(goal.parent)
        # Only now: a build with nothing to do is over before they are imported.
        from qabuild.builder import leakage
        from qabuild.builder.execute import Execution

        execution = Execution(store=store, name=name, offline=offline, reporter=reporter)
        if plan.reads_data:
            leakage.refuse_leakage(target, offline=offline)
        plan = execution.make_checkpoint(plan)
        with staging.staged(goal) as stage:
            artifact = execution.assemble(plan, stage, sealed_facts(plan))
            verification = None if compile_only else execution.verify(artifact, plan)
            store.remember(name, {step.name: step.key for step in plan.steps if step.key and step.inputs})
            directory = staging.promote(stage, goal, passed=verification is None or verification.passed)
    return Built(directory=directory, plan=plan, manifest=artifact.digest, verification=verification, cached=False)


def train(
    target: Target | str | Path,
    *,
    locked: bool = False,
    offline: bool = False,
    results: Store | None = None,
    reporter: Reporter = SILENT,
) -> Checkpoint:
    """The checkpoint that a build of `target` would compile, trained if need be, and nothing further.

    Raises what the trainings raise, BadTarget where they would learn from questions of the verification, and
    MissingEnvironment where this machine lacks what the target needs.
    """
    from qabuild.builder import leakage
    from qabuild.builder.execute import Execution

    target = target if isinstance(target, Target) else lock.load(target, locked=locked)
    store = results or open_store(offline=offline, reporter=reporter)
    if not isinstance(target.origin, Derived):
        raise BadTarget(f"{target.name}: trains nothing", "give it a table [train], or build it")
    require_machine(target, compile_only=True)
    name = plans.history_name(target, store.root)
    execution = Execution(store=store, name=name, offline=offline, reporter=reporter)
    plan = plans.current(target, store, name, offline=offline)
    if plan.checkpoint is None:  # what is learnt from would be refused by the build
        leakage.refuse_leakage(target, offline=offline)
    return require_checkpoint(execution.make_checkpoint(plan).checkpoint)


def sealed_facts(plan: Plan) -> Mapping[str, Any]:
    """What the manifest says of the target and of who builds it."""
    return {**_target_facts(plan), "qabuild": VERSION}


def require_machine(target: Target, compile_only: bool) -> None:
    """Raise MissingEnvironment where this machine lacks what building `target` takes."""
    if compile_only:
        packages.require(requirements(target), "cpu")
    else:
        packages.refuse(missing(target))


def already_built(goal: Path, plan: Plan, store: Store, compile_only: bool) -> Built | None:
    """The artifact under its final name, if it is whole, is what the plan would make, and has passed.

    Evidence that does not hold, or whose measurement is neither of this machine nor in the store, is no result.
    """
    try:
        artifact = artifacts.open_artifact(goal)
    except (QABuildError, OSError):
        return None
    facts = _target_facts(plan)
    if None in facts["steps"].values():
        return None
    if any(getattr(artifact.manifest, name) != value for name, value in facts.items()):
        return None
    if not _is_made_so(artifact, plan, store) or any(map(store.refuses, facts["steps"].values())):
        return None
    try:
        evidence = judged_evidence(artifact)
    except UntrustedInput:
        evidence = None
    current = (
        evidence is not None
        and evidence.passed
        and evidence.key == plan.step("verify").key
        and _is_measured(artifact, evidence, store)
    )
    if not current and not compile_only:
        return None
    return Built(
        directory=goal, plan=plan, manifest=artifact.digest, verification=evidence if current else None, cached=True
    )


def _is_made_so(artifact: Artifact, plan: Plan, store: Store) -> bool:
    """Whether the manifest says of the artifact what a build would say now, though the same steps made it."""
    manifest, target = artifact.manifest, plan.target
    reference = store.find(plan.step("reference").key or "")
    return (
        plan.checkpoint is not None
        and manifest.checkpoint == described(plan.checkpoint)
        and manifest.backend == calibration.options_record(target.backend)
        and manifest.runtime == target.runtime
        and (reference is None or manifest.answer == reference.record["answer"])
    )


def _is_measured(artifact: Artifact, evidence: Verification, store: Store) -> bool:
    """Whether the measurement was made on this machine or is in the store, and was not written by hand."""
    if measurements.is_registered(artifact, evidence.measurement):
        return True
    entry = store.find_intact(evidence.key) if evidence.key else None
    return entry is not None and measured.is_of(entry, artifact) and measured.read(entry) == evidence.measurement


def _target_facts(plan: Plan) -> Mapping[str, Any]:
    """What the manifest says of the target: keys of the steps that decide files, and what changes without a step.

    An artifact of which this holds need not be built again.
    """
    target = plan.target
    return {
        "name": target.name,
        # Where the questions are, and which they are, the reference says.
        "verify": target.verify.model_dump(mode="json", exclude={"dataset", "revision", "fingerprint"}),
        "publish": target.publish.model_dump(mode="json"),
        "steps": {step.name: step.key for step in plan.steps if step.name in SEALED},
    }
