"""The questions of an artifact's sealed reference, found again and compared by their fingerprint."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from qabuild.artifact import disclosure, sealed_reference
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa import data
from qabuild.qa.data import DatasetRef, QuestionSet
from qabuild.qa.data.dataset_ref import SAME_NAMES


def load(artifact: Artifact, source: str | None = None, *, offline: bool = False) -> QuestionSet:
    """Load the questions of the sealed reference, from `source` or else from the data set that the artifact names.

    `source` is a file, a Hub id or 'sample'. Raises BadTarget if `source` is needed or does not
    exist, UntrustedInput if it is damaged or lacks some of the questions.
    """
    sealed = artifact.reference
    dataset = sealed.data["dataset"]
    hidden = disclosure.shown(sealed.data) == disclosure.NONE
    if source is None and sealed.data["file"]:
        named = "which is not part of it" if hidden else f"{dataset}, which is not part of it"
        raise BadTarget(
            f"{artifact.directory}: its questions come from a file, {named}",
            "give the file with --data",
        )
    ref = DatasetRef(
        source or dataset,
        configuration=sealed.data.get("configuration") if source in (None, dataset) else None,
        revision=sealed.data["revision"] if source in (None, dataset) else None,
        split=sealed.data["split"] or "validation",
        max_misplaced=artifact.manifest.verify.get("max_misplaced", 0.0),
        columns=data.Columns(**(artifact.manifest.verify.get("columns") or {})),
    )
    loaded = _load(ref, offline=offline)
    if not hidden:
        return data.select(loaded, list(sealed.answers))
    return data.subset(loaded, len(sealed.answers), sealed.data["seed"]) if sealed.data["seed"] is not None else loaded


def _load(ref: DatasetRef, *, offline: bool) -> QuestionSet:
    """The questions, by the names of columns that were sealed, or else in the usual layout.

    The same questions may have been written anew, as by `qabuild data check --fix`.
    """
    try:
        return data.load(ref, offline=offline)
    except UntrustedInput:
        with suppress(UntrustedInput):
            return data.load(replace(ref, columns=SAME_NAMES), offline=offline)
        raise


def require_same(questions: QuestionSet, sealed: sealed_reference.Reference) -> None:
    """Raise UntrustedInput unless `questions` have the fingerprint of the sealed reference."""
    fingerprint = data.fingerprint(questions.questions)
    if fingerprint != sealed.data["fingerprint"]:
        raise UntrustedInput(
            f"{questions.name}: these are not the questions that the artifact was built with "
            f"(fingerprint {fingerprint[:16]}, sealed {sealed.data['fingerprint'][:16]})",
            "give the same data set at the same revision with --data, or build the artifact on this one",
        )
