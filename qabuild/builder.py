"""Carries out a plan: checkpoint, train, compile, reference, seal, verify, name."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import qabuild
from qabuild import artifact as artifacts
from qabuild import data, doctor, handwritten, hub, lock, machine, plan, reference, serving, squad, verification
from qabuild.artifact import Artifact
from qabuild.backends import calibration
from qabuild.backends.calibration import Calibrated
from qabuild.checkpoint import Checkpoint, load_model, load_tokenizer
from qabuild.compiling import compile_apart
from qabuild.console import SILENT, Reporter
from qabuild.errors import BadTarget, QABuildError
from qabuild.evidence import Measurement, Verification
from qabuild.origin import Trained
from qabuild.plan import Plan, Step
from qabuild.store import Entry, Store, explained, key_of, place
from qabuild.target import Target
from qabuild.training import examples
from qabuild.training.apart import carry_out
from qabuild.training.request import Request
from qabuild.training.steps import Stage, StepName

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
    output: str | Path = "artifacts",
    *,
    compile_only: bool = False,
    locked: bool = False,
    offline: bool = False,
    results: Store | None = None,
    reporter: Reporter = SILENT,
) -> Built:
    """Build `target`, a path or what was read from one, into `output`/NAME, and prove it.

    A path is read through its lock, and with `locked` through nothing else; see `qabuild.lock`.

    Raises MissingEnvironment before any work where this machine lacks what the target needs (with `compile_only`,
    a missing device is no hindrance), and whatever the steps raise. An artifact whose verification fails is returned,
    not raised: it lies in NAME.failed, and NAME is as it was.
    """
    target = target if isinstance(target, Target) else lock.load(target, locked=locked)
    results = results or Store()
    goal = Path(output) / target.name
    _require_machine(target, compile_only)
    _require_ours(goal)
    name = plan.history_name(target, goal.parent)
    with results.lock(name, wait=False, what=str(goal)), _explained(goal.parent):
        _clean_up(goal)
        made = _plan(target, results, name, offline)
        if kept := _kept(goal, made, compile_only):
            reporter.say(f"{goal}: nothing to do")
            return kept
        if not all(step.kept for step in made.steps if step.name != "verify"):
            _refuse_learning_from_asked(made, offline)
        made = _train(made, results, name, offline, reporter)
        with _staged(goal) as stage:
            artifact = _assemble(made, results, stage, offline, reporter)
            found = None if compile_only else _verify(artifact, made, results, offline, reporter)
            results.remember(name, {step.name: step.key for step in made.steps if step.key and step.inputs})
            landed = _name(stage, goal, passed=found is None or found.passed)
    return Built(directory=landed, plan=made, manifest=artifact.digest, verification=found, kept=False)


def train(
    target: Target | str | Path,
    *,
    locked: bool = False,
    offline: bool = False,
    results: Store | None = None,
    reporter: Reporter = SILENT,
) -> Checkpoint:
    """The checkpoint that a build of `target` would compile, trained if need be, and nothing further.

    Raises what the trainings raise, MissingEnvironment where this machine lacks what the target needs.
    """
    target = target if isinstance(target, Target) else lock.load(target, locked=locked)
    results = results or Store()
    if not isinstance(target.origin, Trained):
        raise BadTarget(f"{target.name}: trains nothing", "give it a table [train], or build it")
    _require_machine(target, compile_only=True)
    name = plan.history_name(target, results.root)
    return _known(_train(_plan(target, results, name, offline), results, name, offline, reporter).checkpoint)


# --- steps ----------------------------------------------------------------------------------------------------------


def _require_machine(target: Target, compile_only: bool) -> None:
    if compile_only:
        machine.require(plan.needed(target), "cpu")
    else:
        machine.refuse(doctor.missing(target))


def _require_ours(goal: Path) -> None:
    """Refuse to put an artifact in the place of anything else: what had the name is deleted."""
    for path in (goal, _failed(goal)):
        if os.path.lexists(path) and not (path / artifacts.MANIFEST).is_file():
            raise BadTarget(
                f"{path}: is not an artifact, and would be replaced by one",
                "move it away, or name another folder with --output",
            )


def _plan(target: Target, results: Store, name: str, offline: bool) -> Plan:
    return plan.make(target, plan.gather(target, results, name, fetch=True, offline=offline))


def _train(made: Plan, results: Store, name: str, offline: bool, reporter: Reporter) -> Plan:
    """Carry out the trainings that lead to the checkpoint, each once those before it are known."""
    for number in range(len(made.stages)):
        stage = made.stages[number]
        steps = {each: made.step(f"{stage.label}{each}") for each in stage.inputs}
        if not (steps["train"].kept and results.find_whole(steps["train"].key or "")):
            _carry_out_training(stage, steps, results, offline, reporter)
            made = _plan(made.target, results, name, offline)
        else:
            reporter.say(f"{steps['train'].name}: kept ({steps['train'].reason})")
    return made


def _carry_out_training(
    stage: Stage, steps: Mapping[StepName, Step], results: Store, offline: bool, reporter: Reporter
) -> None:
    found: dict[str, Entry] = {}

    def produce(name: StepName, folder: Path) -> Mapping[str, Any]:
        inputs, distill = stage.inputs[name], stage.trained.distill
        searched = found["search"].record if "search" in found else {}
        request = Request(
            step=name,
            start=_known(stage.start),
            teacher=stage.teacher,
            train=stage.trained.train,
            distill=distill and distill.model_copy(update=searched.get("best", {})),
            device=inputs["train.device"],
            dtype=inputs["train.dtype"],
            logits=found["logits"].directory if "logits" in found else None,
            work=results.work(key_of(inputs)),
            directory=folder,
            offline=offline,
        )
        trials = {"search": searched["trials"]} if searched else {}
        return {**carry_out(request, reporter), **trials}

    for name, step in steps.items():
        found[name] = _carry_out(step, results, reporter, partial(produce, name))


def _assemble(made: Plan, results: Store, stage: Path, offline: bool, reporter: Reporter) -> Artifact:
    """Compile and reference, from the store or made now, in one sealed folder."""
    compiled = _carry_out(made.step("compile"), results, reporter, lambda folder: _compile(made, folder))
    answered = _carry_out(
        made.step("reference"),
        results,
        reporter,
        lambda folder: _refer(made, _known(made.checkpoint), folder, offline, reporter),
    )
    training = _record_training(made, results, offline, reporter) if made.stages else None
    place(compiled, stage)
    place(answered, stage / reference.FOLDER)
    return artifacts.seal(stage, **_manifest(made, compiled), training=training)


def _record_training(made: Plan, results: Store, offline: bool, reporter: Reporter) -> dict[str, Any]:
    """How the checkpoint was trained, and, where it had a teacher, how that answers the same questions."""
    stage = made.stages[-1]
    entry = results.find(stage.key or "")
    record: dict[str, Any] = {
        "start": _described(_known(stage.start)),
        "train": stage.trained.train.model_dump(mode="json", exclude={"dataset", "deepspeed", "save_steps"}),
        **(entry.record if entry else {}),
    }
    if made.target.distill:
        teacher = _known(stage.teacher)
        step = made.step("teacher")
        answered = _carry_out(step, results, reporter, lambda folder: _refer(made, teacher, folder, offline, reporter))
        golds = {question.id: question.answers for question in _questions(made.target, offline).questions}
        scores = squad.score(reference.read(answered.directory).answers, golds)
        record["teacher"] = {**_described(teacher), "exact_match": scores.exact_match, "f1": scores.f1}
    return record


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "model_type": checkpoint.config.get("model_type"),
    }


def _carry_out(step: Step, results: Store, reporter: Reporter, produce: Any) -> Entry:
    reason = step.reason
    if step.kept and step.key:
        if entry := results.find_whole(step.key):
            reporter.say(f"{step.name}: kept ({reason})")
            return entry
        reason = "its result in the store was damaged"
    expected = f", took {step.seconds:.0f} s last time" if step.seconds else ""
    reporter.say(f"{step.name}: {reason}{expected}")
    return results.make(step.name, step.inputs, produce)


def _compile(made: Plan, folder: Path) -> Mapping[str, Any]:
    target = made.target
    record = compile_apart(_known(made.checkpoint), target.backend, target.runtime, folder)
    serving.write(target.backend, target.runtime, _versions(made.step("compile").inputs), folder)
    return record


def _refuse_learning_from_asked(made: Plan, offline: bool) -> None:
    """Refuse to train or calibrate on what the verification asks, before any work.

    What is wrong with any of these questions is told here too, and all that compiling reads is fetched: it has no
    network.
    """
    target, options = made.target, made.target.backend
    asked = _questions(target, offline).questions
    for stage in made.stages:
        data.refuse_asked("train.dataset", examples.questions_of(stage.trained.train, offline=offline).questions, asked)
    if isinstance(options, Calibrated) and options.calibrates(target.runtime):
        drawn = calibration.draw(options, calibration.questions(options, offline=offline))
        data.refuse_asked("backend.calibration", drawn.questions, asked)


def _questions(target: Target, offline: bool) -> data.QuestionSet:
    """The questions that prove the artifact."""
    return data.load(
        target.verify.dataset,
        revision=target.verify.revision,
        split=target.verify.split,
        samples=target.verify.samples,
        seed=target.verify.seed,
        fingerprint=target.verify.fingerprint,
        offline=offline,
    )


def _refer(made: Plan, checkpoint: Checkpoint, folder: Path, offline: bool, reporter: Reporter) -> Mapping[str, Any]:
    target = made.target
    questions = _questions(target, offline)
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
        **_manifest_of_target(made),
        "qabuild": qabuild.__version__,
        "checkpoint": _described(checkpoint),
        "backend": calibration.sealed(target.backend),
        "runtime": target.runtime.model_dump(mode="json"),
        "record": compiled.record,
        "versions": _versions(compiled.inputs),
        "steps": _keys(made),
    }


def _versions(inputs: Mapping[str, Any]) -> dict[str, str]:
    """The packages among what decides a step, and their versions."""
    return {name.removeprefix("package "): v for name, v in inputs.items() if name.startswith("package ")}


# --- the artifact's name --------------------------------------------------------------------------------------------


def _kept(goal: Path, made: Plan, compile_only: bool) -> Built | None:
    """The artifact under its final name, if it is whole, is what the plan would make, and was proved as it would be."""
    try:
        artifact = artifacts.open_artifact(goal)
    except (QABuildError, OSError):
        return None
    wanted = {**_manifest_of_target(made), "steps": _keys(made)}
    if None in wanted["steps"].values() or any(getattr(artifact.manifest, k) != v for k, v in wanted.items()):
        return None
    found = _evidence(artifact)
    proof = found if found and found.passed and found.key == made.step("verify").key else None
    if proof is None and not compile_only:
        return None
    return Built(directory=goal, plan=made, manifest=artifact.digest, verification=proof, kept=True)


def _evidence(artifact: Artifact) -> Verification | None:
    try:
        return Verification.from_dict(artifact.evidence) if artifact.evidence else None
    except (KeyError, TypeError, AttributeError):  # written by another version, or by hand
        return None


def _keys(made: Plan) -> dict[str, str | None]:
    """Keys of the steps that decide an artifact's files."""
    return {step.name: step.key for step in made.steps if step.name in ("compile", "reference")}


