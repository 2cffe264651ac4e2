"""Targets: what a user declares, read once into frozen values.

Reading does nothing else: no network, no environment, no device is touched, and no path is looked at but those of
the TOML files themselves.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from qabuild.backends import BACKENDS, Dtype, Frozen, Runtime, backend
from qabuild.errors import BadTarget
from qabuild.origin import CheckpointSource, Distill, Origin, Train, Trained

if TYPE_CHECKING:
    BackendOptions = Any  # the Options of the backend that `name` chooses
else:
    BackendOptions = Annotated[
        Union[tuple(backend(name).Options for name in BACKENDS)],  # noqa: UP007 - the members come from the table
        Field(discriminator="name"),
    ]

Toml = dict[str, Any]
KeyPath = tuple[str, ...]

# Keys that may name a path. A relative one is relative to the file that states it, so it is made absolute before
# `extends` merges files of different folders.
SOURCES: tuple[KeyPath, ...] = (
    ("checkpoint", "model"),
    ("checkpoint", "target"),
    ("train", "dataset"),
    ("train", "deepspeed"),
    ("distill", "teacher", "model"),
    ("distill", "teacher", "target"),
    ("backend", "calibration"),
    ("verify", "dataset"),
)


class Gates(Frozen):
    """What the artifact must keep of the checkpoint's answers; a gate that fails fails the build."""

    min_f1_retention: float = Field(
        0.99, ge=0, le=1, description="least F1 of the artifact over F1 of the checkpoint, 0 to 1"
    )
    min_agreement: float | None = Field(
        None, ge=0, le=1, description="least share of questions with the same answer, 0 to 1; the default is by dtype"
    )
    max_logit_difference: float | None = Field(
        None,
        ge=0,
        description="largest difference of a logit on the sealed probe inputs; the default is by dtype",
    )
    min_speedup: float | None = Field(
        None, gt=0, description="least samples/s of the artifact over that of the checkpoint, in the same run"
    )
    min_teacher_f1_retention: float | None = Field(
        None, ge=0, le=1, description="least F1 of the distilled checkpoint over F1 of its teacher, 0 to 1"
    )

    def by_dtype(self, dtype: Dtype) -> Gates:
        """These gates, with what is left open filled in by what the numbers of `dtype` can be expected to keep."""
        agreement, difference = GATES_BY_DTYPE[dtype]
        return self.model_copy(
            update={
                "min_agreement": agreement if self.min_agreement is None else self.min_agreement,
                "max_logit_difference": difference if self.max_logit_difference is None else self.max_logit_difference,
            }
        )


# Least agreement and largest logit difference. fp32 differs by the order of sums only; fp16 keeps 11 bits and bf16 8
# of a logit of about 10; int8 is judged by its F1 alone.
GATES_BY_DTYPE: dict[Dtype, tuple[float | None, float | None]] = {
    "fp32": (0.995, 1e-3),
    "fp16": (0.99, 0.1),
    "bf16": (0.97, 1.0),
    "int8": (None, None),
}


class Verify(Frozen):
    """Which questions prove the artifact, and how."""

    dataset: str = Field(
        "rajpurkar/squad",
        min_length=1,
        description="a Hub id, a SQuAD-layout .json or .json.gz that begins with ./, ../, / or ~, or 'sample'",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hub data set")
    fingerprint: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="what the fingerprint of the whole split must be"
    )
    split: str = Field("validation", min_length=1, description="split of the data set; of 'sample': train, validation")
    samples: int | None = Field(None, ge=1, description="how many questions, drawn by `seed`; all where it is absent")
    seed: int = Field(0, ge=0, description="seed of that draw, a whole number from 0")
    stock: Annotated[float, Field(ge=0, le=1)] | Literal["all"] = Field(
        0.1, description='share of the questions that transformers\' own pipeline answers as well, 0 to 1 or "all"'
    )
    batch_size: int = Field(8, ge=1, description="windows that the stock pipeline puts through the model at once")
    gates: Gates = Field(Gates(), description="what must hold")


class Publish(Frozen):
    """Where `qabuild publish` pushes the artifact."""

    repo: str | None = Field(None, pattern=r"^[\w.-]+/[\w.-]+$", description="a Hub repository, owner/name")
    license: str | None = Field(
        None, description="an id such as apache-2.0; what the card says, or that of the checkpoint, where it is absent"
    )


