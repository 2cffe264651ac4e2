"""A register of the native code that this user compiled on this machine.

A file of native code can do whatever its user can, and no check of its content shows what it does. So qabuild loads one
only if it is in this register, or if the caller allows it.
"""

from __future__ import annotations

from pathlib import Path

from qabuild.system import files
from qabuild.system.register import Register

_REGISTER = Register("native-code", "compiled")


def folder() -> Path:
    """The register: the secret key, and a file for each digest."""
    return _REGISTER.folder


def compiler_id() -> str:
    """A public name of this user on this machine, in hex; random, and the same in every call."""
    return _REGISTER.authenticate(b"compiler id")[:16]


def register(path: Path) -> None:
    """Record that the file `path` was compiled here. Raises MissingEnvironment if the register cannot be written."""
    _REGISTER.add(files.sha256(path))


def is_registered(digest: str) -> bool:
    """Whether the file with that SHA-256, in hex, was compiled here."""
    return _REGISTER.holds(digest)
