"""The artifact on disk: a folder, its manifest, and the evidence beside it.

`manifest.json` names every file that is loaded or executed, with size and SHA-256. `verification.json` names the
manifest's own digest. So one digest pins the whole artifact, and a change to any byte of it voids the evidence.
Sums prove integrity, not origin: whoever can replace the folder can reseal it, unless the digest is pinned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from qabuild.artifact import sealed_reference
from qabuild.artifact.sealed_reference import Reference
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends import backend
from qabuild.models.runtime import Runtime
from qabuild.system import files as whole
from qabuild.system.files import sha256
from qabuild.system.frozen import Frozen
from qabuild.target.gates import Gates

Table = TypeVar("Table", bound=Frozen)

MANIFEST = "manifest.json"
EVIDENCE = "verification.json"
FOLDER = "artifacts"
"""Where artifacts go, each by the name of its target, unless another folder is named."""
UNSEALED = frozenset({MANIFEST, EVIDENCE, "README.md", ".gitattributes"})
CACHE = ".cache"
UNSEALED_FOLDERS = frozenset({CACHE})
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    """What a file must be: its size in bytes and the SHA-256 of its content, in hex."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an artifact is made of and from. Everything in it is decided before verification; no times, no paths."""

    name: str
    qabuild: str
    """Version of the program that compiled it."""
    checkpoint: Mapping[str, Any]
    """name, revision (commit sha or null), digest, model_type"""
    backend: Mapping[str, Any]
    """Every option, defaults included."""
    runtime: Runtime
    verify: Mapping[str, Any]
    """Which questions, how many, drawn how, and the gates; `fingerprint` and `ids` are in reference/answers.json."""
    publish: Mapping[str, Any]
    record: Mapping[str, Any]
    """What the backend reported of compiling: fused nodes, traced shapes."""
    versions: Mapping[str, str]
    """Packages that took part in compiling."""
    steps: Mapping[str, str]
    """Key of each step of the plan that made this."""
    files: Mapping[str, SealedFile]
    training: Mapping[str, Any] | None = None
    """How the checkpoint was trained, and how its teacher answers the same questions; None where it was found."""

    stages: Sequence[Mapping[str, Any]] | None = None
    """What other stages made of the checkpoint, in order; None where there were none."""

    @cached_property
    def options(self) -> Any:
        """The options of the backend that compiled it, as `backend` states them."""
        return _parsed(backend(self.backend["name"]).Options, self.backend, "backend")

    @cached_property
    def gates(self) -> Gates:
        """What must hold of it, with what the target left open filled in by its dtype."""
        return _parsed(Gates, self.verify["gates"], "verify.gates").by_dtype(self.runtime.dtype)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, as they stand in manifest.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if values["stages"] is None:
            del values["stages"]
        files = {name: vars(file) for name, file in sorted(self.files.items())}
        return {"format": FORMAT, **values, "runtime": self.runtime.model_dump(mode="json"), "files": files}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, default=dict) + "\n"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact whose every file was held against its manifest."""

    directory: Path
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json, in hex."""

    @cached_property
    def reference(self) -> Reference:
        """What the checkpoint answers. Raises UntrustedInput where it cannot be read."""
        return sealed_reference.read(self.directory / sealed_reference.FOLDER)

    @property
    def evidence(self) -> dict[str, Any] | None:
        """What the last verification found, or None where there was none. Raises UntrustedInput for a damaged one."""
        try:
            return _read_evidence(self.directory)
        except ValueError as error:
            raise UntrustedInput(
                f"{self.directory / EVIDENCE}: damaged: {error}", f"verify it again: qabuild verify {self.directory}"
            ) from None


def sealed_files(directory: Path, *, linked: bool = False) -> Iterator[str]:
    """Names (POSIX, relative) of the files that a seal covers, in order.

    Raises UntrustedInput for links, unless files may be `linked`, and what else is neither a file nor a folder.
    """
    for folder, folders, names in os.walk(directory):
        at = Path(folder).relative_to(directory)
        if at == Path("."):
            folders[:] = [name for name in folders if name not in UNSEALED_FOLDERS]
        folders.sort()
        for name in sorted(names + [f for f in folders if Path(folder, f).is_symlink()]):
            path = Path(folder, name)
            if (path.is_symlink() and not linked) or not path.is_file():
                raise UntrustedInput(f"{path}: not a plain file", "an artifact holds no links; copy it without them")
            if at != Path(".") or name not in UNSEALED:
                yield (at / name).as_posix()


def measure_files(directory: Path) -> dict[str, SealedFile]:
    """Size and SHA-256 of every file that a seal covers."""
    return {
        name: SealedFile(size=(directory / name).stat().st_size, sha256=sha256(directory / name))
        for name in sealed_files(directory)
    }


def seal(directory: Path, **facts: Any) -> Artifact:
    """Write the manifest over the files now in `directory`; `facts` are the other fields of a Manifest."""
    manifest = Manifest(files=measure_files(directory), **facts)
    text = manifest.to_json()
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return Artifact(directory=directory, manifest=manifest, digest=hashlib.sha256(text.encode()).hexdigest())


