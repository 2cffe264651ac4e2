"""Atomic file writes, digests of files, and errors of full or read-only disks."""

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
    """Write `content` to `path` atomically; an earlier file stays until then.

    The content goes to a temporary file in the folder `stage` on the same disk, or beside `path`, which then gets its
    name; a killed process may leave the temporary file. Raises OSError that names `path`.
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


# Errors of a disk that cannot be written to; when a write fails they carry no file name.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def errors_explained(folder: Path, what: str, hint: str) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a QABuildError that names `folder` and calls it `what`.

    Errors that name files outside the folder pass.
    """
    try:
        yield
    except QABuildError:
        raise
    except Exception as error:
        os_error = error if isinstance(error, OSError) else disk_error(error, folder)
        if os_error is None:
            raise
        paths = [Path(os.fsdecode(n)) for n in (os_error.filename, os_error.filename2) if isinstance(n, (str, bytes))]
        # A failed write names no file; a failed mkdir names the folder or one of its parents.
        concerns_folder = any(path.is_relative_to(folder) or folder.is_relative_to(path) for path in paths)
        if not (concerns_folder if paths else os_error.errno in _DISK_ERRORS):
            raise
        place = f" ({paths[-1]})" if paths else ""
        raise QABuildError(f"{what} {folder}: {os_error.strerror or os_error}{place}", hint) from error


def disk_error(error: Exception, folder: Path) -> OSError | None:
    """The operating system's write error behind `error`; None where `error` has another cause.

    safetensors, ONNX and torch write files to `folder` themselves and wrap the system's error in one of their own.
    """
    if isinstance(error, OSError):
        return error if error.errno in _DISK_ERRORS else None
    for number in _DISK_ERRORS:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    with suppress(OSError):
        if shutil.disk_usage(folder).free < 1 << 20:  # torch gives no reason
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None
