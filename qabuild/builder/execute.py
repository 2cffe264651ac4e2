"""Carries out the steps of a plan: what the store holds is taken from there, the rest is made now and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qabuild.artifact import handler
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import Measurement, Verification
from qabuild.artifact.manifest import Artifact
from qabuild.builder import leakage, plan
from qabuild.builder.plan import Plan, Step
from qabuild.builder.steps.train import Stage
from qabuild.builder.store.local import Entry, Store, key_of, place
from qabuild.evaluation import judge, measure, reference
from qabuild.evaluation import verify as verification
from qabuild.models import calibration
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.compiler import compile_apart
from qabuild.models.training.launch import carry_out
from qabuild.models.training.options import StepName
from qabuild.models.training.request import Request
from qabuild.qa import squad_metric
from qabuild.system import hub
from qabuild.system.reporter import Reporter

MEASUREMENT = "measurement.json"


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Carries out plans. Results go to `results`, which remembers under `name` what was built last."""

    results: Store
    name: str
    offline: bool
    reporter: Reporter

    def train(self, made: Plan) -> Plan:
        """Carry out the trainings that lead to the checkpoint, each once those before it are known.

        Returns the plan in which the checkpoint is known.
        """
        for number in range(len(made.stages)):
            stage = made.stages[number]
            steps = {each: made.step(f"{stage.label}{each}") for each in stage.inputs}
            if not (steps["train"].kept and self.results.find_whole(steps["train"].key or "")):
                self._carry_out_training(stage, steps)
                made = plan.current(made.target, self.results, self.name, offline=self.offline)
            else:
                self.reporter.say(f"{steps['train'].name}: kept ({steps['train'].reason})")
        return made

    def assemble(self, made: Plan, stage: Path, told: Mapping[str, Any]) -> Artifact:
        """What was compiled and what the checkpoint answers, in the sealed folder `stage`.

        `told` is what the manifest says of the target, see `builder`.
        """
        compiled = self._carry_out(made.step("compile"), partial(self._compile, made))
        checkpoint = known(made.checkpoint)
        answered = self._carry_out(made.step("reference"), partial(self._refer, made, checkpoint))
        training = self._record_training(made) if made.stages else None
        place(compiled, stage)
        place(answered, stage / reference.FOLDER)
        return artifacts.seal(
            stage,
            **told,
            checkpoint=_described(checkpoint),
            backend=calibration.sealed(made.target.backend),
            runtime=made.target.runtime.model_dump(mode="json"),
            record=compiled.record,
            versions=_versions(compiled.inputs),
            training=training,
        )

    def verify(self, artifact: Artifact, made: Plan) -> Verification:
        """Measure what was staged, or take a measurement of the very same files from the store, and judge it."""
        step, target = made.step("verify"), made.target
        files = {name: file.sha256 for name, file in artifact.manifest.files.items()}

        def produce(folder: Path) -> Mapping[str, Any]:
            questions = verification.find_questions(artifact, target.verify.dataset, offline=self.offline)
            baseline = load_model(known(made.checkpoint)).to(target.runtime.device)
            measurement = measure.measure(artifact, questions, baseline, self.reporter)
            (folder / MEASUREMENT).write_text(json.dumps(measurement.to_dict(), ensure_ascii=False), encoding="utf-8")
            return {"files": files}

        # The key says how the files came about; whether they are the very bytes that were measured, only the bytes say.
        if step.key and (entry := self.results.find(step.key)) and entry.record["files"] != files:
            self.results.drop(step.key)
        measured = self._carry_out(step, produce)
        document = json.loads((measured.directory / MEASUREMENT).read_text(encoding="utf-8"))
        found = judge.judge(artifact, Measurement.from_dict(document), target.verify.gates, step.key)
        verification.write(found, artifact.directory)
        return found

    # --- steps ------------------------------------------------------------------------------------------------------

    def _carry_out(self, step: Step, produce: Callable[[Path], Mapping[str, Any]]) -> Entry:
        reason = step.reason
        if step.kept and step.key:
            if entry := self.results.find_whole(step.key):
                self.reporter.say(f"{step.name}: kept ({reason})")
                return entry
            reason = plan.DAMAGED
        expected = f", took {step.seconds:.0f} s last time" if step.seconds else ""
        self.reporter.say(f"{step.name}: {reason}{expected}")
        return self.results.make(step.name, step.inputs, produce)

    def _carry_out_training(self, stage: Stage, steps: Mapping[StepName, Step]) -> None:
        found: dict[str, Entry] = {}

        def produce(name: StepName, folder: Path) -> Mapping[str, Any]:
            inputs, distill = stage.inputs[name], stage.trained.distill
            searched = found["search"].record if "search" in found else {}
            request = Request(
                step=name,
                start=known(stage.start),
                teacher=stage.teacher,
                train=stage.trained.train,
                distill=distill and distill.model_copy(update=searched.get("best", {})),
                device=inputs["train.device"],
                dtype=inputs["train.dtype"],
                logits=found["logits"].directory if "logits" in found else None,
                work=self.results.work(key_of(inputs)),
                directory=folder,
                offline=self.offline,
            )
            trials = {"search": searched["trials"]} if searched else {}
            return {**carry_out(request, self.reporter), **trials}

        for name, step in steps.items():
            found[name] = self._carry_out(step, partial(produce, name))

    def _record_training(self, made: Plan) -> dict[str, Any]:
        """How the checkpoint was trained, and, where it had a teacher, how that answers the same questions."""
        stage = made.stages[-1]
        entry = self.results.find(stage.key or "")
        record: dict[str, Any] = {
            "start": _described(known(stage.start)),
            "train": stage.trained.train.model_dump(mode="json", exclude={"dataset", "deepspeed", "save_steps"}),
            **(entry.record if entry else {}),
        }
        if made.target.distill:
            teacher = known(stage.teacher)
            answered = self._carry_out(made.step("teacher"), partial(self._refer, made, teacher))
            golds = {
                question.id: question.answers
                for question in leakage.questions(made.target, offline=self.offline).questions
            }
            scores = squad_metric.score(reference.read(answered.directory).answers, golds)
            record["teacher"] = {**_described(teacher), "exact_match": scores.exact_match, "f1": scores.f1}
        return record

    def _compile(self, made: Plan, folder: Path) -> Mapping[str, Any]:
        target = made.target
        record = compile_apart(known(made.checkpoint), target.backend, target.runtime, folder)
        handler.write(target.backend, target.runtime, _versions(made.step("compile").inputs), folder)
        return record

    def _refer(self, made: Plan, checkpoint: Checkpoint, folder: Path) -> Mapping[str, Any]:
        target = made.target
        questions = leakage.questions(target, offline=self.offline)
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
        reference.make(model, tokenizer, questions, described, folder, self.reporter)
        return {}


def known(checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint of a plan that is being carried out, which knows it."""
    if checkpoint is None:
        raise AssertionError("a plan that is carried out knows its checkpoint")
    return checkpoint


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "model_type": checkpoint.config.get("model_type"),
    }


def _versions(inputs: Mapping[str, Any]) -> dict[str, str]:
    """The packages among what decides a step, and their versions."""
    return {name.removeprefix("package "): v for name, v in inputs.items() if name.startswith("package ")}