def write_unsealed(path: Path, content: bytes) -> None:
    """Put `content` at `path`, one of an artifact's `UNSEALED` files, whole or not at all.

    What a kill leaves is in `CACHE`: beside the file it would be one that the manifest does not name.
    """
    stage = path.parent / CACHE
    stage.mkdir(exist_ok=True)
    try:
        whole.write(path, content, stage)
    finally:
        with suppress(OSError):  # others keep things there
            stage.rmdir()


def require_outside(path: Path) -> None:
    """Raise BadTarget for a file to be made inside an artifact, which would no longer be as it was sealed."""
    for folder in path.absolute().parents:
        if (folder / MANIFEST).is_file():
            raise BadTarget(f"{path}: lies in the artifact {folder}, which is sealed", "name a file elsewhere")


def open_artifact(directory: Path, digest: str | None = None, *, linked: bool = False) -> Artifact:
    """Hold every file against the manifest, and the manifest against `digest` where one is given.

    Files may be `linked` in the Hub's cache, which keeps the content of all commits elsewhere.

    Raises BadTarget where `directory` is no artifact or `digest` no SHA-256, UntrustedInput where any file was
    changed, is missing or was added. Nothing of the artifact has been deserialised when this returns.
    """
    if digest is not None and not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise BadTarget(f"digest '{digest}': not a SHA-256", "give its 64 digits: `sha256sum manifest.json` shows them")
    text = _read_manifest(directory)
    found = hashlib.sha256(text).hexdigest()
    if digest is not None and digest.lower() != found:
        raise UntrustedInput(
            f"{directory / MANIFEST}: its digest is {found}, not {digest.lower()}",
            "this is not the artifact that was pinned: fetch it again from where the digest came from",
        )
    manifest = _parse_manifest(directory / MANIFEST, text)
    _compare(directory, manifest.files, linked)
    _refuse_changed_since(directory, found)
    return Artifact(directory=directory, manifest=manifest, digest=found)


def read_manifest(directory: Path) -> Manifest:
    """What the manifest there says; no file is held against it. Raises as `open_artifact` does."""
    return _parse_manifest(directory / MANIFEST, _read_manifest(directory))


def _read_manifest(directory: Path) -> bytes:
    try:
        return (directory / MANIFEST).read_bytes()
    except FileNotFoundError:
        what = "no such folder" if not directory.exists() else f"not an artifact: it holds no {MANIFEST}"
    except NotADirectoryError:
        what = "not an artifact: a folder is wanted, this is a file"
    made = Path(FOLDER) / directory.name.removesuffix(".toml")  # of a target's file, or name
    hint = f"name a folder that `qabuild build` made, such as {FOLDER}/NAME"
    raise BadTarget(f"{directory}: {what}", f"{made} is one" if (made / MANIFEST).is_file() else hint)


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    try:
        document = json.loads(text)
        if document.pop("format") != FORMAT:
            raise UntrustedInput(f"{path}: of another format than {FORMAT}", "a newer qabuild may read it")
        files = {str(name): SealedFile(**entry) for name, entry in document.pop("files").items()}
        document["runtime"] = Runtime.model_validate(document["runtime"])
        return Manifest(files=files, **document)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UntrustedInput(f"{path}: damaged: {what}", "build or fetch the artifact again") from None


def _parsed(model: type[Table], values: Mapping[str, Any], key: str) -> Table:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join([key, *map(str, first['loc'])])}: {first['msg']}"
        raise UntrustedInput(f"{MANIFEST}: damaged, or written by another version: {what}", "build it again") from None


def _read_evidence(directory: Path) -> dict[str, Any] | None:
    """Raises ValueError where it is damaged."""
    try:
        evidence = json.loads((directory / EVIDENCE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if not isinstance(evidence, dict) or not isinstance(evidence.get("manifest"), str):
        raise ValueError("it names no manifest")
    return evidence


def _refuse_changed_since(directory: Path, digest: str) -> None:
    """The seal covers no manifest, but the evidence names the one that was verified."""
    with suppress(ValueError):  # damaged evidence proves nothing, neither for nor against the manifest
        evidence = _read_evidence(directory)
        if evidence and evidence["manifest"] != digest:
            raise UntrustedInput(
                f"{directory}: changed since it was verified: the digest of {MANIFEST} is {digest}, and {EVIDENCE} "
                f"speaks of {evidence['manifest']}",
                f"build or fetch it again; or, if you trust what is there, remove {EVIDENCE} and verify it",
            )


def _compare(directory: Path, files: Mapping[str, SealedFile], linked: bool) -> None:
    present = set(sealed_files(directory, linked=linked))
    wrong = [f"{name}: missing" for name in files if name not in present]
    wrong += [f"{name}: not in the manifest" for name in sorted(present - set(files))]
    for name in sorted(present & set(files)):
        if (size := (directory / name).stat().st_size) != files[name].size:
            wrong.append(f"{name}: {size} bytes instead of {files[name].size}")
        elif (digest := sha256(directory / name)) != files[name].sha256:
            wrong.append(f"{name}: its SHA-256 is {digest}, the manifest says {files[name].sha256}")
    if wrong:
        listed = "\n".join(f"  {line}" for line in wrong[:10] + (["..."] if len(wrong) > 10 else []))
        raise UntrustedInput(
            f"{directory}: not as it was sealed\n{listed}", "nothing of it was loaded; build or fetch it again"
        )
