"""Carries out a plan: checkpoint, compile, reference, seal, verify, name."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qabuild
from qabuild import artifact as artifacts
from qabuild import data, hub, machine, plan, reference, verification
from qabuild.artifact import Artifact
from qabuild.checkpoint import Checkpoint, load_model, load_tokenizer
from qabuild.compiling import compile_apart
from qabuild.console import SILENT, Reporter
from qabuild.errors import QABuildError, VerificationFailed
from qabuild.evidence import Measurement, Verification
from qabuild.plan import Plan, Step
from qabuild.store import Entry, Store, place
from qabuild.target import Target
from qabuild.target import load as load_target

MEASUREMENT = "measurement.json"


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
    kept: bool
    """Whether everything was there already."""


def build(
    target: Target | str | Path,
    output: Path = Path("artifacts"),
    *,
    compile_only: bool = False,
    offline: bool = False,
    results: Store | None = None,
    reporter: Reporter = SILENT,
) -> Built:
    """Build `target`, a path or what was read from one, into `output`/NAME, and prove it.

    Raises MissingEnvironment before any work where this machine lacks what the target needs (with `compile_only`,
    a missing device is no hindrance), and whatever the steps raise. An artifact whose verification fails is returned,
    not raised: it lies in NAME.failed, and NAME is as it was.
    """
    target = target if isinstance(target, Target) else load_target(target)
    results = results or Store()
    _require_machine(target, compile_only)
    name = plan.history_name(target, output)
    with results.lock(name, wait=False):
        facts = plan.gather(target, results, name, fetch=True, offline=offline)
        made = plan.make(target, facts)
        goal = output / target.name
        if kept := _kept(goal, made, compile_only):
            reporter.say(f"{goal}: nothing to do")
            return Built(directory=goal, plan=made, manifest=kept[0].digest, verification=kept[1], kept=True)
        with _staged(goal) as stage:
            artifact = _assemble(made, results, stage, offline, reporter)
            found = None if compile_only else _verify(artifact, made, results, offline, reporter)
            landed = _name(stage, goal, passed=found is None or found.passed)
            results.remember(name, {step.name: step.key for step in made.steps if step.key})
    return Built(directory=landed, plan=made, manifest=artifact.digest, verification=found, kept=False)


def require_passed(built: Built) -> None:
    """Raise VerificationFailed where the build's verification did not pass, saying which questions to look at."""
    if built.verification and not built.verification.passed:
        raise VerificationFailed(*verification.explain_failure(built.verification, built.directory))


# --- steps ----------------------------------------------------------------------------------------------------------


def _require_machine(target: Target, compile_only: bool) -> None:
    from qabuild.backends import backend

    device = "cpu" if compile_only else target.runtime.device
    machine.require(backend(target.backend.name).PACKAGES, device)


def _assemble(made: Plan, results: Store, stage: Path, offline: bool, reporter: Reporter) -> Artifact:
    """Compile and reference, from the store or made now, in one sealed folder."""
    checkpoint, target = _known(made.checkpoint), made.target
    compiled = _carry_out(
        made.step("compile"),
        results,
        reporter,
        lambda folder: compile_apart(checkpoint, target.backend, target.runtime, folder),
    )
    answered = _carry_out(
        made.step("reference"), results, reporter, lambda folder: _refer(made, folder, offline, reporter)
    )
    place(compiled, stage)
    place(answered, stage / reference.FOLDER)
    artifact = artifacts.seal(stage, **_manifest(made, compiled))
    _hold_against_store(artifact, results, compiled, answered)
    return artifact


def _carry_out(step: Step, results: Store, reporter: Reporter, produce: Any) -> Entry:
    if step.kept and step.key and (entry := results.find(step.key)):
        reporter.say(f"{step.name}: kept ({step.reason})")
        return entry
    expected = f", took {step.seconds:.0f} s last time" if step.seconds else ""
    reporter.say(f"{step.name}: {step.reason}{expected}")
    return results.make(step.name, step.inputs, produce)


def _refer(made: Plan, folder: Path, offline: bool, reporter: Reporter) -> Mapping[str, Any]:
    checkpoint, target = _known(made.checkpoint), made.target
    questions = data.load(
        target.verify.dataset,
        revision=target.verify.revision,
        split=target.verify.split,
        samples=target.verify.samples,
        seed=target.verify.seed,
        offline=offline,
    )
    described = {
        "dataset": questions.name,
        "file": hub.is_path(target.verify.dataset),
        "revision": questions.revision,
        "split": questions.split,
        "samples": len(questions),
        "seed": target.verify.seed if target.verify.samples else None,
        "fingerprint": questions.fingerprint,
    }
    model = load_model(checkpoint).to(made.step("reference").inputs["reference.device"])
    tokenizer = load_tokenizer(checkpoint.directory)
    reference.make(model, tokenizer, questions, described, folder, reporter)
    return {}


