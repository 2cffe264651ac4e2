"""What is there of all that a target names: checkpoints, results of trainings, data sets. Fetches if told to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from qabuild.builder.steps import train as training
from qabuild.builder.steps.train import Stage
from qabuild.builder.store.local import Inputs, Store, is_whole, key_of
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa.sample import HELDOUT, TRAIN
from qabuild.system import files
from qabuild.system.hub import SAMPLE, commit, is_id, is_path
from qabuild.target.lineage import Origin, Trained

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


class DataSource(Protocol):
    """A table of a target that names a data set."""

    @property
    def dataset(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def split(self) -> str: ...


class Look:
    """One look at what leads to the checkpoint `own`: nothing is looked at twice.

    `versions`, `code` and `conditions` (by autocast) are what decides a training beside its tables. With `fetch`, Hub
    ids are resolved and downloaded; without, one that is not in the cache is not known.
    """

    def __init__(
        self,
        own: Origin,
        results: Store,
        *,
        versions: Mapping[str, str],
        code: Mapping[str, str],
        conditions: Mapping[str, Mapping[str, Any]],
        fetch: bool,
        offline: bool,
    ) -> None:
        self._own, self._results = own, results
        self._versions, self._code, self._conditions = versions, code, conditions
        self._fetch, self._offline = fetch, offline
        self.checkpoint = cache(self._checkpoint)
        self.stage = cache(self._stage)

    def data(self, asked: DataSource, key: str) -> str | None:
        """What identifies a data set, without reading it: the digest of a file, the commit of a Hub repository."""
        source = asked.dataset
        if source == SAMPLE:
            return files.sha256(TRAIN if asked.split == "train" else HELDOUT)
        if is_path(source):
            try:
                return files.sha256(Path(source))
            except OSError as error:
                raise BadTarget(f"{source}: {error.strerror}", f"let {key} name a SQuAD-layout file") from None
        try:
            return commit(source, asked.revision, "dataset", offline=self._offline or not self._fetch)
        except QABuildError as error:
            if self._fetch:
                error.message = f"{key}: {error.message}"
                raise
            _require_unknown(error)
            return None

    def _checkpoint(self, origin: Origin, head: bool = True) -> Checkpoint | None:
        """The checkpoint; None where its Hub id is not resolved, or its training not carried out.

        Without `head` it is only to be trained, and may have none for question answering.
        """
        if isinstance(origin, Trained):
            return self.stage(origin).result
        from qabuild.models.checkpoint.resolve import resolve

        model, revision, digest = origin.model, origin.revision, origin.digest
        if self._fetch or not is_id(model):
            return resolve(model, revision, digest=digest, head=head, offline=self._offline)
        try:
            return resolve(model, revision, digest=digest, head=head, offline=True)
        except QABuildError as error:
            _require_unknown(error)
            return None

    def _stage(self, trained: Trained) -> Stage:
        start, conditions = self.checkpoint(trained.start, head=False), self._conditions[trained.train.dtype]
        training.check(trained.train, start, conditions)
        inputs = training.inputs_of(
            trained,
            start=self._identity(trained.start, head=False),
            teacher=self._identity(trained.teacher) if trained.teacher else None,
            data=self.data(trained.train, "train.dataset"),
            conditions=conditions,
            code=self._code,
            packages=self._versions,
        )
        return Stage(
            trained=trained,
            label="" if trained == self._own else f"{trained.name} ",
            start=start,
            teacher=self.checkpoint(trained.teacher) if trained.teacher else None,
            result=self._result(trained, inputs["train"]),
            inputs=inputs,
        )

    def _result(self, trained: Trained, inputs: Inputs) -> Checkpoint | None:
        """What the training made, if the store has it whole: its digest is what all that follows is keyed by."""
        from qabuild.models.checkpoint.resolve import resolve

        entry = self._results.find(key_of(inputs)) if training.is_known(inputs) else None
        if entry is None or not is_whole(entry):
            return None
        return replace(resolve(entry.directory), name=trained.name)

    def _identity(self, origin: Origin, head: bool = True) -> str | None:
        """The digest of a checkpoint, or the key of the training that will make it."""
        found = self.checkpoint(origin, head=head)
        if found is not None:
            return found.digest
        return self.stage(origin).key if isinstance(origin, Trained) else None


def _require_unknown(error: QABuildError) -> None:
    """Pass only what a network would mend; an id that is none, or a damaged checkpoint, is wrong now."""
    if isinstance(error, (BadTarget, UntrustedInput)):
        raise error
