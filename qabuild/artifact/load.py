"""Loads an artifact from disk or the Hub as a pipeline: verifies the digests first, then loads the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import signature
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends import backend
from qabuild.system import hub, native_code, packages

if TYPE_CHECKING:
    from qabuild.artifact.signature import Signer
    from qabuild.qa.pipeline import QuestionAnsweringPipeline


def load(
    artifact: str | Path,
    *,
    revision: str | None = None,
    digest: str | None = None,
    key: Signer | None = None,
    allow_native: bool = False,
) -> QuestionAnsweringPipeline:
    """A question-answering pipeline over an artifact: a path, or a repository on the Hub (owner/name).

    Every file is checked against the manifest, and the manifest against `digest` where one is given, before anything
    is deserialised. `revision` is a branch, tag or commit on the Hub; the default is the main branch.
    `key` requires a signature: by the public key in that file, or by a `qabuild.Identity`.
    `allow_native` loads native code that this user did not compile on this machine: it can do whatever you can. What
    `key` signed needs no such permission.
    Raises BadTarget, UntrustedInput or MissingEnvironment; QABuildError where the Hub fails.
    """
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    opened = find(artifact, revision=revision, digest=digest, key=key)
    return QuestionAnsweringPipeline(*load_model(opened, allow_native=allow_native or key is not None))


def find(
    source: str | Path, *, revision: str | None = None, digest: str | None = None, key: Signer | None = None
) -> Artifact:
    """The artifact that `load` would load: downloaded if need be, checked against its manifest, and signed by `key`.

    A local path of that name comes first; a name within an existing local folder, without a revision, is never looked
    up on the Hub. Raises as `load` does.
    """
    is_local = Path(source).exists() or (revision is None and Path(source).parent.is_dir())
    if hub.is_path(source) or "/" not in str(source) or is_local:
        if revision is not None:
            raise BadTarget(
                f"revision '{revision}' is given for {source}, which is not on the Hub", "leave out the revision"
            )
        opened = open_artifact(Path(source), digest)
    else:
        opened = open_artifact(_download(str(source), revision), digest, linked=True)
    if key is not None:
        signature.require(opened, key)
    return opened


def _download(repo_id: str, revision: str | None) -> Path:
    """The folder in the Hub's cache that holds that revision of the repository."""
    from huggingface_hub import snapshot_download

    sha = hub.commit(repo_id, revision, "artifact")
    with hub.errors_explained(repo_id, sha, "artifact"), hub.bars_on_terminals_only():
        return Path(snapshot_download(repo_id, revision=sha, local_files_only=hub.is_offline(False)))


def load_model(artifact: Artifact, *, allow_native: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer of an opened artifact, which was checked against its manifest.

    Raises MissingEnvironment where the device or a package is missing on this machine, UntrustedInput for native code
    that this user did not compile on this machine, unless `allow_native`.
    """
    from qabuild.models.checkpoint.load import load_tokenizer

    module = backend(artifact.manifest.backend["name"])
    options, runtime = artifact.manifest.options, artifact.manifest.runtime
    if not allow_native:
        _refuse_foreign_code(artifact, module.native_code(options))
    packages.require(dict.fromkeys(module.PACKAGES, module.EXTRAS), runtime.device)
    return module.load(artifact.directory, options, runtime), load_tokenizer(artifact.directory)


def _refuse_foreign_code(artifact: Artifact, names: Sequence[str]) -> None:
    for name in names:
        sealed = artifact.manifest.files.get(name)
        if sealed is None or not native_code.is_registered(sealed.sha256):
            raise UntrustedInput(
                f"{artifact.directory / name}: native code that you did not compile on this machine: it could do "
                "whatever you can, and no check shows what it does",
                "build the artifact here; or, if you trust whoever compiled it, pass the --key that signed it, or "
                "--allow-native (qabuild.load: key=..., allow_native=True)",
            )
