"""The artifact on disk: a folder, its manifest, and the evidence beside it.

`manifest.json` names every file that is loaded or executed, with size and SHA-256. `verification.json` names the
manifest's own digest. So one digest pins the entire artifact, and a change to any byte of it voids the evidence.
Digests verify integrity, not origin: whoever can replace the folder can reseal it, unless the digest is pinned or the
artifact is signed, see `signature`.
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

from qabuild.artifact import FOLDER as FOLDER
from qabuild.artifact import failed_folder, handler, sealed_reference
from qabuild.artifact.sealed_reference import Reference
from qabuild.artifact.tables import BackendTable, Deviation, Named, PublishTable, Record, Stage, Training, VerifyTable
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends import backend
from qabuild.models.checkpoint.inspect import refuse_code
from qabuild.models.runtime import Runtime
from qabuild.qa.answer_options import EARLIER, Answer
from qabuild.system import documents, files
from qabuild.system.documents import Count
from qabuild.system.files import sha256
from qabuild.system.frozen import Frozen
from qabuild.system.sealed import MANIFEST
from qabuild.target.gates import Gates

Table = TypeVar("Table", bound=Frozen)

EVIDENCE = "verification.json"
MODEL_SIGNATURE, EVIDENCE_SIGNATURE, PROVENANCE = "model.sig", "verification.sig", "provenance.sig"
SIGNATURES = (MODEL_SIGNATURE, EVIDENCE_SIGNATURE, PROVENANCE)
UNSEALED = frozenset({MANIFEST, EVIDENCE, *SIGNATURES, "README.md", ".gitattributes"})
CACHE = ".cache"
EVAL_RESULTS = ".eval_results"
"""Where the Hub keeps the results of evaluations; anyone may propose further ones there."""
UNSEALED_FOLDERS = frozenset({CACHE, EVAL_RESULTS})
PLAIN = "an artifact holds plain files: copy it without links, and without folders or pipes in their places"
"""What to do about anything else."""
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SealedFile:
    """Expected size of a file in bytes, and SHA-256 of its content, in hex."""

    size: Count
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents and inputs of an artifact, all of them known before verification; no times, no paths."""

    name: str
    qabuild: str
    """Version of the program that compiled it."""
    __pydantic_config__ = documents.CLOSED

    checkpoint: Named
    backend: BackendTable
    """Every option, defaults included."""
    runtime: Runtime
    verify: VerifyTable
    """The questions, how they are sampled, and the gates; `fingerprint` and `ids` are in reference/answers.json."""
    publish: PublishTable
    record: Record
    """What the backend reported about compiling: fused nodes, traced shapes."""
    versions: Mapping[str, str]
    """Versions of the packages that compiled it."""
    steps: Mapping[str, str]
    """Key of each step of the plan that built it."""
    files: Mapping[str, SealedFile]
    training: Training | None = None
    """How the checkpoint was trained, and its teacher's scores on the same questions; None where it was not trained."""

    stages: Sequence[Stage] | None = None
    """Records of the other stages applied to the checkpoint, in order; None without such stages."""
    deviation: Deviation | None = None
    """How far the compiled model was from its checkpoint; None in fp32, and where it could not be measured."""
    answer: Mapping[str, Any] | None = None
    """How it answers: every key of [answer], defaults included; None in manifests of earlier versions."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the pipeline with which it answers; None is the pipeline's default."""
        return dict(EARLIER) if self.answer is None else _parse_table(Answer, self.answer, "answer").model_dump()

    @property
    def options(self) -> Any:
        """The options of the backend that compiled it, parsed from `backend`."""
        return _parse_table(backend(self.backend["name"]).Options, self.backend, "backend")

    @cached_property
    def gates(self) -> Gates:
        """The gates of the target, with unset limits filled in from the defaults of its dtype."""
        return _parse_table(Gates, self.verify["gates"], "verify.gates").by_dtype(self.runtime.dtype)

    @property
    def cross_check(self) -> float:
        """Share of the questions that a second pipeline answers, 0 to 1."""
        share = self.verify.get("cross_check", self.verify.get("stock", "all"))
        return 1.0 if share == "all" else float(share)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, as they stand in manifest.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("stages", "deviation", "answer"):
            if values[name] is None:
                del values[name]
        files = {name: vars(file) for name, file in sorted(self.files.items())}
        return {"format": FORMAT, **values, "runtime": self.runtime.model_dump(mode="json"), "files": files}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, default=dict) + "\n"


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact whose files were all checked against its manifest."""

    directory: Path
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json, in hex."""

    @cached_property
    def reference(self) -> Reference:
        """The reference answers. Raises UntrustedInput where they cannot be read."""
        return sealed_reference.read(self.directory / sealed_reference.FOLDER)

    @cached_property
    def original(self) -> Reference | None:
        """What the checkpoint before training, or the teacher, answers to the questions of the reference.

        None where the artifact does not hold that. Raises UntrustedInput where it cannot be read, or holds other
        questions.
        """
        folder = self.directory / sealed_reference.ORIGINAL
        if not folder.is_dir():
            return None
        original = sealed_reference.read(folder)
        if original.answers.keys() != self.reference.answers.keys() or original.data != self.reference.data:
            raise UntrustedInput(f"{folder}: not of the questions of the reference", "build the artifact again")
        return original

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The evidence as JSON values; None where it was never verified. Raises UntrustedInput where it is damaged."""
        try:
            return _read_evidence(self.directory)
        except ValueError as error:
            raise UntrustedInput(
                f"{self.directory / EVIDENCE}: damaged: {error}", f"verify it again: qabuild verify {self.directory}"
            ) from None


def sealed_files(directory: Path, *, linked: bool = False) -> Iterator[str]:
    """Names (POSIX, relative) of the files that the manifest covers, in order.

    Raises UntrustedInput for anything that is neither a file nor a folder, and for links unless files may be `linked`;
    so it does in `UNSEALED_FOLDERS`, where other programs may add and remove files at the same time.
    """
    for folder, folders, names in os.walk(directory):
        relative = Path(folder).relative_to(directory)
        unsealed = relative.parts[:1] and relative.parts[0] in UNSEALED_FOLDERS
        folders.sort()
        unsealed_names = UNSEALED if relative == Path(".") else ()
        for name in sorted(names + [f for f in folders if Path(folder, f).is_symlink() or f in unsealed_names]):
            path = Path(folder, name)
            if unsealed and not os.path.lexists(path):
                continue
            if (path.is_symlink() and not linked) or not path.is_file():
                raise UntrustedInput(f"{path}: not a plain file", PLAIN)
            if not unsealed and name not in unsealed_names:
                yield (relative / name).as_posix()


def measure_files(directory: Path) -> dict[str, SealedFile]:
    """Size and SHA-256 of every file that the manifest covers."""
    return {
        name: SealedFile(size=(directory / name).stat().st_size, sha256=sha256(directory / name))
        for name in sealed_files(directory)
    }


def seal(directory: Path, **facts: Any) -> Artifact:
    """Write the manifest of the files now in `directory`; `facts` are the other fields of Manifest."""
    manifest = Manifest(files=measure_files(directory), **facts)
    text = manifest.to_json()
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return Artifact(directory=directory, manifest=manifest, digest=_digest_of(text.encode()))


def _digest_of(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


def write_unsealed(path: Path, content: bytes) -> None:
    """Write `content` atomically to `path`, one of an artifact's `UNSEALED` files.

    The temporary file is in `CACHE`: left beside `path` by a kill, it would be a file that the manifest does not name.
    Raises OSError where `CACHE` is a link.
    """
    stage = path.parent / CACHE
    with files.locked(path.parent):
        with suppress(FileExistsError):
            stage.mkdir()
        try:
            files.write(path, content, stage)
        finally:
            with suppress(OSError):  # the Hub client keeps files there too
                stage.rmdir()


def require_digest(digest: str) -> None:
    """Raise BadTarget where `digest` is not a SHA-256 in hex."""
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise BadTarget(
            f"digest '{digest}': not a SHA-256", "give its 64 hex digits: `sha256sum manifest.json` prints them"
        )


def open_artifact(
    directory: Path, digest: str | None = None, *, linked: bool = False, any_evidence: bool = False
) -> Artifact:
    """Check every file against the manifest, and the manifest against `digest` where one is given.

    Files may be `linked` in the Hub's cache, which links to the content it stores. `any_evidence` opens it even if the
    evidence names another manifest.

    Raises BadTarget where `directory` is not an artifact or `digest` not a SHA-256, UntrustedInput where a file was
    changed, removed or added, a config makes transformers run code, or the handler is none that qabuild writes. Nothing
    of the artifact has been deserialised when this returns.
    """
    if digest is not None:
        require_digest(digest)
    text = _read_manifest(directory, linked)
    actual = _digest_of(text)
    if digest is not None and digest.lower() != actual:
        raise UntrustedInput(
            f"{directory / MANIFEST}: its digest is {actual}, not {digest.lower()}",
            "this is not the artifact that was pinned: fetch it again from where the digest came from",
        )
    manifest = _parse_manifest(directory / MANIFEST, text)
    _compare(directory, manifest.files, linked)
    refuse_code(directory, manifest.files)
    _refuse_changed_handler(directory, manifest)
    if not any_evidence:
        _refuse_other_evidence(directory, actual)
    return Artifact(directory=directory, manifest=manifest, digest=actual)


def stated_digest(directory: Path) -> str:
    """The digest of the manifest in `directory`, of which nothing else is checked. Raises as `open_artifact`."""
    return _digest_of(_read_manifest(directory, linked=True))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of `directory`, without checking any file against it. Raises as `open_artifact` does."""
    return _parse_manifest(directory / MANIFEST, _read_manifest(directory, linked=False))


