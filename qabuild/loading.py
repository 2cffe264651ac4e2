"""From an artifact on disk to something that answers: hashes first, then the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild import machine
from qabuild.artifact import Artifact, open_artifact
from qabuild.backends import Runtime, backend

if TYPE_CHECKING:
    from qabuild.pipeline import QuestionAnsweringPipeline


def load(artifact: str | Path, *, digest: str | None = None) -> QuestionAnsweringPipeline:
    """A question-answering pipeline over the artifact at that path.

    Every file is held against the manifest, and the manifest against `digest` where one is given, before anything is
    deserialised. Raises BadTarget, UntrustedInput or MissingEnvironment.
    """
    from qabuild.pipeline import QuestionAnsweringPipeline

    return QuestionAnsweringPipeline(*load_model(open_artifact(Path(artifact), digest)))


def load_model(artifact: Artifact) -> tuple[Any, Any]:
    """Model and tokenizer of an artifact that was opened, and so held against its manifest.

    Raises MissingEnvironment where the device or a package is not here.
    """
    from qabuild.checkpoint import load_tokenizer

    module = backend(artifact.manifest.backend["name"])
    options = module.Options.model_validate(dict(artifact.manifest.backend))
    runtime = Runtime.model_validate(dict(artifact.manifest.runtime))
    machine.require(module.PACKAGES, runtime.device)
    return module.load(artifact.directory, options, runtime), load_tokenizer(artifact.directory)
