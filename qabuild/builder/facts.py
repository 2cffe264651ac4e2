"""The facts that a plan depends on: digests, versions, what the store holds. Looks, and fetches where told to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.builder import data_pins
from qabuild.builder.closure import ImportGraph
from qabuild.builder.input_files import InputFiles
from qabuild.builder.keys import Inputs, is_known, step_key
from qabuild.builder.requirements import requirements
from qabuild.builder.steps import of_stage, reference
from qabuild.builder.steps.step import Facts
from qabuild.builder.store.local import Entry, Store, is_intact
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models.support import check
from qabuild.system import machine, packages
from qabuild.system.hub import is_id, is_path
from qabuild.target.lineage import Derived, Origin, derivations
from qabuild.target.paths import require_paths

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint
    from qabuild.models.checkpoint.source import CheckpointSource
    from qabuild.qa.data.dataset_ref import DatasetRef
    from qabuild.target.model import Target


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """A stage that leads to the checkpoint, and what is known of it."""

    derived: Derived
    label: str
    """What stands before the names of its steps: nothing for the target's own."""
    facts: Facts
    """As its steps see them: their checkpoint is the one that the stage starts from."""
    inputs: Mapping[str, Inputs]
    """Of each step that it has, in order."""
    result: Checkpoint | None
    """The checkpoint that it made, where the store has it."""

    @property
    def key(self) -> str | None:
        """Of the step that makes the checkpoint; None where something that decides it is not known yet."""
        inputs = self.inputs[self.derived.stage]
        return step_key(inputs) if is_known(inputs) else None


@dataclass(frozen=True, kw_only=True)
class TargetFacts(Facts):
    """All that the plan of a target depends on beside the target."""

    derivations: tuple[Derivation, ...] = ()
    """The stages that lead to the checkpoint."""
    missing: tuple[str, ...]
    """What this machine lacks for the target."""
    cached: frozenset[str]
    """Keys of the results in the store."""
    previous: Mapping[str, Entry | None]
    """The results of the last build under the same name, by step; None for one that is no longer in the store."""


def gather(target: Target, results: Store, name: str, *, fetch: bool, offline: bool = False) -> TargetFacts:
    """Look at everything the plan depends on; with `fetch`, Hub ids are resolved and checkpoints downloaded.

    `name` is that of the build whose previous results count, see `plan.history_name`. Raises what
    `qabuild.models.checkpoint.resolve.resolve` raises, but for a Hub id that is not in the cache when `fetch` is
    false; BadTarget if backend, dtype or [answer] do not fit the checkpoint; with `fetch`, MissingEnvironment if a
    tokenizer needs a package that is not installed.
    """
    require_paths(target)
    required = requirements(target)
    collector = FactCollector(
        target,
        results,
        versions=packages.versions(required),
        machine=machine.describe(),
        fetch=fetch,
        offline=offline,
    )
    if start := collector.start(target.origin):
        check(start.config, target.backend, target.runtime)
    for origin in (target.origin, target.original):
        if origin and (start := collector.start(origin)):
            reference.check(target, start)
    stages = tuple(map(collector.derivation, derivations(target.origin)))
    facts = collector.facts(target.origin, target.original, target.datasets)
    unread = packages.missing(collector.tokenizer_packages, "cpu")
    if fetch:
        packages.refuse(unread)
    return TargetFacts(
        **facts.__dict__,
        derivations=stages,
        missing=(*packages.missing(required, target.runtime.device), *unread),
        cached=results.keys(),
        previous=results.recall(name),
    )


