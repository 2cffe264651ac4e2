"""Compile question-answering checkpoints into deployable artifacts that carry their own proof.

    built = qabuild.build("targets/quickstart.toml")
    verification = qabuild.verify("artifacts/quickstart")
    answer = qabuild.load("artifacts/quickstart")

Importing this package imports nothing heavy; each function imports what it needs when it is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from qabuild.builder import Built, build, train
    from qabuild.comparing import Comparison, compare
    from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput, VerificationFailed
    from qabuild.evidence import Verification
    from qabuild.loading import load
    from qabuild.pipeline import QuestionAnsweringPipeline
    from qabuild.publishing import Published, publish
    from qabuild.target import Target
    from qabuild.verification import verify

_HOMES = {
    "BadTarget": "errors",
    "Built": "builder",
    "Comparison": "comparing",
    "MissingEnvironment": "errors",
    "Published": "publishing",
    "QABuildError": "errors",
    "QuestionAnsweringPipeline": "pipeline",
    "Target": "target",
    "UntrustedInput": "errors",
    "Verification": "evidence",
    "VerificationFailed": "errors",
    "build": "builder",
    "compare": "comparing",
    "load": "loading",
    "publish": "publishing",
    "train": "builder",
    "verify": "verification",
}

__all__ = [
    "BadTarget",
    "Built",
    "Comparison",
    "MissingEnvironment",
    "Published",
    "QABuildError",
    "QuestionAnsweringPipeline",
    "Target",
    "UntrustedInput",
    "Verification",
    "VerificationFailed",
    "build",
    "compare",
    "load",
    "publish",
    "train",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