def _manifest_of_target(made: Plan) -> dict[str, Any]:
    """What a changed target changes in the manifest without changing a step: name, gates, and where to publish."""
    target = made.target
    return {
        "name": target.name,
        # Where the questions are, and which they are, the reference says.
        "verify": target.verify.model_dump(mode="json", exclude={"dataset", "revision", "fingerprint"}),
        "publish": target.publish.model_dump(mode="json"),
    }


@contextmanager
def _staged(goal: Path) -> Iterator[Path]:
    """An empty folder beside `goal`, gone afterwards."""
    stage = _stage(goal)
    try:
        stage.mkdir(parents=True)
        yield stage
    finally:
        with suppress(OSError):  # the next build tries again, and says so
            _remove(stage)


def _clean_up(goal: Path) -> None:
    """Remove what a killed build left, and give back the name that it may have taken away, see `_exchange`."""
    _remove(_stage(goal))
    if os.path.lexists(goal):
        _remove(_aside(goal))
    elif _aside(goal).exists():
        os.rename(_aside(goal), goal)


def _explained(output: Path) -> AbstractContextManager[None]:
    return explained(output, "the output folder", "make room or make it writable, or name another with --output")


def _name(stage: Path, goal: Path, *, passed: bool) -> Path:
    """Give what was staged its name: NAME where it passed, NAME.failed where it did not."""
    landed = goal if passed else _failed(goal)
    _keep_card(goal, stage)
    _remove(_failed(goal))
    if os.path.lexists(landed):
        _exchange(stage, landed)  # what had the name is now at `stage`, and goes with it
    else:
        os.rename(stage, landed)
    return landed


def _keep_card(goal: Path, stage: Path) -> None:
    """Take over what people wrote into the model card of the artifact that is replaced."""
    if (goal / handwritten.FILE).is_file():
        written = (goal / handwritten.FILE).read_text(encoding="utf-8", errors="replace")
        with suppress(BadTarget):  # what cannot be read is kept as it is
            written = handwritten.without_made(written)
        (stage / handwritten.FILE).write_text(written, encoding="utf-8")


def _failed(goal: Path) -> Path:
    return goal.with_name(f"{goal.name}.failed")


def _stage(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.partial")


def _aside(goal: Path) -> Path:
    return goal.with_name(f".{goal.name}.old")


def _remove(path: Path) -> None:
    """Remove a folder, or the link that stands for it; that there is none is well."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders in one step, so that a kill leaves either the old artifact or the new (renameat2, Linux)."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
        done = renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0
    except AttributeError:
        done = False
    if not done:  # another system or file system: the name is free for a moment
        os.rename(other, _aside(other))
        os.rename(one, other)
        os.rename(_aside(other), one)


def _known(checkpoint: Checkpoint | None) -> Checkpoint:
    if checkpoint is None:
        raise AssertionError("a plan that is carried out knows its checkpoint")
    return checkpoint