class Target(Frozen):
    """One artifact to be built. Fields are the tables of the TOML file; `name` is the file's own."""

    name: str
    description: str = Field("", description="one line for tables")
    checkpoint: CheckpointSource = Field(description="where the weights come from")
    train: Train | None = Field(None, description="fine-tune the checkpoint first")
    distill: Distill | None = Field(None, description="let a teacher take part in the training")
    backend: BackendOptions
    runtime: Runtime = Field(Runtime(), description="device and dtype")
    verify: Verify = Field(Verify(), description="the round trip that proves the artifact")
    publish: Publish = Field(Publish(), description="where to publish")
    _origin: Origin | None = PrivateAttr(None)

    @property
    def origin(self) -> Origin:
        """How the checkpoint that is compiled comes about, other targets included."""
        return self._origin or self._own_origin({})

    def built_on(self, bases: Mapping[str, Target]) -> Target:
        """This target, once those that it names as `target` are known, by their paths."""
        own = self.train or self.distill
        base = bases.get(self.checkpoint.target or "")
        # What is built on a target is its checkpoint, not its artifact: without a training of its own, its tables.
        tables = {} if own or not base else {"train": base.train, "distill": base.distill}
        built = self.model_copy(update={"checkpoint": base.checkpoint if base else self.checkpoint, **tables})
        origin = self._own_origin(bases)
        built._origin = origin if isinstance(origin, Trained) else None
        return built

    def with_origin(self, origin: Origin) -> Target:
        """This target, with another way to its checkpoint."""
        changed = self.model_copy()
        changed._origin = origin
        return changed

    def _own_origin(self, bases: Mapping[str, Target]) -> Origin:
        def of(source: CheckpointSource) -> Origin:
            return bases[source.target].origin if source.target else source

        if not (self.train or self.distill):
            return of(self.checkpoint)
        return Trained(
            name=self.name,
            start=of(self.checkpoint),
            train=self.train or Train(),
            distill=self.distill,
            teacher=of(self.distill.teacher) if self.distill else None,
        )

    @model_validator(mode="before")
    @classmethod
    def _starts_from_its_teacher(cls, tables: Any) -> Any:
        """A student that is named nowhere is made of its teacher's layers."""
        if isinstance(tables, dict) and "checkpoint" not in tables:
            distill, train = tables.get("distill"), tables.get("train")
            teacher = distill.get("teacher") if isinstance(distill, dict) else None
            if isinstance(teacher, dict) and isinstance(train, dict) and "layers" in train:
                return {**tables, "checkpoint": teacher}
        return tables

    @field_validator("distill")
    @classmethod
    def _trials_can_be_scored(cls, distill: Distill | None, info: ValidationInfo) -> Distill | None:
        train = info.data.get("train")
        if distill and distill.search and not (train and train.held_out):
            raise ValueError("a search scores its trials on held-out questions: set train.held_out")
        return distill

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name.endswith(".failed"):
            raise ValueError(
                f"{name!r} would be the artifact's folder, whose name is made of a to z, A to Z, 0 to 9, '.', '_' and "
                "'-' and does not end in '.failed': rename the file"
            )
        return name


def load(path: str | Path, overrides: Sequence[str] = ()) -> Target:
    """Read the target at `path`; each override is `dotted.key=value`, its value in TOML or a bare string.

    Raises BadTarget with every mistake of the file, and of those it extends, in one message.
    """
    return _load(Path(path), overrides, ())


def _load(path: Path, overrides: Sequence[str], built_on_by: tuple[Path, ...]) -> Target:
    """`load`; `built_on_by` are the targets that led to this one by [checkpoint] target, outermost first."""
    files = _read_chain(path, built_on_by)
    merged: Toml = {}
    for file in reversed(files):
        merged = _merge(merged, file.content)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    try:
        target = Target.model_validate({**merged, "name": path.stem})
    except ValidationError as error:
        raise BadTarget(_explain(error, files, overrides)) from None
    backend(target.backend.name).check({}, target.backend, target.runtime)
    teacher = target.distill.teacher.target if target.distill else None
    named = filter(None, (target.checkpoint.target, teacher))
    built = target.built_on({base: _load(Path(base), (), (*built_on_by, path)) for base in named})
    if built.verify.gates.min_teacher_f1_retention is not None and built.distill is None:
        raise BadTarget(
            f"{path}: verify.gates.min_teacher_f1_retention: there is no teacher",
            "name one in [distill], or take the gate out",
        )
    return built


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


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """One TOML file of a chain of `extends`."""

    path: Path
    text: str
    content: Toml

    @cached_property
    def lines(self) -> Mapping[KeyPath, int]:
        """Line number of every table header and key, found by scanning: tomllib keeps no places."""
        found: dict[KeyPath, int] = {}
        table: KeyPath = ()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
                table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
                found.setdefault(table, number)
            elif key := re.match(r"\s*([\w\"'.-]+(?:\s*\.\s*[\w\"'-]+)*)\s*=", line):
                parts = tuple(part.strip().strip("\"'") for part in key[1].split("."))
                found.setdefault(table + parts, number)
        return found


