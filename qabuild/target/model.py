"""Targets: what a user declares, as frozen values. `read.load` reads them from files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from qabuild.models.backends import BACKENDS, backend
from qabuild.models.calibration import Calibrated
from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.pruning.options import Prune
from qabuild.models.runtime import Runtime
from qabuild.models.training.options import Distill, Train
from qabuild.qa.answer_options import Answer
from qabuild.qa.data.dataset_ref import DatasetRef, DatasetTable
from qabuild.system import card_metadata
from qabuild.system.frozen import Frozen
from qabuild.system.hub import is_path
from qabuild.target.gates import Gates
from qabuild.target.lineage import Derived, Origin, original

if TYPE_CHECKING:
    BackendOptions = Any  # the Options of the backend that `name` chooses
else:
    BackendOptions = Annotated[
        Union[tuple(backend(name).Options for name in BACKENDS)],  # noqa: UP007 - the members come from the table
        Field(discriminator="name"),
    ]


class Verify(DatasetTable):
    """Which questions verify the artifact, and how."""

    split: str = Field("validation", min_length=1, description="split of the data set; of 'sample': train, validation")
    cross_check: Annotated[float, Field(ge=0, le=1)] | Literal["all"] = Field(
        0.1, description='share of the questions that a second pipeline answers as well, 0 to 1 or "all"'
    )
    batch_size: int = Field(
        8,
        ge=1,
        description="windows per batch of transformers' own pipeline, in the cross-check; an artifact whose answers "
        "depend on the batch is verified at this size and at 1",
    )
    gates: Gates = Field(Gates(), description="what must hold")


RENAMED: Mapping[tuple[str, str], str] = {("verify", "stock"): "cross_check"}
"""New name of a key, by its table and its old name, which still works."""

PINS = ("configuration", "revision", "fingerprint", "columns", "max_misplaced")
"""Keys beside the name of a data set that say which of its questions are meant."""

Table = TypeVar("Table", bound=Frozen)

STAGES = ("train", "prune", "recover")
"""Stages that derive a checkpoint from another one, in this order, and the names of their tables.

