"""Fetches an artifact from the Hub into a folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from qabuild.artifact import FOLDER, signature, staging
from qabuild.artifact.load import from_hub
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.errors import BadTarget
from qabuild.system import hub

if TYPE_CHECKING:
    from qabuild.artifact.signature import Signer


def fetch(
    repo_id: str,
    output: str | Path = FOLDER,
    *,
    revision: str | None = None,
    digest: str | None = None,
    key: Signer | None = None,
) -> Artifact:
    """Download the artifact `repo_id` (owner/name) to `output`/name; that folder is complete and checked, or absent.

    Every file is checked against the manifest; `revision`, `digest` and `key` are those of `qabuild.load`. A folder
    that is there already is kept if it holds the same artifact. Raises BadTarget if it holds anything else, and as
    `qabuild.load` does; QABuildError where `output` is not writable.
    """
    if hub.is_path(repo_id) or "/" not in repo_id:
        raise BadTarget(f"{repo_id} is no repository on the Hub", "write owner/name")
    goal = Path(output) / repo_id.rpartition("/")[2]
    if not os.path.lexists(goal):
        staging.require_writable(Path(output))
    downloaded = from_hub(repo_id, revision, digest, key)
    if key is not None:
        signature.require(downloaded, key)
        signature.require_verdict(downloaded)
    with staging.disk_explained(Path(output)):
        if os.path.lexists(goal):
            return _require_same(goal, downloaded)
        goal.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=goal.parent, prefix=f".{goal.name}.") as folder:
            copy = Path(folder) / goal.name
            shutil.copytree(downloaded.directory, copy)  # the cache holds links
            checked = open_artifact(copy, downloaded.digest)
            os.rename(copy, goal)
    return replace(checked, directory=goal)


def _require_same(goal: Path, downloaded: Artifact) -> Artifact:
    present = open_artifact(goal)
    if present.digest != downloaded.digest:
        raise BadTarget(
            f"{goal}: holds another artifact, with the manifest {present.digest}",
            "move it away, or name another folder with --output",
        )
    return present
