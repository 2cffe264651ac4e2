"""Atomic file writes, reads of regular files only, digests, and errors of full or read-only disks."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO

from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.system.terminal import visible


def write(path: Path, content: bytes, stage: Path | None = None) -> None:
    """Write `content` to `path` atomically; an earlier file stays until then, and a link there is replaced.

    The content goes to a temporary file in the folder `stage` on the same disk, or beside `path`, which then gets its
    name. The temporary file has a random name and is made anew, so that nothing that others put there is followed or
    overwritten. A killed process may leave it; those in `stage` are removed, so the caller must hold a lock of it.
    Raises OSError that names `path`, also where `stage` is a link.
    """
    try:
        folder = os.open(stage or path.parent, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if stage else 0))
        try:
            for name in fnmatch.filter(os.listdir(folder) if stage else (), ".*.partial"):
                os.unlink(name, dir_fd=folder)
            _write_through(folder, path, content)
        finally:
            os.close(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_through(folder: int, path: Path, content: bytes) -> None:
    """Write `path` through a temporary file in the open folder `folder`."""
    partial = f".{secrets.token_hex(8)}.partial"
    made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666, dir_fd=folder)
    try:
        with open(made, "wb") as file:
            file.write(content)
        os.replace(partial, path, src_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise


def create(path: Path, content: bytes) -> bool:
    """Write `content` to `path` atomically unless it exists; returns whether this call wrote it.

    Of several processes, on any hosts that share the folder, one writes it: a hard link is what NFS makes atomically,
    too. Where the file system has no hard links, the folder's lock must do.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    with open(partial, "xb") as file:
        file.write(content)
    try:
        os.link(partial, path)
        return True
    except FileExistsError:
        return partial.stat().st_nlink > 1  # over NFS, a repeated request fails though the first one succeeded
    except OSError:
        with locked(path.parent):
            if path.exists():
                return False
            write(path, content)
            return True
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, where its file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, wait_seconds: float = 0.0) -> Iterator[IO[bytes]]:
    """The file, created if it is absent and never through a link, locked, and opened to read and append.

    Raises BlockingIOError if another process, or another part of this one, holds it for longer than `wait_seconds`.
    """
    ends = time.monotonic() + wait_seconds
    while True:
        with open(path, "a+b", opener=_open_no_link) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= ends:
                    raise
                time.sleep(0.1)
                continue
            if not _is_at(file, path):  # whoever held it until now renamed it
                continue
            yield file
            return


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def sync(file: IO[bytes]) -> None:
    """Flush the file to the disk, before it is renamed."""
    file.flush()
    os.fsync(file.fileno())


def is_plain_name(name: str) -> bool:
    """Whether it is a relative path (POSIX) with neither '..' nor backslashes, control characters or surrogates."""
    parts = name.split("/")
    return not {"", ".", ".."} & {*parts} and not re.search(r"[\\\n\t\ud800-\udfff]", name) and visible(name) == name


def strange_names(names: Collection[str], others: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """The names that are not plain or, on some file system, name one file with another name or one of the `others`.

    Each comes with what is wrong.
    """
    copies = Counter(name.casefold() for name in (*names, *others))
    for name in names:
        if not is_plain_name(name):
            yield name, "is no plain name"
        elif copies[name.casefold()] > 1:
            yield name, "is there twice, up to the case of letters"


def require_native(path: Path) -> None:
    """Raise MissingEnvironment for a path that native libraries cannot take: they take UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise MissingEnvironment(
            f"{path}: its name is not text in the encoding of this locale, {sys.getfilesystemencoding()}",
            "set the environment variable LC_ALL to C.UTF-8, or rename it",
        ) from None


class NotRegular(OSError):
    """A pipe, a socket or a device, which may block or never end, or a link where none is followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))


def opened(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open the regular file `path` for reading; with `follow` false, it must be no link.

    Never blocks. Raises NotRegular, IsADirectoryError and other OSErrors.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise NotRegular(path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotRegular(path)


def read(path: Path, *, follow: bool = True) -> bytes:
    """The content of the regular file `path`; raises as `opened` does."""
    with opened(path, follow=follow) as file:
        return file.read()


def sha256(path: Path) -> str:
    """SHA-256 of the regular file's content, in hex."""
    with opened(path) as file:
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


def require_writable(folder: Path, what: str, hint: str) -> None:
    """Raise QABuildError, which calls it `what`, where the folder cannot be made, or nothing can be written into it.

    Leaves nothing there.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        at = f" ({place})" if place != folder.absolute() else ""
        raise QABuildError(f"{what} {folder}: {error.strerror}{at}", hint) from error


def require_creatable(path: Path) -> None:
    """Raise BadTarget where the file `path` has no folder or an impossible name, QABuildError where it is not writable.

    Links are followed.
    """
    resolved = os.path.realpath(path)  # unlike `Path.resolve`, it survives a loop of links
    folder = Path(resolved).parent
    if not folder.is_dir():
        raise BadTarget(f"{path}: there is no folder {folder}", "create it, or name another file")
    try:
        os.lstat(resolved)
    except FileNotFoundError:
        pass
    except OSError as error:  # a name that is too long, say
        raise BadTarget(f"{path}: {error.strerror}", "name another file") from error
    require_writable(folder, f"{path}: the folder", "make it writable, or name another file")


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
