"""Signatures of an artifact: who made it.

Three files beside the manifest, each a Sigstore bundle with an in-toto statement, made by the package model-signing:

- `model.sig` covers the manifest and every file in it, in OpenSSF's format of model signatures;
- `provenance.sig` states how the artifact was built, as SLSA provenance;
- `verification.sig` states how its verification ended, and covers the evidence. A new verification removes it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qabuild.artifact import attestation, key_pair, measurements
from qabuild.artifact.manifest import (
    EVIDENCE,
    EVIDENCE_SIGNATURE,
    MODEL_SIGNATURE,
    PROVENANCE,
    SIGNATURES,
    UNSEALED,
    UNSEALED_FOLDERS,
    Artifact,
    open_artifact,
    write_unsealed,
)
from qabuild.artifact.validation import judged_evidence
from qabuild.errors import QABuildError, UntrustedInput
from qabuild.system import arguments
from qabuild.system.files import sha256
from qabuild.system.sealed import MANIFEST

IN_TOTO = "application/vnd.in-toto+json"
MODEL = "https://model_signing/signature/v1.0"
KINDS = {MODEL_SIGNATURE: MODEL, PROVENANCE: attestation.SLSA, EVIDENCE_SIGNATURE: attestation.TEST_RESULT}


@dataclass(frozen=True)
class Identity:
    """A signer without a key: an identity that Sigstore certified, and the provider that authenticated it."""

    identity: str
    """An e-mail address, or the URL of a CI workflow."""
    issuer: str
    """URL of the OpenID Connect provider, as in https://accounts.google.com."""

    def __str__(self) -> str:
        return f"{self.identity} ({self.issuer})"


Signer = str | Path | Identity
"""Whose signature is required: the file of a public key, or an identity."""


def sign(path: str | Path, key: str | Path | None = None) -> list[str]:
    """Sign the artifact at `path` with the private key in the file `key`, or without one by your Sigstore identity.

    The key is an elliptic-curve key (P-256, P-384 or P-521) in PEM; QABUILD_KEY_PASSPHRASE is its passphrase. Returns
    the names of the files written; one that the key signed already stays as it is.
    Raises BadTarget, UntrustedInput or MissingEnvironment; QABuildError where Sigstore fails.
    """
    return sign_artifact(open_artifact(Path(arguments.path("path", path))), key)


def sign_artifact(artifact: Artifact, key: str | Path | None) -> list[str]:
    """Sign an opened artifact, as `sign` does."""
    key_pair.require_library()
    signer = _private_key(Path(key)) if key is not None else _sigstore_signer()
    statements = _statements(artifact)
    for name, statement in statements.items():
        if _signed_files(statement) != _files(artifact, name):
            raise UntrustedInput(f"{artifact.directory}: changed while it was signed", "sign it again")
    written = _unsigned(artifact, key, statements)
    for name in written:
        write_unsealed(artifact.directory / name, _bundle(signer, statements[name]))
    return written


def would_write(artifact: Artifact, key: str | Path) -> list[str]:
    """The names of the files that `sign_artifact` would write with the private key. Raises as it does."""
    key_pair.require_library()
    _private_key(Path(key))
    return _unsigned(artifact, key, _statements(artifact))


def _unsigned(artifact: Artifact, key: str | Path | None, names: Iterable[str]) -> list[str]:
    """Those of the signatures that the key has not made already; without a key, all."""
    kept = _signed_by(artifact, Path(key)) if key is not None else set()
    return [name for name in names if name not in kept]


def require(artifact: Artifact, signer: Signer, *, evidence: bool = True) -> None:
    """Raise UntrustedInput unless `signer` signed the artifact, and with `evidence` what else has a signature.

    Without `evidence`, only the manifest and its files count: a verification is about to replace the evidence.
    """
    key_pair.require_library()
    verifier = _verifier(signer)
    for name in SIGNATURES if evidence else (MODEL_SIGNATURE,):
        path = artifact.directory / name
        if not path.exists():
            if name != MODEL_SIGNATURE:
                continue
            raise UntrustedInput(
                f"{artifact.directory}: not signed: it holds no {name}", "ask its author to sign it: `qabuild sign`"
            )
        _require_valid(artifact, name, signer, verifier)


def require_verdict(artifact: Artifact) -> None:
    """Raise UntrustedInput for evidence of an artifact, whose signatures are valid, that anyone may have written.

    It counts if it is signed, or its measurement was made on this machine.
    """
    evidence = judged_evidence(artifact)
    if evidence is None or (artifact.directory / EVIDENCE_SIGNATURE).exists():
        return
    if not measurements.is_registered(artifact, evidence.measurement):
        raise UntrustedInput(
            f"{artifact.directory / EVIDENCE}: not signed, and not measured on this machine",
            "verify it with the same key, or ask its author to sign it: `qabuild sign`",
        )


def require_usable(signer: Signer) -> None:
    """Raise what `require` raises of every artifact: no library, no such key. Never asks Sigstore."""
    key_pair.require_library()
    if not isinstance(signer, Identity):
        _verifier(signer)