def _read_manifest(directory: Path, linked: bool) -> bytes:
    try:
        return files.read(directory / MANIFEST, follow=linked)
    except FileNotFoundError:
        problem = "no such folder" if not directory.exists() else f"not an artifact: it holds no {MANIFEST}"
    except NotADirectoryError:
        problem = "not an artifact: a folder is wanted, this is a file"
    except (files.NotRegular, IsADirectoryError):
        raise UntrustedInput(f"{directory / MANIFEST}: not a plain file", PLAIN) from None
    failed = failed_folder(directory)
    if not directory.exists() and (failed / MANIFEST).is_file():
        raise BadTarget(f"{directory}: its build failed: {failed} lies there", f"`qabuild show {failed}` says why")
    candidate = Path(FOLDER) / directory.name.removesuffix(".toml")  # `directory` may be the file or name of a target
    hint = f"name a folder that `qabuild build` wrote, such as {FOLDER}/NAME"
    raise BadTarget(f"{directory}: {problem}", f"{candidate} is one" if (candidate / MANIFEST).is_file() else hint)


def _parse_manifest(path: Path, text: bytes) -> Manifest:
    try:
        document = documents.read_json(text)
        if not isinstance(document, dict) or "format" not in document:
            raise ValueError("it lacks 'format'")
        if document.pop("format") != FORMAT:
            raise UntrustedInput(f"{path}: its format is not {FORMAT}", "a newer qabuild may read it")
        manifest = documents.typed(Manifest, document)
        for name, problem in files.strange_names(manifest.files, UNSEALED):
            raise ValueError(f"files: {name!r} {problem}")
        if hidden := [name for name in manifest.files if name.startswith(".") or "/." in name]:
            raise ValueError(f"files: {hidden[0]!r} is hidden, and no artifact holds such a file")
        return manifest
    except ValueError as error:
        raise UntrustedInput(f"{path}: damaged: {error}", "build or fetch the artifact again") from None


