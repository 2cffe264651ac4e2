"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qabuild.errors import QABuildError


def write(path: Path, content: bytes, stage: Path | None = None) -> None:
    """Put `content` at `path` in one step; what was there stays until then.

    It is written first into the folder `stage`, on the same disk, or beside `path`; a kill may leave it there. Raises
    OSError that names `path`.
    """
    partial = (stage or path.parent) / f".{path.name}.partial"
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """SHA-256 of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What the system says of a disk that takes no more; these errors come without a file's name when a write fails.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def explained(folder: Path, what: str, hint: str) -> Iterator[None]:
    """Inside the block, a disk that is full or not writable is a QABuildError that names `folder`, which is `what`.

    Errors that name files elsewhere pass.
    """
    try:
        yield
    except QABuildError:
        raise
    except Exception as error:
        found = error if isinstance(error, OSError) else disk_error(error, folder)
        if found is None:
            raise
        names = [Path(os.fsdecode(n)) for n in (found.filename, found.filename2) if isinstance(n, (str, bytes))]
        # A failed write names no file; a folder that cannot be made, one of its parents.
        here = any(name.is_relative_to(folder) or folder.is_relative_to(name) for name in names)
        if not (here if names else found.errno in _DISK):
            raise
        at = f" ({names[-1]})" if names else ""
        raise QABuildError(f"{what} {folder}: {found.strerror or found}{at}", hint) from error


def disk_error(error: Exception, folder: Path) -> OSError | None:
    """The system's refusal to write that is behind `error`, None where it has another cause.

    `folder` is where was written: safetensors, ONNX and torch write files themselves and hide the system's error in
    one of their own.
    """
    if isinstance(error, OSError):
        return error if error.errno in _DISK else None
    for number in _DISK:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    with suppress(OSError):
        if shutil.disk_usage(folder).free < 1 << 20:  # torch names no reason at all
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None
