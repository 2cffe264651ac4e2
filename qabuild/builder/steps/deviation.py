"""The step `deviation`: how far what was compiled in low precision is from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qabuild.builder.keys import Inputs, flat, key_or_unknown, package_inputs
from qabuild.builder.steps.compile import Compile
from qabuild.builder.steps.reference import Reference
from qabuild.builder.steps.step import ARTIFACT, Context, Facts, Requirements
from qabuild.errors import MissingEnvironment
from qabuild.models.backends import BACKENDS, backend
from qabuild.target.model import Target

MEASURED_ON = ("cpu", "cores", "gpus", "driver")
"""What of the machine decides a measurement."""


def measured(target: Target, facts: Facts) -> dict[str, Any]:
    """What decides a measurement of the artifact: what was compiled and answered, the batches and the machine."""
    compiled, answered = Compile().inputs(target, facts), Reference().inputs(target, facts)
    assert compiled is not None
    assert answered is not None
    return {
        "compile": key_or_unknown(compiled),
        "reference": key_or_unknown(answered),
        "verify.batch_size": target.verify.batch_size,
        **flat("machine", {name: value for name, value in facts.machine.items() if name in MEASURED_ON}),
    }


class Deviation:
    name: ClassVar[str] = "deviation"
    stage: ClassVar[str] = ARTIFACT
    folder: ClassVar[str | None] = None

    def requires(self, target: Target) -> Requirements:
        return {} if target.runtime.dtype == "fp32" else Compile().requires(target)

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        if target.runtime.dtype == "fp32":
            return None
        return {
            **measured(target, facts),
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest(
                "qabuild.evaluation.deviation", "qabuild.qa.answer_options", BACKENDS[target.backend.name]
            ),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.artifact import sealed_reference
        from qabuild.builder.leakage import questions_of
        from qabuild.evaluation import deviation, differences
        from qabuild.models.checkpoint.load import load_tokenizer

        target = context.target
        compiled, answered = (context.results[name].directory for name in ("compile", "reference"))
        try:
            model = backend(target.backend.name).load(compiled, target.backend, target.runtime)
        except MissingEnvironment as error:
            context.reporter.say(f"{self.name}: not measured here: {error.message}")
            return {}
        questions = questions_of(target, offline=context.offline)
        return deviation.record(
            answered,
            model,
            load_tokenizer(compiled),
            questions,
            target.answer.parameters(unanswerable=questions.has_unanswerable),
            sealed_reference.read(answered),
            differences.batch_sizes(target.backend, target.runtime, target.verify.batch_size),
        )
