"""What a build step is, what decides it, and what it is given when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from qabuild.builder.closure import ImportGraph
from qabuild.builder.input_files import InputFiles
from qabuild.builder.keys import UNKNOWN, Inputs
from qabuild.builder.store.local import Entry
from qabuild.system.reporter import Reporter
from qabuild.target.model import Target

if TYPE_CHECKING:
    from qabuild.artifact.manifest import Artifact
    from qabuild.models.checkpoint.resolve import Checkpoint

ARTIFACT, VERIFICATION = "artifact", "verification"
"""The stages that every target has; the others are tables of a target, each of which makes a checkpoint."""

Requirements = Mapping[str, Sequence[str]]
"""Distributions by their PyPI names, each with the extras of qabuild that install it."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a step depends on beside the tables of its target."""

    checkpoint: Checkpoint | None
    """What is compiled, or what a stage starts from. None where it is not known yet: a Hub id that was not resolved, a
    stage that was not carried out."""
    made_by: str | None = None
    """Key of the step that will make the checkpoint."""
    original: Checkpoint | None = None
    """What the checkpoint is to answer like: for a training, its teacher; for a target, see `Target.original`."""
    original_made_by: str | None = None
    data: Mapping[str, str | None]
    """Digest or commit sha of each data set, by the key that names it; None where it is not known yet."""
    versions: Mapping[str, str]
    code: ImportGraph
    machine: Mapping[str, Any]
    input_files: InputFiles = field(default_factory=InputFiles, compare=False, repr=False)
    """What these facts were read from."""

    @property
    def identity(self) -> Any:
        """What identifies the checkpoint: its digest, or the key of the step that will make it."""
        return _identity(self.checkpoint, self.made_by)

    @property
    def original_identity(self) -> Any:
        return _identity(self.original, self.original_made_by)

    def data_identity(self, key: str) -> Any:
        """What identifies the data set that the target's `key` names."""
        return self.data[key] or UNKNOWN


def _identity(checkpoint: Checkpoint | None, made_by: str | None) -> Any:
    return checkpoint.digest if checkpoint else made_by or UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step is given when it runs."""

    target: Target
    facts: Facts
    inputs: Inputs
    """What decided it."""
    results: Mapping[str, Entry] = field(default_factory=dict)
    """The results of earlier steps of the same stage, by name."""
    artifact: Artifact | None = None
    """What is to be verified: for steps of the stage `VERIFICATION`."""
    work: Path
    """A folder that outlives an interruption, to go on from."""
    offline: bool
    reporter: Reporter

    @property
    def checkpoint(self) -> Checkpoint:
        return require_checkpoint(self.facts.checkpoint)


class Step(Protocol):
    """One step of a build. Importing its module imports no runtime; `run` does."""

    name: ClassVar[str]
    stage: ClassVar[str]
    """The table of a target that it belongs to, or `ARTIFACT`, `VERIFICATION`. The step named as its stage makes
    the checkpoint of that stage."""
    folder: ClassVar[str | None]
    """Of `ARTIFACT`: the folder of the artifact that its files go to; None where they stay in the store."""

    def requires(self, target: Target) -> Requirements:
        """The packages that decide the result; empty where the target has no such step."""

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        """Everything that decides the result; None where the target has no such step. Pure.

        Raises BadTarget for what cannot be carried out.
        """

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        """Write the result into the empty `directory`; returns what is to be recorded beside it, as JSON values."""


def require_checkpoint(checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint of a step that runs, which knows it."""
    if checkpoint is None:
        raise AssertionError("a step that runs knows its checkpoint")
    return checkpoint


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the manifest says of a checkpoint."""
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "digest": checkpoint.digest,
        "model_type": checkpoint.config.get("model_type"),
    }
