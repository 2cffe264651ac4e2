"""Registers of what this user made on this machine.

A register is a folder in the user's state folder, not in the cache, which may be shared or restored from elsewhere. Its
entries are digests, authenticated by a secret key of the user, so no one else can add one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from qabuild.errors import MissingEnvironment
from qabuild.system import user_folders


class Register:
    """The register in the folder `name`; `purpose` is what its entries state, and is authenticated with them."""

    def __init__(self, name: str, purpose: str) -> None:
        self._name, self._purpose = name, purpose

    @property
    def folder(self) -> Path:
        """Holds the secret key, and a file for each digest."""
        return user_folders.state() / self._name

    def add(self, digest: str) -> None:
        """Enter a digest, in hex. Raises MissingEnvironment if the register cannot be written."""
        self._write(self.folder / digest, self._authentication(digest).encode())

    def holds(self, digest: str) -> bool:
        """Whether this user entered the digest on this machine."""
        try:
            entry = (self.folder / digest).read_text(encoding="ascii")
        except (OSError, ValueError, MissingEnvironment):
            return False
        return hmac.compare_digest(entry, self._authentication(digest))

    def authenticate(self, message: bytes) -> str:
        """HMAC of the message under the secret key, in hex."""
        return hmac.digest(self._key(), message, "sha256").hex()

    def _authentication(self, digest: str) -> str:
        return self.authenticate(f"{self._purpose} {digest}".encode())

    def _key(self) -> bytes:
        """The secret key, made on first use and readable by the user alone."""
        path = self.folder / "key"
        if not path.exists():
            self._write(path, secrets.token_bytes(32), replace=False)
        return hashlib.sha256(path.read_bytes()).digest()

    def _write(self, path: Path, content: bytes, *, replace: bool = True) -> None:
        """Write the file atomically, readable by the user alone; without `replace`, one that exists stays as it is."""
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.touch(mode=0o600)
            part.write_bytes(content)
            if replace:
                os.replace(part, path)
            else:
                with suppress(FileExistsError):  # another process was first
                    os.link(part, path)
                part.unlink()
        except OSError as error:
            raise MissingEnvironment(
                f"{path.parent}: the register of {self._name.replace('-', ' ')} cannot be written: {error.strerror}",
                "make it writable, or name another folder in XDG_STATE_HOME",
            ) from error
