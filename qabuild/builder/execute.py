"""Carries out the steps of a plan: cached results come from the store, the others are computed and cached."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import Verification
from qabuild.artifact.judge import judge
from qabuild.artifact.manifest import Artifact
from qabuild.builder import plan as plans
from qabuild.builder.facts import Derivation, is_checkpoint
from qabuild.builder.keys import package_versions, step_key
from qabuild.builder.plan import Plan, PlanStep
from qabuild.builder.steps import of_stage, training
from qabuild.builder.steps import verify as measured
from qabuild.builder.steps.reference import score
from qabuild.builder.steps.step import ARTIFACT, VERIFICATION, Context, Facts, Step, described, require_checkpoint
from qabuild.builder.store.local import Entry, Store, link_or_copy
from qabuild.errors import QABuildError
from qabuild.evaluation.verify import write_evidence
from qabuild.models import calibration
from qabuild.system.reporter import Reporter
from qabuild.target.model import Target

UNRECORDED = {"dataset", "recover", "deepspeed", "save_steps"}
"""Keys of a stage's table that its record leaves out: paths, other stages, and what changes no result."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Carries out plans. Results go to `store`, which records under `name` what was built last."""

    store: Store
    name: str
    offline: bool
    reporter: Reporter

    def make_checkpoint(self, plan: Plan) -> Plan:
        """Carry out the stages that lead to the checkpoint, each once those before it are known.

        Returns the plan in which the checkpoint is known. Raises QABuildError if qabuild, a package or the data changed
        meanwhile, so that what was made is not what the plan asks for now.
        """
        for number in range(len(plan.facts.derivations)):
            plan = self._make_stage(plan, number)
        return plan

    def make_step(self, plan: Plan, name: str, key: str) -> Entry:
        """The result of one step that leads to the artifact, and of those that it follows.

        Raises QABuildError where the step has another key than `key`.
        """
        stages = iter(range(len(plan.facts.derivations)))
        while plan.step(name).key != key and (number := next(stages, None)) is not None:
            plan = self._make_stage(plan, number)
        if plan.step(name).key != key:
            raise changed(name)
        return self._result(plan, name)

    def assemble(self, plan: Plan, stage: Path, facts: Mapping[str, Any]) -> Artifact:
        """What was compiled and what the checkpoint answers, in the sealed folder `stage`.

        `facts` are what the manifest says of the target, see `builder.build`.
        """
        target = plan.target
        results: dict[str, Entry] = {}
        for step in of_stage(ARTIFACT):
            if plan.has(step.name):
                results[step.name] = self._carry_out(step, plan.step(step.name), target, plan.facts, results)
                if step.folder is not None:
                    link_or_copy(results[step.name], stage / step.folder)
        compiled = results["compile"]
        return artifacts.seal(
            stage,
            **facts,
            checkpoint=described(require_checkpoint(plan.checkpoint)),
            backend=calibration.options_record(target.backend),
            runtime=target.runtime,
            record=compiled.record,
            versions=package_versions(compiled.inputs),
            training=self._training_record(plan, results),
            stages=self._stage_records(plan),
            answer=results["reference"].record["answer"],
            deviation=results["deviation"].record or None if "deviation" in results else None,
        )

    def verify(self, artifact: Artifact, plan: Plan) -> Verification:
        """Measure what was staged, or take a measurement of the very same files from the store, and judge it."""
        entry = self.measure(artifact, plan)
        verification = judge(artifact, measured.read(entry), plan.target.verify.gates, entry.key)
        write_evidence(verification, artifact.directory)
        return verification

    def measure(self, artifact: Artifact, plan: Plan) -> Entry:
        """The measurement of what was staged, made now or, of the very same files, from the store."""
        (step,) = of_stage(VERIFICATION)
        planned = plan.step(step.name)
        if planned.key and (entry := self.store.find(planned.key)) and not measured.is_of(entry, artifact):
            self.store.drop(planned.key)
        return self._carry_out(step, planned, plan.target, plan.facts, {}, artifact)

    def _make_stage(self, plan: Plan, number: int) -> Plan:
        """Make the checkpoint of one stage, unless it is cached. Returns the plan in which it is known."""
        derivation = plan.facts.derivations[number]
        label = f"{derivation.label}{derivation.derived.stage}"
        last = plan.step(label)
        if last.cached and self.store.find_intact(last.key or ""):
            self.reporter.say(f"{last.name}: cached ({last.reason})")
            return plan
        # Where it is fetched, what leads to it is not needed.
        if not (last.key and self.store.fetch(last.name, last.key, is_checkpoint)):
            self._carry_out_stage(derivation, plan)
        plan = plans.current(plan.target, self.store, self.name, offline=self.offline)
        if not plan.step(label).cached:
            raise changed(label)
        return plan

    def _result(self, plan: Plan, name: str) -> Entry:
        """The result of one step, once those that it follows are made."""
        planned = plan.step(name)
        step, target, facts = _work(plan, name)
        results = {_work(plan, each.name)[0].name: self._result(plan, each.name) for each in plan.before(planned)}
        return self._carry_out(step, planned, target, facts, results)

    def _carry_out_stage(self, derivation: Derivation, plan: Plan) -> None:
        results: dict[str, Entry] = {}
        for step in of_stage(derivation.derived.stage):
            if step.name in derivation.inputs:
                planned = plan.step(f"{derivation.label}{step.name}")
                target = derivation.derived.target
                results[step.name] = self._carry_out(step, planned, target, derivation.facts, results)

    def _carry_out(
        self,
        step: Step,
        planned: PlanStep,
        target: Target,
        facts: Facts,
        results: Mapping[str, Entry],
        artifact: Artifact | None = None,
    ) -> Entry:
        reason = planned.reason
        if planned.cached and planned.key:
            if entry := self.store.find_intact(planned.key):
                self.reporter.say(f"{planned.name}: cached ({reason})")
                return entry
            reason = plans.DAMAGED
        expected = f", took {planned.seconds:.0f} s last time" if planned.seconds else ""
        context = Context(
            target=target,
            facts=facts,
            inputs=planned.inputs,
            results=dict(results),
            artifact=artifact,
            work=self.store.work(step_key(planned.inputs)),
            offline=self.offline,
            reporter=self.reporter,
        )

        def produce(directory: Path) -> Mapping[str, Any]:
            self.reporter.say(f"{planned.name}: {reason}{expected}")
            try:
                record = step.run(context, directory)
            finally:
                changed_file = facts.input_files.changed()
                if changed_file:  # what was read is not what the key says, so nothing may go on from there
                    shutil.rmtree(context.work, ignore_errors=True)
            if changed_file:
                problem = f"{planned.name}: {changed_file} was changed while this was made"
                raise QABuildError(problem, "run the same command again")
            return record

        def accepts(entry: Entry) -> bool:
            if step.name == step.stage:
                return is_checkpoint(entry)
            return artifact is None or measured.is_of(entry, artifact)

        return self.store.make(
            planned.name,
            planned.inputs,
            produce,
            accepts,
            follows=[entry.key for entry in results.values() if entry.key in planned.inputs.values()],
            together=training.is_shared(step, target),
        )

    # --- what the manifest records of the stages --------------------------------------------------------------------

    def _training_record(self, plan: Plan, results: Mapping[str, Entry]) -> dict[str, Any] | None:
        """How the checkpoint was trained, and, where it had a teacher, how that answers the same questions."""
        derivation = next((each for each in reversed(plan.facts.derivations) if each.derived.stage == "train"), None)
        if derivation is None:
            return None
        train = derivation.derived.target.training
        record = {
            "start": described(require_checkpoint(derivation.facts.checkpoint)),
            "train": train.model_dump(mode="json", exclude=UNRECORDED),
            **self._record_of(derivation),
        }
        if plan.target.distill:
            scores = score(results["original"].directory, plan.target, offline=self.offline)
            record["teacher"] = {**described(require_checkpoint(plan.facts.original)), **scores}
        return record

    def _stage_records(self, plan: Plan) -> list[dict[str, Any]] | None:
        """The same of other stages, in order; None where there are none."""
        records = [
            {
                "stage": derivation.derived.stage,
                "target": derivation.derived.name,
                "start": described(require_checkpoint(derivation.facts.checkpoint)),
                "options": derivation.derived.table.model_dump(mode="json", exclude=UNRECORDED),
                **self._record_of(derivation),
            }
            for derivation in plan.facts.derivations
            if derivation.derived.stage != "train"
        ]
        return records or None

    def _record_of(self, derivation: Derivation) -> Mapping[str, Any]:
        entry = self.store.find(derivation.key or "")
        return entry.record if entry else {}


def _work(plan: Plan, name: str) -> tuple[Step, Target, Facts]:
    """The step of that name in the plan, its target, and the facts as it sees them."""
    for derivation in plan.facts.derivations:
        for step in of_stage(derivation.derived.stage):
            if f"{derivation.label}{step.name}" == name:
                return step, derivation.derived.target, derivation.facts
    return next(step for step in of_stage(ARTIFACT) if step.name == name), plan.target, plan.facts


def changed(name: str) -> QABuildError:
    """The error for a step whose key is no longer what the plan says."""
    return QABuildError(
        f"{name}: qabuild, a package or the data changed while it was made",
        "run it again, and update nothing meanwhile; its result is kept for the earlier versions",
    )
