"""Whether other machines can run an artifact."""

from __future__ import annotations

from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget
from qabuild.models.backends import backend


def require_portable(artifact: Artifact) -> None:
    """Raise BadTarget for native code: it fits one kind of processor, and others load it only if told to trust it."""
    manifest = artifact.manifest
    if names := backend(manifest.backend["name"]).native_code(manifest.options):
        raise BadTarget(
            f"{artifact.directory / names[0]}: native code, compiled for the processor of one machine",
            "export an artifact without it; of torch_export, one without backend.aot",
        )
