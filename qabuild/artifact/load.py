"""Loads an artifact from disk or the Hub as a pipeline: verifies the digests first, then loads the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.artifact import signature
from qabuild.artifact.manifest import Artifact, open_artifact, require_digest
from qabuild.artifact.validation import require_passed, unverified
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models.backends import backend
from qabuild.system import arguments, hub, hub_files, native_code, packages, panic

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
    allow_unverified: bool = False,
) -> QuestionAnsweringPipeline:
    """A question-answering pipeline over an artifact: a path, or a repository on the Hub (owner/name).

    It answers with the parameters that the artifact was verified with, the target's [answer]; a call may set others.
    Every file is checked against the manifest, and the manifest against `digest` where one is given, before anything
    is deserialised. `revision` is a branch, tag or commit on the Hub; the default is the main branch.
    `key` requires a signature: by the public key in that file, or by a `qabuild.Identity`.
    `allow_native` loads native code that this user did not compile on this machine: it can do whatever you can. What
    `key` signed needs no such permission.
    `allow_unverified` loads, with a warning, an artifact that failed its verification or has no evidence that holds.
    Raises BadTarget, VerificationFailed, UntrustedInput or MissingEnvironment; QABuildError where the Hub fails.
    """
    opened = find(artifact, revision=revision, digest=digest, key=key, allow_unverified=allow_unverified)
    if allow_unverified:
        warn_unverified(opened)
    return load_pipeline(opened, allow_native=allow_native or key is not None, allow_unverified=allow_unverified)


def find(
    source: str | Path,
    *,
    revision: str | None = None,
    digest: str | None = None,
    key: Signer | None = None,
    allow_unverified: bool = False,
) -> Artifact:
    """The artifact that `load` would load: downloaded if need be, checked against its manifest, and signed by `key`.

    A local path of that name comes first; a name within an existing local folder, without a revision, is never looked
    up on the Hub. With `allow_unverified`, its evidence may name another manifest. Raises as `load` does.
    """
    source = arguments.path("artifact", source)
    is_local = Path(source).exists() or (revision is None and Path(source).parent.is_dir())
    if hub.is_path(source) or "/" not in source or is_local:
        if revision is not None:
            raise BadTarget(
                f"revision '{revision}' is given for {source}, which is not on the Hub", "leave out the revision"
            )
        opened = open_artifact(Path(source), digest, any_evidence=allow_unverified)
    else:
        opened = from_hub(source, revision, digest, key, any_evidence=allow_unverified)
    if key is not None:
        signature.require(opened, key)
        if not allow_unverified:
            signature.require_verdict(opened)
    return opened


def from_hub(
    repo_id: str, revision: str | None, digest: str | None, key: Signer | None, *, any_evidence: bool = False
) -> Artifact:
    """The artifact at that revision of the repository, opened in the Hub's cache as `open_artifact` does.

    A digest that is none and a key that is not there are refused before anything is downloaded; whether the key signed
    the artifact is left to the caller.
    """
    if digest is not None:
        require_digest(digest)
    if key is not None:
        signature.require_usable(key)
    folder = hub_files.download(repo_id, hub.commit(repo_id, revision, "artifact"), "artifact", ["*"])
    return open_artifact(folder, digest, linked=True, any_evidence=any_evidence)


def load_pipeline(
    artifact: Artifact, *, allow_native: bool = False, allow_unverified: bool = False
) -> QuestionAnsweringPipeline:
    """The pipeline over an opened artifact, with the parameters that it was verified with. Raises as `load_model`."""
    from qabuild.qa.pipeline import QuestionAnsweringPipeline

    model, tokenizer = load_model(artifact, allow_native=allow_native, allow_unverified=allow_unverified)
    pipeline = QuestionAnsweringPipeline(model, tokenizer, **parameters(artifact))
    pipeline.digest = artifact.digest
    return pipeline


def parameters(artifact: Artifact) -> dict[str, Any]:
    """The parameters of a pipeline that answers as the artifact was verified."""
    manifest = artifact.manifest
    if manifest.runtime.dtype not in backend(manifest.options.name).BATCH_DEPENDENT:
        return manifest.parameters
    # Its answers depend on the batch: those of this size were verified.
    return {**manifest.parameters, "batch_size": manifest.verify["batch_size"]}


def load_model(artifact: Artifact, *, allow_native: bool = False, allow_unverified: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer of an opened artifact, which was checked against its manifest.

    Raises MissingEnvironment where the device or a package is missing on this machine, UntrustedInput for native code
    that this user did not compile on this machine, unless `allow_native`, VerificationFailed or UntrustedInput where
    its evidence does not say that it passed, unless `allow_unverified`.
    """
    from qabuild.models.checkpoint.load import load_tokenizer

    if not allow_unverified:
        require_verified(artifact)
    module = backend(artifact.manifest.backend["name"])
    options, runtime = artifact.manifest.options, artifact.manifest.runtime
    if not allow_native:
        _refuse_foreign_code(artifact, module.native_code(options))
    packages.require(dict.fromkeys(module.PACKAGES, module.EXTRAS), runtime.device)
    with damage_explained(artifact.directory):
        return module.load(artifact.directory, options, runtime), load_tokenizer(artifact.directory)


def warn_unverified(artifact: Artifact) -> None:
    """Warn the caller's caller of an artifact whose evidence does not say that it passed."""
    if reason := unverified(artifact):
        warnings.warn(f"{reason}; loaded all the same", UserWarning, stacklevel=3)


def require_parameters(pipeline: QuestionAnsweringPipeline, parameters: Mapping[str, Any], source: str | Path) -> None:
    """Raise BadTarget if no call of the artifact's pipeline can have these parameters."""
    try:
        pipeline.check(**parameters)
    except ValueError as error:
        raise BadTarget(f"{source}: {error}", "choose another max_seq_len or doc_stride") from None


@contextmanager
def damage_explained(directory: Path) -> Iterator[None]:
    """Turn what a runtime raises when it loads or runs the files in `directory` into UntrustedInput.

    The files are those that were sealed, but who sealed them may have sealed anything. Errors of the system pass.
    """
    try:
        with panic.explained(directory):
            yield
    except (QABuildError, MemoryError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if "out of memory" in str(error).lower():
            raise QABuildError(f"{directory}: {hub.first_line(error)}", "use a device with more memory") from error
        raise UntrustedInput(
            f"{directory}: its model cannot be used: {hub.first_line(error)}",
            "its files are damaged or do not belong together: build or fetch it again; -v shows where it came from",
        ) from error


def require_verified(artifact: Artifact) -> None:
    """Raise VerificationFailed or UntrustedInput where its evidence does not say that it passed."""
    try:
        require_passed(artifact)
    except QABuildError as error:
        allowed = "to load it all the same, pass --allow-unverified (qabuild.load: allow_unverified=True)"
        error.hint = f"{error.hint}; {allowed}"
        raise


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
