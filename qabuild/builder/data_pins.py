"""Data sets of a plan: what identifies one without reading it, and whether it is the one that is pinned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qabuild.builder.closure import ImportGraph
from qabuild.builder.keys import Inputs, step_key
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, QABuildError
from qabuild.qa import data
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.qa.sample import HELDOUT, TRAIN
from qabuild.system import files
from qabuild.system.hub import SAMPLE, commit, is_id, is_path

STEP = "fingerprint"
"""Of the results that hold the fingerprints of data sets."""


def identity(ref: DatasetRef, *, offline: bool) -> str:
    """What identifies a data set without reading it: the digest of a file, the commit of a Hub repository.

    Raises BadTarget for a file that cannot be read, and what `qabuild.system.hub.commit` raises.
    """
    source = str(ref.dataset)
    if source == SAMPLE:
        return files.sha256(TRAIN if ref.split == "train" else HELDOUT)
    if is_path(source):
        try:
            return files.sha256(Path(source))
        except OSError as error:
            raise BadTarget(f"{source}: {error.strerror}", "name a file of questions") from None
    return commit(source, ref.revision, "dataset", offline=offline)


def require(ref: DatasetRef, identified: str, results: Store, code: ImportGraph, *, keep: bool, offline: bool) -> None:
    """Raise UntrustedInput unless the data set has the fingerprint that `ref` pins; `identified` is its identity.

    A step that is cached reads no questions, so they are read here: once, where the store may `keep` their fingerprint.
    """
    read = replace(ref.whole(), revision=identified) if is_id(ref.dataset) else ref.whole()
    inputs: Inputs = {
        "dataset": identified,
        "questions": str(ref.dataset),
        "configuration": ref.configuration,
        "split": ref.split,
        "max_misplaced": ref.max_misplaced,
        "columns": ref.columns.model_dump(exclude_none=True),
        "code": code.digest(data.__name__),
    }

    def fingerprint(_: Path) -> Mapping[str, Any]:
        found = data.load(read, offline=offline).fingerprint
        if identity(read, offline=offline) != identified:
            raise QABuildError(f"{ref.dataset}: was changed while it was read", "run the same command again")
        return {"fingerprint": found}

    entry = results.find(step_key(inputs)) or (results.make(STEP, inputs, fingerprint) if keep else None)
    data.require_fingerprint(ref, (entry.record if entry else fingerprint(Path()))["fingerprint"])