def _verify(artifact: Artifact, made: Plan, results: Store, offline: bool, reporter: Reporter) -> Verification:
    """Measure what was staged, or take a measurement of the very same files from the store, and judge it."""
    step, target = made.step("verify"), made.target
    files = {name: file.sha256 for name, file in artifact.manifest.files.items()}

    def produce(folder: Path) -> Mapping[str, Any]:
        questions = verification.find_questions(artifact, target.verify.dataset, offline=offline)
        baseline = load_model(_known(made.checkpoint)).to(target.runtime.device)
        measurement = verification.measure(artifact, questions, baseline, reporter)
        (folder / MEASUREMENT).write_text(json.dumps(measurement.to_dict(), ensure_ascii=False), encoding="utf-8")
        return {"files": files}

    # The key says how the files came about; whether they are the very bytes that were measured, only the bytes say.
    if step.key and (entry := results.find(step.key)) and entry.record["files"] != files:
        results.drop(step.key)
    measured = _carry_out(step, results, reporter, produce)
    document = json.loads((measured.directory / MEASUREMENT).read_text(encoding="utf-8"))
    found = verification.judge(artifact, Measurement.from_dict(document), target.verify.gates, step.key)
    verification.write(found, artifact.directory)
    return found


def _manifest(made: Plan, compiled: Entry) -> dict[str, Any]:
    checkpoint, target = _known(made.checkpoint), made.target
    return {
        "name": target.name,
        "qabuild": qabuild.__version__,
        "checkpoint": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "digest": checkpoint.digest,
            "model_type": checkpoint.config.get("model_type"),
        },
        "backend": target.backend.model_dump(mode="json"),
        "runtime": target.runtime.model_dump(mode="json"),
        "verify": target.verify.model_dump(mode="json", exclude={"dataset"}),
        "publish": target.publish.model_dump(mode="json"),
        "record": compiled.record,
        "versions": {n.removeprefix("package "): v for n, v in compiled.inputs.items() if n.startswith("package ")},
        "steps": {step.name: step.key for step in made.steps if step.name != "verify"},
    }


def _hold_against_store(artifact: Artifact, results: Store, compiled: Entry, answered: Entry) -> None:
    """A result whose bytes changed in the store is dropped, so that the next build makes it anew."""
    sealed = artifact.manifest.files
    for entry, prefix in ((compiled, ""), (answered, f"{reference.FOLDER}/")):
        if any(sealed.get(prefix + name) != file for name, file in entry.files.items()):
            results.drop(entry.key)
            raise QABuildError(
                f"the store's result of {entry.step} ({entry.key[:16]}) was changed after it was made; it is dropped",
                "build again: that step will be done anew",
            )


# --- the artifact's name --------------------------------------------------------------------------------------------


def _kept(goal: Path, made: Plan, compile_only: bool) -> tuple[Artifact, Verification | None] | None:
    """The artifact under its final name, if it is whole, is what the plan would make, and was proved as it would be."""
    steps = {step.name: step.key for step in made.steps if step.name != "verify"}
    try:
        artifact = artifacts.open_artifact(goal)
    except QABuildError:
        return None
    wanted = _manifest_of_target(made)
    manifest = artifact.manifest
    if (
        dict(manifest.steps) != steps
        or None in steps.values()
        or any(getattr(manifest, k) != v for k, v in wanted.items())
    ):
        return None
    evidence = artifact.evidence
    if compile_only and evidence is None:
        return artifact, None
    verify_key = made.step("verify").key
    if evidence is None or not evidence.get("passed") or evidence.get("key") != verify_key:
        return None
    return artifact, Verification.from_dict(evidence)


def _manifest_of_target(made: Plan) -> dict[str, Any]:
    """What a changed target changes in the manifest without changing a step: gates, and where to publish."""
    target = made.target
    return {
        "verify": target.verify.model_dump(mode="json", exclude={"dataset"}),
        "publish": target.publish.model_dump(mode="json"),
    }


@contextmanager
def _staged(goal: Path) -> Iterator[Path]:
    """An empty folder beside `goal`, gone afterwards; what a killed build left there is removed first."""
    stage = goal.with_name(f".{goal.name}.partial")
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _name(stage: Path, goal: Path, *, passed: bool) -> Path:
    """Give what was staged its name: NAME where it passed, NAME.failed where it did not."""
    landed = goal if passed else goal.with_name(f"{goal.name}.failed")
    if landed.exists():
        _exchange(stage, landed)  # what had the name is now at `stage`, and goes with it
    else:
        os.rename(stage, landed)
    if passed:
        shutil.rmtree(goal.with_name(f"{goal.name}.failed"), ignore_errors=True)
    return landed


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step, so that a kill leaves either the old artifact or the new (renameat2, Linux)."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        done = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0
    except AttributeError:
        done = False
    if not done:  # another system or file system: the name is free for a moment
        aside = other.with_name(f".{other.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(other, aside)
        os.rename(one, other)
        shutil.rmtree(aside, ignore_errors=True)


def _known(checkpoint: Checkpoint | None) -> Checkpoint:
    if checkpoint is None:
        raise AssertionError("a plan that is carried out knows its checkpoint")
    return checkpoint