def _read_chain(path: Path, built_on_by: tuple[Path, ...]) -> list[_File]:
    """The target's file, the one it extends, and so on."""
    _refuse_circle(path, built_on_by, "build on each other's checkpoint", "give one of them a model of its own")
    chain: list[_File] = []
    while True:
        _refuse_circle(path, [f.path for f in chain], "extend each other", "let one of them state its own tables")
        file = _read(path, f"extended by {chain[-1].path}" if chain else _because(built_on_by))
        chain.append(file)
        base = file.content.pop("extends", None)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise BadTarget(
                f"{path}: extends: given {base!r}", 'write the path of one TOML file: extends = "base.toml"'
            )
        path = path.parent / base


def _refuse_circle(path: Path, before: Sequence[Path], how: str, hint: str) -> None:
    if path.resolve() in [earlier.resolve() for earlier in before]:
        raise BadTarget(f"targets {how} in a circle: {' -> '.join(map(str, [*before, path]))}", hint)


def _because(built_on_by: tuple[Path, ...]) -> str:
    return f"built on by {' -> '.join(map(str, built_on_by))}" if built_on_by else ""


def _read(path: Path, why: str) -> _File:
    because = f" ({why})" if why else ""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BadTarget(f"{path}: no such target{because}", _offer_neighbours(path)) from None
    except IsADirectoryError:
        raise BadTarget(f"{path} is a folder{because}", "name a .toml file in it") from None
    except UnicodeDecodeError as error:
        raise BadTarget(f"{path}: not UTF-8 at byte {error.start}{because}", "save the file as UTF-8") from None
    except OSError as error:
        raise BadTarget(f"{path}: cannot be read: {error.strerror}{because}") from None
    if not text.strip():
        raise BadTarget(f"{path}: is empty{because}", "see `qabuild schema`, or copy one of targets/")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        twice = "overwrite" in str(error) or "twice" in str(error)
        hint = "a key or a table stands there twice" if twice else "strings stand in quotes, tables in [brackets]"
        raise BadTarget(f"{path}: not TOML: {error}{because}", hint) from None
    return _File(path, text, _with_absolute_sources(content, path.parent))