def _parse_table(model: type[Table], values: Mapping[str, Any], key: str) -> Table:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problem = f"{MANIFEST}: damaged, or written by another version: {key}.{documents.first_mistake(error)}"
        raise UntrustedInput(problem, "build it again") from None


def _read_evidence(directory: Path) -> dict[str, Any] | None:
    """The evidence; None where it does not exist. Raises ValueError where it is damaged."""
    try:
        evidence = documents.read_json(files.read(directory / EVIDENCE))
    except FileNotFoundError:
        return None
    except (files.NotRegular, IsADirectoryError) as error:
        raise ValueError(error.strerror) from None
    if not isinstance(evidence, dict) or not isinstance(evidence.get("manifest"), str):
        raise ValueError("it names no manifest")
    return evidence


def _refuse_other_evidence(directory: Path, digest: str) -> None:
    """No digest covers the manifest itself, but the evidence names the manifest that was verified."""
    with suppress(ValueError):  # damaged evidence says nothing about the manifest
        evidence = _read_evidence(directory)
        if evidence and evidence["manifest"] != digest:
            raise UntrustedInput(
                f"{directory}: changed since it was verified: the digest of {MANIFEST} is {digest}, and {EVIDENCE} "
                f"names {evidence['manifest']}",
                f"build or fetch it again; or, if you trust the files, remove {EVIDENCE} and verify it",
            )


def _refuse_changed_handler(directory: Path, manifest: Manifest) -> None:
    """A digest shows that the handler is the one that was sealed; only qabuild shows that it is qabuild's."""
    handler.refuse_changed(directory, manifest.files, manifest.options, manifest.runtime, manifest.versions)


def _compare(directory: Path, files: Mapping[str, SealedFile], linked: bool) -> None:
    present = set(sealed_files(directory, linked=linked))
    problems = [f"{name}: missing" for name in files if name not in present]
    problems += [f"{name}: not in the manifest" for name in sorted(present - set(files))]
    for name in sorted(present & set(files)):
        if (size := (directory / name).stat().st_size) != files[name].size:
            problems.append(f"{name}: {size} bytes instead of {files[name].size}")
        elif (digest := sha256(directory / name)) != files[name].sha256:
            problems.append(f"{name}: its SHA-256 is {digest}, the manifest says {files[name].sha256}")
    if problems:
        listed = "\n".join(f"  {line}" for line in problems[:10] + (["..."] if len(problems) > 10 else []))
        raise UntrustedInput(
            f"{directory}: not as it was sealed\n{listed}", "nothing of it was loaded; build or fetch it again"
        )