`distill` configures the training further; the table of `recover` is `prune.recover`.
"""


class Publish(Frozen):
    """Where `qabuild publish` pushes the artifact, and what of its questions it shows."""

    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="a Hub repository, owner/name")
    license: str | None = Field(
        None, description="an id such as apache-2.0; the default is that of the card, or of the checkpoint"
    )
    data: Literal["full", "ids", "none"] | None = Field(
        None,
        description="what the artifact shows of its questions: full (ids and texts), ids, or none (neither); "
        "the default is ids for a file, full for a Hub data set and the sample",
    )

    @field_validator("license")
    @classmethod
    def _require_license_id(cls, license: str | None) -> str | None:
        if license is not None and (problem := card_metadata.license_problem(license)):
            raise ValueError(problem)
        return license


class NamedPath(NamedTuple):
    """A file or folder, and where the target names it: "file:line" and the dotted key."""

    place: str
    key: str
    path: Path


class Target(Frozen):
    """One artifact to build. Its fields are the tables of the TOML file; `name` is the file's name."""

    name: str
    description: str = Field("", description="one line for tables")
    checkpoint: CheckpointSource = Field(description="where the weights come from")
    train: Train | None = Field(None, description="fine-tune the checkpoint first")
    distill: Distill | None = Field(None, description="let a teacher take part in the training")
    prune: Prune | None = Field(None, description="remove FFN neurons and attention heads before it is compiled")
    backend: BackendOptions
    runtime: Runtime = Field(Runtime(), description="device and dtype")
    answer: Answer = Field(Answer(), description="how it answers, verified and served alike")
    verify: Verify = Field(Verify(), description="the round trip that verifies the artifact")
    publish: Publish = Field(Publish(), description="where to publish")
    _origin: Origin | None = PrivateAttr(None)
    _paths: tuple[NamedPath, ...] = PrivateAttr(())

    @property
    def origin(self) -> Origin:
        """The lineage of the checkpoint that is compiled, across targets."""
        return self._origin or self._own_origin({})

    @property
    def has_original(self) -> bool:
        """Whether the artifact is compared with the original: where it was distilled or pruned, or a gate compares."""
        compared = (self.distill, self.prune, self.verify.gates.max_f1_drop_from_original)
        return any(each is not None for each in compared)

    @property
    def original(self) -> Origin | None:
        """The checkpoint that the compiled one is to answer like, see `lineage.original`; None unless compared."""
        return original(self.origin) if self.has_original else None

    @property
    def shown(self) -> Literal["full", "ids", "none"]:
        """What the artifact shows of its questions."""
        return self.publish.data or ("ids" if is_path(self.verify.dataset) else "full")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that derive its checkpoint from another one, in order."""
        return tuple(stage for stage in STAGES if self._stage_table(stage) is not None)

    def stage_table(self, stage: str) -> Frozen:
        """The table of one of `stages`."""
        table = self._stage_table(stage)
        if table is None:
            raise AssertionError(f"{self.name} has no stage {stage}")
        return table

    def _stage_table(self, stage: str) -> Frozen | None:
        if stage == "train":
            return self.training if self.train or self.distill else None
        table: Frozen | None = self.prune and self.prune.recover if stage == "recover" else getattr(self, stage)
        return table

    @property
    def training(self) -> Train:
        """How the checkpoint is trained: [train], or its defaults where only [distill] is given."""
        return self.train or Train()

    @property
    def calibrated(self) -> Calibrated | None:
        """The backend's options, if they name questions that compiling reads for calibration; else None."""
        options = self.backend
        return options if isinstance(options, Calibrated) and options.calibrates(self.runtime) else None

    @property
    def datasets(self) -> dict[str, DatasetRef]:
        """The questions that building the artifact from its checkpoint reads, by the key that names them."""
        own = {"verify.dataset": self.verify.data}
        return {**own, "backend.calibration": self.calibrated.data} if self.calibrated else own

    def stage_datasets(self, stage: str) -> dict[str, DatasetRef]:
        """The questions that one of `stages` reads, by the key that names them."""
        table = self.stage_table(stage)
        name = "prune.recover" if stage == "recover" else stage
        return {f"{name}.dataset": table.data} if isinstance(table, DatasetTable) else {}

    def with_datasets(self, pins: Mapping[DatasetRef, DatasetRef]) -> Target:
        """This target, with the data sets that it names replaced by pinned ones."""
        return _with_datasets(self, pins)

    @property
    def paths(self) -> tuple[NamedPath, ...]:
        """All files and folders that a build reads; none of a target that was not read from a file."""
        return self._paths

    def with_paths(self, paths: Iterable[NamedPath]) -> Target:
        """This target, with these `paths`."""
        changed = self.model_copy()
        changed._paths = tuple(paths)
        return changed

    def built_on(self, bases: Mapping[str, Target]) -> Target:
        """This target, built on the targets in `bases`, which are keyed by path."""
        base = bases.get(self.checkpoint.target or "")
        built = self
        if base:
            # Builds on the base's checkpoint, not its artifact: without stages of its own, it takes the base's tables.
            tables = {} if self.stages else {name: getattr(base, name) for name in STAGE_TABLES}
            built = self.model_copy(update={"checkpoint": base.checkpoint, **tables})
        origin = self._own_origin(bases)
        built = built.model_copy()
        built._origin = origin if isinstance(origin, Derived) else None
        return built

    def with_origin(self, origin: Origin) -> Target:
        """This target, with another origin of its checkpoint."""
        changed = self.model_copy()
        changed._origin = origin
        return changed

    def _own_origin(self, bases: Mapping[str, Target]) -> Origin:
        def origin_of(source: CheckpointSource) -> Origin:
            return bases[source.target].origin if source.target else source

        origin = origin_of(self.checkpoint)
        for stage in self.stages:
            teacher = origin_of(self.distill.teacher) if self.distill and stage == "train" else None
            if stage == "recover":
                assert isinstance(origin, Derived)
                teacher = origin.start  # what was pruned
            origin = Derived(target=self, stage=stage, start=origin, teacher=teacher)
        return origin

    @model_validator(mode="before")
    @classmethod
    def _default_to_teacher(cls, tables: Any) -> Any:
        """A student without a checkpoint of its own is initialised from its teacher's layers."""
        if isinstance(tables, dict) and "checkpoint" not in tables:
            distill, train = tables.get("distill"), tables.get("train")
            teacher = distill.get("teacher") if isinstance(distill, dict) else None
            if isinstance(teacher, dict) and isinstance(train, dict) and "layers" in train:
                return {**tables, "checkpoint": teacher}
        return tables

    @model_validator(mode="before")
    @classmethod
    def _calibrate_on_training_data(cls, tables: Any) -> Any:
        """Without a calibration data set of its own, int8 is calibrated on the questions that the target trains on."""
        train, options = (tables.get("train"), tables.get("backend")) if isinstance(tables, dict) else (None, None)
        if not isinstance(train, dict) or not isinstance(options, dict) or "dataset" not in train:
            return tables
        name, named = options.get("name"), {"calibration", *(f"calibration_{key}" for key in PINS)} & options.keys()
        if (
            named
            or not isinstance(name, str)
            or name not in BACKENDS
            or not issubclass(backend(name).Options, Calibrated)
        ):
            return tables
        pins = {f"calibration_{key}": train[key] for key in PINS if key in train}
        return {**tables, "backend": {**options, "calibration": train["dataset"], **pins}}

    @field_validator("distill")
    @classmethod
    def _require_held_out_for_search(cls, distill: Distill | None, info: ValidationInfo) -> Distill | None:
        train = info.data.get("train")
        if distill and distill.search and not (train and train.held_out):
            raise ValueError("a search scores its trials on held-out questions: set train.held_out")
        return distill

    @field_validator("name")
    @classmethod
    def _require_folder_name(cls, name: str) -> str:
        if not is_name(name):
            raise ValueError(
                f"{name!r} would be the artifact's folder, whose name begins with one of a to z, A to Z, 0 to 9, "
                "continues with these and '.', '_', '-', and does not end in '.failed': rename the file"
            )
        return name


