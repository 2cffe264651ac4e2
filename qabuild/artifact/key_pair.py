"""Pairs of keys in files: the private one signs artifacts, the public one verifies them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qabuild.errors import BadTarget, QABuildError
from qabuild.system import files, packages
from qabuild.system.sealed import require_outside

PACKAGES = ("model-signing", "pyopenssl")
PASSPHRASE = "QABUILD_KEY_PASSPHRASE"
"""The environment variable that holds the passphrase of a private key."""
LONGEST_PASSPHRASE = 1023  # bytes; OpenSSL's limit
LARGEST_KEY = 1 << 16


def keygen(path: str | Path) -> Path:
    """Make a pair of keys: the private one at `path`, readable by you alone, the public one beside it, in `.pub`.

    The environment variable QABUILD_KEY_PASSPHRASE, where it is set, encrypts the private key. Returns the path of the
    public key. Raises BadTarget where one of the files exists or has no folder, or the passphrase is too long;
    QABuildError where the folder is not writable.
    """
    require_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = Path(path)
    if not private.name:
        raise BadTarget(f"{private}: names no file", "name the private key, as in release.key")
    public = private.with_suffix(".pub")
    if private == public:
        raise BadTarget(f"{private}: the name of the public key", f"name the private key {private.stem}.key")
    for file in (private, public):
        require_outside(file)
        if os.path.lexists(file):
            raise BadTarget(f"{file}: exists, and no key is overwritten", "name another file, or move it away")
        files.require_creatable(file)
    secret = passphrase()
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(secret) if secret else serialization.NoEncryption(),
    )
    _create(private, pem, 0o600)
    _create(public, _public_pem(key), 0o644)
    return public


def passphrase() -> bytes | None:
    """The passphrase of private keys, from the environment; None where it is not set or empty."""
    secret = os.fsencode(os.environ.get(PASSPHRASE, ""))
    if len(secret) > LONGEST_PASSPHRASE:
        raise BadTarget(
            f"{PASSPHRASE} has {len(secret)} bytes, and a passphrase at most {LONGEST_PASSPHRASE}", "take a shorter one"
        )
    return secret or None


def read(path: Path) -> bytes:
    """The content of the file of a key, in PEM; of a longer file its beginning, which is no key. Raises OSError."""
    with files.opened(path) as file:
        return file.read(LARGEST_KEY)


def public_half(path: Path) -> bytes:
    """The public key, in PEM, of the private key in the file `path`."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return _public_pem(load_pem_private_key(read(path), passphrase()))


def require_library() -> None:
    """Raise MissingEnvironment where what signs and verifies is not installed."""
    packages.refuse(packages.missing(dict.fromkeys(PACKAGES, ("sign",)), "cpu"))


@contextmanager
def errors_explained(path: Path, half: str) -> Iterator[None]:
    """Turn what the library raises for the file of a key into BadTarget."""
    try:
        yield
    except QABuildError:
        raise
    except OSError as error:
        raise BadTarget(
            f"{path}: {error.strerror}", f"name the file of a {half} key; `qabuild keygen` makes a pair"
        ) from None
    except Exception as error:
        about = str(error) if "password" in str(error).lower() else None
        if half != "public":
            about = about or _locked(path)
        if about:
            raise BadTarget(
                f"{path}: {about}", f"give the passphrase in {PASSPHRASE}, or none for a key without one"
            ) from None
        raise BadTarget(
            f"{path}: not a {half} key on the curve P-256, P-384 or P-521, in PEM", "`qabuild keygen` makes a pair"
        ) from error


def _locked(path: Path) -> str | None:
    """What is wrong with an encrypted key that cannot be decrypted; None for any other.

    Of 224 wrong passphrases, one decrypts to something that looks padded as it should be, and is no key.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        content = read(path)
        if b"ENCRYPTED" in content:
            load_pem_private_key(content, passphrase())
    except (OSError, ValueError, TypeError):
        return "Incorrect password, or the key is damaged"
    return None


def _public_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def _create(path: Path, content: bytes, mode: int) -> None:
    """Write a new file, never through a link and never over a file that exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
