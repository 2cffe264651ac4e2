"""Copies of sealed files, checked against the manifest once they are written."""

from __future__ import annotations

import shutil
from pathlib import Path

from qabuild.artifact.manifest import CACHE, Artifact, open_artifact
from qabuild.errors import UntrustedInput
from qabuild.system import files


def copy_file(artifact: Artifact, name: str, path: Path) -> None:
    """Copy the artifact's file `name` to the new file `path`. Raises UntrustedInput if it is not as it was sealed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(artifact.directory / name, path)
    if files.sha256(path) != artifact.manifest.files[name].sha256:
        raise UntrustedInput(f"{artifact.directory / name}: changed while it was copied", "export it again")


def copy_artifact(artifact: Artifact, directory: Path) -> None:
    """Copy the whole artifact to the new folder `directory`, with its evidence, signatures and card.

    Raises UntrustedInput if it is not as it was sealed.
    """
    ignored = shutil.ignore_patterns(CACHE)
    shutil.copytree(artifact.directory, directory, ignore=ignored, copy_function=shutil.copyfile)
    open_artifact(directory, artifact.digest, any_evidence=True)
