"""Signatures of results in a remote cache, by the keys of `qabuild keygen`."""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from qabuild.artifact import key_pair
from qabuild.errors import BadTarget
from qabuild.system import packages


class EllipticSigning:
    """Signs with a private key, and verifies; with a public key, it only verifies. ECDSA with SHA-256.

    Raises BadTarget where the file holds no key on an elliptic curve, MissingEnvironment without `cryptography`.
    """

    def __init__(self, path: Path) -> None:
        packages.refuse(packages.missing({"cryptography": ("sign",)}, "cpu"))
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        with key_pair.errors_explained(path, "private or public"):
            pem = key_pair.read(path)
            self._private: Any = None
            if b"PRIVATE KEY" in pem:
                self._private = serialization.load_pem_private_key(pem, key_pair.passphrase())
            self._public: Any = self._private.public_key() if self._private else serialization.load_pem_public_key(pem)
            if not isinstance(self._public, ec.EllipticCurvePublicKey):
                raise BadTarget(f"{path}: no key on an elliptic curve", "`qabuild keygen` makes a pair")
        self._algorithm = ec.ECDSA(hashes.SHA256())

    @property
    def can_sign(self) -> bool:
        return self._private is not None

    def sign(self, digest: str) -> str:
        """The signature of a result's digest, in Base64."""
        signature: bytes = self._private.sign(_message(digest), self._algorithm)
        return b64encode(signature).decode()

    def is_signed(self, digest: str, signature: str) -> bool:
        """Whether the private key of this pair signed the digest."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(b64decode(signature, validate=True), _message(digest), self._algorithm)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


def _message(digest: str) -> bytes:
    """What is signed: the digest, and what it is of, so that it is no signature of anything else."""
    return f"qabuild cached result {digest}".encode()