def _require_valid(artifact: Artifact, name: str, signer: Signer, verifier: Any) -> None:
    path = artifact.directory / name
    try:
        statement = _verified(path, verifier)
    except Exception as error:  # the libraries parse what anyone may have written, and raise whatever they meet
        raise UntrustedInput(
            f"{path}: not a signature by {signer}", "it was signed by someone else, or is damaged: do not use it"
        ) from error
    if statement.get("predicateType") != KINDS[name] or _signed_files(statement) != _files(artifact, name):
        raise UntrustedInput(
            f"{path}: a signature by {signer}, but of other files",
            "the artifact was changed after it was signed, or the signature belongs to another one",
        )


def _files(artifact: Artifact, name: str) -> dict[str, str]:
    """The files that the signature `name` has to cover, with their SHA-256 in hex."""
    files = {MANIFEST: artifact.digest}
    if name == EVIDENCE_SIGNATURE:
        path = artifact.directory / EVIDENCE
        return {**files, EVIDENCE: sha256(path) if path.exists() else "missing"}
    return {**files, **{file: entry.sha256 for file, entry in artifact.manifest.files.items()}}


def _signed_files(statement: Mapping[str, Any]) -> dict[str, str]:
    """The files that a statement is about, with their SHA-256 in hex."""
    if statement["predicateType"] == MODEL:
        resources = statement["predicate"]["resources"]
        return {entry["name"]: entry["digest"] for entry in resources if entry["algorithm"] == "sha256"}
    return {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}


def _statements(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """The statements to sign, by the name of their file; none about evidence where there is none."""
    statements = {
        MODEL_SIGNATURE: _model_statement(artifact),
        PROVENANCE: attestation.provenance(artifact, _files(artifact, PROVENANCE)),
    }
    if evidence := judged_evidence(artifact):
        statements[EVIDENCE_SIGNATURE] = attestation.result(artifact, evidence, _files(artifact, EVIDENCE_SIGNATURE))
    return statements


def _model_statement(artifact: Artifact) -> dict[str, Any]:
    from google.protobuf import json_format
    from model_signing import hashing, signing

    ignored = sorted((UNSEALED | UNSEALED_FOLDERS) - {MANIFEST})
    config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    payload = signing.signing.Payload(config.hash(artifact.directory))
    statement: dict[str, Any] = json_format.MessageToDict(payload.statement.pb)
    return statement


def _bundle(signer: Any, statement: Mapping[str, Any]) -> bytes:
    """The statement in a DSSE envelope, signed, as a Sigstore bundle in JSON."""
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement_pb2 import Statement

    message = json_format.ParseDict(json.loads(json.dumps(statement, default=dict)), Statement())
    with _sigstore_explained():
        signature = signer.sign(SimpleNamespace(statement=SimpleNamespace(pb=message)))
    return f"{signature.bundle.to_json()}\n".encode()


def _verified(path: Path, verifier: Any) -> dict[str, Any]:
    """The statement in a bundle, once its signature was verified. Raises anything where it is not valid."""
    from model_signing import verifying

    form = verifying.sigstore if isinstance(verifier, verifying.sigstore.Verifier) else verifying.ec_key.sigstore_pb
    with redirect_stdout(io.StringIO()):  # it prints a warning about an older format
        kind, payload = verifier._verify_signed_content(form.Signature.read(path))
    if kind != IN_TOTO:
        raise ValueError(f"a payload of type {kind}")
    statement: dict[str, Any] = json.loads(payload)
    _signed_files(statement)
    return statement


def _verifier(signer: Signer) -> Any:
    from model_signing import verifying

    if isinstance(signer, Identity):
        config = verifying.Config()
        with _sigstore_explained():
            return config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.issuer)._verifier
    with key_pair.errors_explained(Path(signer), "public"):
        return verifying.ec_key.Verifier(_as_path(key_pair.read(Path(signer))))


def _private_key(path: Path) -> Any:
    from model_signing import signing

    with key_pair.errors_explained(path, "private"):
        return signing.ec_key.Signer(_as_path(key_pair.read(path)), key_pair.passphrase())


def _as_path(content: bytes) -> Any:
    """What the library takes for a path: it reads a file of any kind, and to its end."""
    return SimpleNamespace(read_bytes=lambda: content)


def _sigstore_signer() -> Any:
    from model_signing import signing

    with _sigstore_explained():
        return signing.Config().use_sigstore_signer(use_ambient_credentials=True)._signer


def _signed_by(artifact: Artifact, key: Path) -> set[str]:
    """The signatures of the artifact that are valid, by the private key in the file `key`."""
    from model_signing import verifying

    valid = set()
    verifier = verifying.ec_key.Verifier(_as_path(key_pair.public_half(key)))
    for name in SIGNATURES:
        try:
            _require_valid(artifact, name, key, verifier)
            valid.add(name)
        except UntrustedInput:
            continue
    return valid


@contextmanager
def _sigstore_explained() -> Iterator[None]:
    """Turn what Sigstore raises, which needs a network, into QABuildError."""
    try:
        yield
    except Exception as error:
        raise QABuildError(
            f"Sigstore: {error or type(error).__name__}",
            "it needs a network, and a browser or the identity of a CI job",
        ) from error
