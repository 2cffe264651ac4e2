"""A register of the native code that this user compiled on this machine.

A file of native code can do whatever its user can, and no check of its content shows what it does. So qabuild loads one
only if it is in this register, or if the caller allows it. The register is in the user's state folder, not in the
cache, which may be shared or restored from elsewhere. Its entries are authenticated by a secret key of the user.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from qabuild.errors import MissingEnvironment
from qabuild.system import files


def folder() -> Path:
    """The register: the secret key, and a file for each digest."""
    from platformdirs import user_state_path

    return user_state_path("qabuild") / "native-code"


def compiler_id() -> str:
    """A public name of this user on this machine, in hex; random, and the same in every call."""
    return hmac.digest(_key(), b"compiler id", "sha256").hex()[:16]


def register(path: Path) -> None:
    """Record that the file `path` was compiled here. Raises MissingEnvironment if the register cannot be written."""
    digest = files.sha256(path)
    _write(folder() / digest, _authentication(digest).encode())


def is_registered(digest: str) -> bool:
    """Whether the file with that SHA-256, in hex, was compiled here."""
    try:
        entry = (folder() / digest).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False
    return hmac.compare_digest(entry, _authentication(digest))


def _authentication(digest: str) -> str:
    return hmac.digest(_key(), f"compiled {digest}".encode(), "sha256").hex()


def _key() -> bytes:
    """The secret key, made on first use and readable by the user alone."""
    path = folder() / "key"
    if not path.exists():
        _write(path, secrets.token_bytes(32), replace=False)
    return hashlib.sha256(path.read_bytes()).digest()


def _write(path: Path, content: bytes, *, replace: bool = True) -> None:
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
            f"{path.parent}: the register of native code cannot be written: {error.strerror}",
            "make it writable, or name another folder in XDG_STATE_HOME",
        ) from error
