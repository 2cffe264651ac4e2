"""Compile question-answering checkpoints into deployable artifacts that carry the evidence that they answer alike.

    built = qabuild.build("targets/quickstart.toml")
    verification = qabuild.verify("artifacts/quickstart")
    answer = qabuild.load("artifacts/quickstart")
    tuned = qabuild.tune("sample")

Importing this package imports nothing heavy; each function imports what it needs when it is called. It switches off the
telemetry of the libraries that they import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qabuild.system import telemetry
from qabuild.system.version import VERSION

telemetry.switch_off()

__version__ = VERSION

if TYPE_CHECKING:
    from qabuild.artifact.batch_answerer import BatchAnswerer
    from qabuild.artifact.evidence import Verification
    from qabuild.artifact.key_pair import keygen
    from qabuild.artifact.load import load
    from qabuild.artifact.signature import Identity, sign
    from qabuild.builder.build import Built, build, train
    from qabuild.builder.plan import Plan
    from qabuild.builder.preview import plan
    from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput, VerificationFailed
    from qabuild.evaluation.compare import Comparison, compare
    from qabuild.evaluation.verify import verify
    from qabuild.publishing.export import Exported, export
    from qabuild.publishing.publish import Published, publish
    from qabuild.publishing.sbom import sbom
    from qabuild.qa.bulk import Summary, answer_dataset, answer_file
    from qabuild.qa.pipeline import QuestionAnsweringPipeline
    from qabuild.target.lock import Lock
    from qabuild.target.model import Target
    from qabuild.tuning.request import tune
    from qabuild.tuning.result import Tuned

_HOMES = {
    "BadTarget": "errors",
    "BatchAnswerer": "artifact.batch_answerer",
    "Built": "builder.build",
    "Comparison": "evaluation.compare",
    "Exported": "publishing.export",
    "Identity": "artifact.signature",
    "Lock": "target.lock",
    "MissingEnvironment": "errors",
    "Plan": "builder.plan",
    "Published": "publishing.publish",
    "QABuildError": "errors",
    "QuestionAnsweringPipeline": "qa.pipeline",
    "Summary": "qa.bulk",
    "Target": "target.model",
    "Tuned": "tuning.result",
    "UntrustedInput": "errors",
    "Verification": "artifact.evidence",
    "VerificationFailed": "errors",
    "answer_dataset": "qa.bulk",
    "answer_file": "qa.bulk",
    "build": "builder.build",
    "compare": "evaluation.compare",
    "export": "publishing.export",
    "keygen": "artifact.key_pair",
    "load": "artifact.load",
    "lock": "builder.locking",
    "plan": "builder.preview",
    "publish": "publishing.publish",
    "sbom": "publishing.sbom",
    "sign": "artifact.signature",
    "train": "builder.build",
    "tune": "tuning.request",
    "verify": "evaluation.verify",
}

__all__ = [
    "BadTarget",
    "BatchAnswerer",
    "Built",
    "Comparison",
    "Exported",
    "Identity",
    "Lock",
    "MissingEnvironment",
    "Plan",
    "Published",
    "QABuildError",
    "QuestionAnsweringPipeline",
    "Summary",
    "Target",
    "Tuned",
    "UntrustedInput",
    "Verification",
    "VerificationFailed",
    "answer_dataset",
    "answer_file",
    "build",
    "compare",
    "export",
    "keygen",
    "load",
    "lock",
    "plan",
    "publish",
    "sbom",
    "sign",
    "train",
    "tune",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