class FactCollector:
    """One look at what leads to the checkpoint of `target`: nothing is looked at twice.

    With `fetch`, Hub ids are resolved and downloaded; without, one that is not in the cache is not known.
    """

    def __init__(
        self,
        target: Target,
        results: Store,
        *,
        versions: Mapping[str, str],
        machine: Mapping[str, Any],
        fetch: bool,
        offline: bool,
    ) -> None:
        self._results = results
        self._owner = target.origin.target if isinstance(target.origin, Derived) else target
        self._versions, self._machine, self._code = versions, machine, ImportGraph()
        self._fetch, self._offline = fetch, offline
        self._input_files = InputFiles()
        self.tokenizer_packages: dict[str, tuple[str, ...]] = {}
        """What reading the tokenizers takes of the checkpoints looked at so far."""
        self.checkpoint = cache(self._checkpoint)
        self.derivation = cache(self._derivation)

    def start(self, origin: Origin, head: bool = True) -> Checkpoint | None:
        """What the stages that lead to the checkpoint start from: it has the same config, but for its size."""
        if isinstance(origin, Derived):
            return self.start(origin.start, head=origin.stage != "train")
        return self.checkpoint(origin, head=head)

    def facts(
        self, checkpoint: Origin, original: Origin | None, datasets: Mapping[str, DatasetRef], head: bool = True
    ) -> Facts:
        """What steps depend on that begin with that checkpoint and read those data sets."""
        return Facts(
            checkpoint=self.checkpoint(checkpoint, head=head),
            made_by=self._maker(checkpoint),
            original=self.checkpoint(original) if original else None,
            original_made_by=self._maker(original) if original else None,
            data={key: self._data(ref, key) for key, ref in datasets.items()},
            versions=self._versions,
            code=self._code,
            machine=self._machine,
            input_files=self._input_files,
        )

    def _data(self, ref: DatasetRef, key: str) -> str | None:
        """What identifies a data set, which is the pinned one as far as is known here; None where it is not known."""
        offline = self._offline or not self._fetch
        identity = None
        if is_path(ref.dataset):
            self._input_files.note(Path(ref.dataset))
        try:
            identity = data_pins.identity(ref, offline=offline)
            if ref.fingerprint:
                data_pins.require(ref, identity, self._results, self._code, keep=self._fetch, offline=offline)
        except QABuildError as error:
            error.message = f"{key}: {error.message}"
            if self._fetch:
                raise
            _require_unknown(error)
        return identity

    def _checkpoint(self, origin: Origin, head: bool = True) -> Checkpoint | None:
        """The checkpoint; None where its Hub id is not resolved, or its stage not carried out.

        Without `head` it is only to be trained, and may have none for question answering.
        """
        if isinstance(origin, Derived):
            return self.derivation(origin).result
        from qabuild.models.checkpoint.inspect import tokenizer_packages

        checkpoint = self._resolved(origin, head)
        if checkpoint is not None:
            self.tokenizer_packages |= dict.fromkeys(tokenizer_packages(checkpoint.directory), ())
        return checkpoint

    def _resolved(self, origin: CheckpointSource, head: bool) -> Checkpoint | None:
        from qabuild.models.checkpoint.resolve import resolve

        model, revision, digest = origin.model, origin.revision, origin.digest
        if is_path(model):
            self._input_files.note_checkpoint(Path(os.path.expanduser(model)))
        if self._fetch or not is_id(model):
            return resolve(model, revision, digest=digest, head=head, offline=self._offline)
        try:
            return resolve(model, revision, digest=digest, head=head, offline=True)
        except QABuildError as error:
            _require_unknown(error)
            return None

    def _maker(self, origin: Origin) -> str | None:
        """Key of the step that makes the checkpoint."""
        return self.derivation(origin).key if isinstance(origin, Derived) else None

    def _derivation(self, derived: Derived) -> Derivation:
        head = derived.stage != "train"  # what is trained may have no question-answering head yet
        datasets = derived.target.stage_datasets(derived.stage)
        facts = self.facts(derived.start, derived.teacher, datasets, head=head)
        inputs = {
            step.name: found
            for step in of_stage(derived.stage)
            if (found := step.inputs(derived.target, facts)) is not None
        }
        return Derivation(
            derived=derived,
            label="" if derived.target == self._owner else f"{derived.name} ",
            facts=facts,
            inputs=inputs,
            result=self._result(derived, inputs[derived.stage]),
        )

    def _result(self, derived: Derived, inputs: Inputs) -> Checkpoint | None:
        """What the stage made, if the store has it whole: its digest is what all that follows is keyed by."""
        from qabuild.models.checkpoint.resolve import resolve

        entry = self._results.find(step_key(inputs)) if is_known(inputs) else None
        if entry is None or not is_intact(entry):
            return None
        return replace(resolve(entry.directory), name=derived.name)


def is_checkpoint(entry: Entry) -> bool:
    """Whether a result can be read as the checkpoint that a stage has made."""
    from qabuild.models.checkpoint.resolve import resolve

    try:
        resolve(entry.directory)
    except QABuildError:
        return False
    return True


def _require_unknown(error: QABuildError) -> None:
    """Pass only what a network would mend; an id that is none, or a damaged checkpoint, is wrong now."""
    if isinstance(error, (BadTarget, UntrustedInput)):
        raise error