def is_name(name: str) -> bool:
    """Whether a target may have that name, which becomes the name of its artifact's folder."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None and not name.endswith(".failed")


def _with_datasets(table: Table, pins: Mapping[DatasetRef, DatasetRef]) -> Table:
    """`table` with the data sets that it and the tables in it name replaced by pinned ones."""
    changed: dict[str, Any] = {}
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, Frozen) and (pinned := _with_datasets(value, pins)) != value:
            changed[name] = pinned
    if changed:
        table = table.model_copy(update=changed)
    if isinstance(table, DatasetTable | Calibrated) and table.data in pins:
        return cast(Table, table.with_data(pins[table.data]))
    return table


def _dataset_tables(table: type[Frozen], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in table.model_fields.items():
        for member in (field.annotation, *get_args(field.annotation)):
            if isinstance(member, type) and issubclass(member, DatasetTable):
                yield (*place, name)
                yield from _dataset_tables(member, (*place, name))


STAGE_TABLES = tuple(name for name in Target.model_fields if name in (*STAGES, "distill"))
"""The tables that configure stages."""

DATASET_TABLES: tuple[tuple[str, ...], ...] = tuple(_dataset_tables(Target))
"""The tables that name a data set, each by the keys that lead to it."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a target file, for editors that complete and check TOML."""
    schema = Target.model_json_schema()
    del schema["properties"]["name"]
    schema["required"].remove("name")
    schema["properties"] = {
        "extends": {"type": "string", "description": "a target that this one starts from, relative to this file"},
        **schema["properties"],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "qabuild target", **schema}
