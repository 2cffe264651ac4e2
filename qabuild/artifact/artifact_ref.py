"""References to artifacts, which can be pickled: each process loads the artifact for itself, once."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from qabuild.artifact.load import find, load_pipeline, require_parameters, warn_unverified

if TYPE_CHECKING:
    from qabuild.artifact.manifest import Artifact
    from qabuild.artifact.signature import Signer
    from qabuild.qa.pipeline import QuestionAnsweringPipeline


@dataclass(frozen=True, kw_only=True)
class LoadedArtifact:
    directory: Path
    pipeline: QuestionAnsweringPipeline


@dataclass(frozen=True, kw_only=True)
class ArtifactRef:
    """An artifact, and how it may be loaded: the arguments of `qabuild.load`."""

    source: str
    revision: str | None = None
    digest: str | None = None
    key: Signer | None = None
    allow_native: bool = False
    allow_unverified: bool = False

    @classmethod
    def to(
        cls, artifact: Artifact, source: str, *, revision: str | None, allow_native: bool, allow_unverified: bool
    ) -> Self:
        """The artifact that was found at `source`: a process of another machine finds the same there, or nothing."""
        return cls(
            source=os.path.abspath(source) if Path(source).exists() else source,
            revision=revision,
            digest=artifact.digest,
            allow_native=allow_native,
            allow_unverified=allow_unverified,
        )

    def load(self, parameters: Mapping[str, Any]) -> LoadedArtifact:
        """The artifact, loaded by the first call in this process, for calls with these parameters.

        Raises what `qabuild.load` raises, and BadTarget for parameters that its pipeline cannot have.
        """
        with _LOCK:
            loaded = _load(self, os.getpid())
        require_parameters(loaded.pipeline, parameters, self.source)
        return loaded


_LOCK = threading.Lock()


@functools.cache
def _load(ref: ArtifactRef, process: int) -> LoadedArtifact:
    """Once for each process: the threads of a runtime do not survive a fork."""
    artifact = find(
        ref.source, revision=ref.revision, digest=ref.digest, key=ref.key, allow_unverified=ref.allow_unverified
    )
    if ref.allow_unverified:
        warn_unverified(artifact)
    native = ref.allow_native or ref.key is not None
    pipeline = load_pipeline(artifact, allow_native=native, allow_unverified=ref.allow_unverified)
    return LoadedArtifact(directory=artifact.directory, pipeline=pipeline)
