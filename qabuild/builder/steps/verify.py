"""The step `verify`: the artifact, as it lies on the disk, measured beside its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qabuild.artifact import measurements
from qabuild.artifact.evidence import Measurement
from qabuild.artifact.manifest import Artifact
from qabuild.builder.keys import Inputs, key_or_unknown, package_inputs
from qabuild.builder.steps.deviation import measured
from qabuild.builder.steps.reference import Original
from qabuild.builder.steps.step import VERIFICATION, Context, Facts, Requirements
from qabuild.builder.store.local import Entry
from qabuild.errors import UntrustedInput
from qabuild.evaluation import cross_check
from qabuild.models.backends import BACKENDS, backend
from qabuild.system import documents, files
from qabuild.target.model import Target

MEASUREMENT = "measurement.json"


class Verify:
    name: ClassVar[str] = "verify"
    stage: ClassVar[str] = VERIFICATION
    folder: ClassVar[str | None] = None

    def requires(self, target: Target) -> Requirements:
        module = backend(target.backend.name)
        return {**dict.fromkeys(cross_check.PACKAGES, ()), **dict.fromkeys(module.PACKAGES, module.EXTRAS)}

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        original = Original().inputs(target, facts)
        return {
            **measured(target, facts),
            "original": key_or_unknown(original) if original else None,
            "verify.cross_check": target.verify.cross_check,
            "verify.gates.confidence": target.verify.gates.confidence,
            **package_inputs(facts.versions, self.requires(target)),
            "code": facts.code.digest(
                "qabuild.evaluation.measure", "qabuild.models.checkpoint.load", BACKENDS[target.backend.name]
            ),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.evaluation import measure, sealed_questions
        from qabuild.models.checkpoint.load import load_model

        assert context.artifact is not None
        questions = sealed_questions.load(context.artifact, context.target.verify.dataset, offline=context.offline)
        baseline = load_model(context.checkpoint).to(context.target.runtime.device)
        measurement = measure.measure(context.artifact, questions, baseline, context.reporter)
        document = json.dumps(measurement.to_dict(), ensure_ascii=False)
        (directory / MEASUREMENT).write_text(document, encoding="utf-8")
        return {"measured": measurements.measured(context.artifact)}


def is_of(entry: Entry, artifact: Artifact) -> bool:
    """Whether a result of this step was measured on the artifact's very files, run as they are now.

    The key says how the files came about; whether they are the very bytes that were measured, only the bytes say.
    """
    return bool(entry.record["measured"] == measurements.measured(artifact))


def read(entry: Entry) -> Measurement:
    """The measurement in a result of this step. Raises UntrustedInput where it is damaged."""
    path = entry.directory / MEASUREMENT
    try:
        return Measurement.from_dict(documents.read_json(files.read(path)))
    except ValueError as error:
        raise UntrustedInput(f"{path}: damaged: {error}", "remove it: qabuild cache prune --older-than 0h") from None