def _offer_neighbours(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"perhaps you meant {path.parent / near[0]}" if near else "`qabuild targets` lists those that are here"


def _with_absolute_sources(content: Toml, folder: Path) -> Toml:
    for *tables, key in SOURCES:
        table: Any = content
        for name in tables:
            table = table.get(name) if isinstance(table, dict) else None
        if isinstance(table, dict) and isinstance(source := table.get(key), str):
            table[key] = _target_path(source, folder) if key == "target" else absolute_source(source, folder)
    return content


def _target_path(source: str, folder: Path) -> str:
    """The file of a target that is given by name, as those beside this file are, or by path."""
    return str(Path(folder, source if source.endswith(".toml") else f"{source}.toml").expanduser().absolute())


def absolute_source(source: str, folder: Path) -> str:
    """`source` itself unless it is a relative path (begins with ./ or ../), which is taken from `folder`."""
    if source.startswith("~"):
        return str(Path(source).expanduser())
    if source in (".", "..") or source.startswith(("./", "../")):
        return str(Path(folder, source).absolute())
    return source


def _merge(base: Toml, over: Toml) -> Toml:
    """`over` on top of `base`, table by table.

    What belongs to one value is not inherited by another: a backend's options, the revision and sums of a Hub id.
    """
    merged = dict(base)
    if any(over.get(key, base.get(key)) != base.get(key) for key in ("model", "target", "dataset", "calibration")):
        for key in ("revision", "digest", "fingerprint", "model", "target", "calibration_revision"):
            merged.pop(key, None)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            other_backend = key == "backend" and value.get("name", old.get("name")) != old.get("name")
            merged[key] = value if other_backend else _merge(old, value)
        else:
            merged[key] = value
    return merged


def _parse_override(override: str) -> Toml:
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise BadTarget(f"--set {override}: not of the form key=value", "for example --set verify.samples=200")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string, so that no quotes within quotes are needed
    if path == ["extends"]:
        raise BadTarget(f"--set {override}: another target to start from is not set for one run", "write a file for it")
    nested: Toml = {path[-1]: value}
    for part in reversed(path[:-1]):
        nested = {part: nested}
    return _with_absolute_sources(nested, Path.cwd())


# --- explaining -----------------------------------------------------------------------------------------------------


def _explain(error: ValidationError, files: list[_File], overrides: Sequence[str]) -> str:
    """All mistakes, one a line, each with its place, its key path, what was given and what would be accepted."""
    messages: dict[KeyPath, str] = {}
    for mistake in error.errors():
        path = _key_path(mistake)
        place = _place(path, files, overrides, mistake["type"] == "value_error")
        messages.setdefault(path, f"{place}: {'.'.join(path)}: {_wrong(mistake, path)}")
    count = "one mistake" if len(messages) == 1 else f"{len(messages)} mistakes"
    return f"{files[0].path}: {count}\n" + "\n".join(f"  {message}" for message in messages.values())


def _key_path(mistake: Any) -> KeyPath:
    """Where the mistake stands in the file: pydantic's location without the names of a union's members."""
    if mistake["type"].startswith("union_tag"):
        return ("backend", "name")
    parts = [str(part) for part in mistake["loc"]]
    if parts[0] == "backend":
        del parts[1:2]
    path: KeyPath = ()
    for part in parts:
        known = _fields(path)
        if not known:  # below a key there are no more keys
            return path
        path = (*path, part)
        if part not in known:
            return path
    return path


def _place(path: KeyPath, files: list[_File], overrides: Sequence[str], of_a_table: bool) -> str:
    """File and line, or "--set"; what is wrong with a table as a whole is so by the override of any of its keys."""
    key = ".".join(path)
    for override in overrides:
        name = override.split("=")[0].strip()
        if name == key or (of_a_table and name.startswith(f"{key}.")):
            return "--set"
    for length in range(len(path), 0, -1):  # a missing key is placed at its table
        for file in files:
            if line := file.lines.get(path[:length]):
                return f"{file.path}:{line}"
    return str(files[0].path)


def _wrong(mistake: Any, path: KeyPath) -> str:
    kind, given = mistake["type"], mistake["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_offer(path, mistake['loc'])}"
    if kind == "missing":
        wanted = f"a table with a name: {', '.join(BACKENDS)}" if path == ("backend",) else _accepted(path)
        return f"is missing; accepted: {wanted}"
    if kind == "value_error":
        return str(mistake["ctx"]["error"])
    if kind.startswith("union_tag"):
        name = given.get("name") if isinstance(given, dict) else given
        near = difflib.get_close_matches(str(name), BACKENDS, n=1)
        perhaps = f"; perhaps you meant {near[0]!r}" if near else ""
        return f"{f'given {name!r}' if name else 'is missing'}; accepted: {', '.join(BACKENDS)}{perhaps}"
    return f"given {given!r}; accepted: {_accepted(path) or mistake['msg']} ({mistake['msg']})"


def _offer(path: KeyPath, location: Sequence[int | str]) -> str:
    """Which key was probably meant: the nearest name in the same table, or the same name in others."""
    siblings = _fields(path[:-1])
    if path[0] == "backend":
        siblings = backend(str(location[1])).Options.model_fields
        if owners := [name for name in BACKENDS if path[-1] in backend(name).Options.model_fields]:
            return f" of backend {location[1]}; it belongs to {', '.join(owners)}"
    elif len(path) == 1:
        siblings = {"extends": None, **siblings}
    if near := difflib.get_close_matches(path[-1], siblings, n=1):
        return f"; perhaps you meant {near[0]!r}"
    homes = [other[:-1] for other in _all_keys() if other[-1] == path[-1]]
    if homes:
        named = [f"[{'.'.join(home)}]" if home else "the top" for home in homes]
        return f"; it belongs to {' or '.join(named)}"
    return f"; known here: {', '.join(siblings)}" if siblings else ""


def _accepted(path: KeyPath) -> str:
    field = _fields(path[:-1]).get(path[-1])
    return (field.description or "") if field else ""


def _fields(table: KeyPath) -> dict[str, Any]:
    """The fields of a table of the target; of `[backend]`, those of every backend."""
    if table == ("backend",):
        return {key: field for name in BACKENDS for key, field in backend(name).Options.model_fields.items()}
    model: type[BaseModel] = Target
    for part in table:
        field = model.model_fields.get(part)
        inner = table_of(field.annotation) if field else None
        if inner is None:
            return {}
        model = inner
    return {key: field for key, field in model.model_fields.items() if (model, key) != (Target, "name")}


def _all_keys(table: KeyPath = ()) -> Iterator[KeyPath]:
    for key, field in _fields(table).items():
        yield (*table, key)
        if (*table, key) == ("backend",) or table_of(field.annotation):
            yield from _all_keys((*table, key))


def table_of(annotation: Any) -> type[BaseModel] | None:
    """The model behind a field that is a table, or a table that may be absent; None for any other field."""
    members = (annotation, *get_args(annotation))
    return next((each for each in members if isinstance(each, type) and issubclass(each, BaseModel)), None)
