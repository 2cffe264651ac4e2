"""Files and folders on local disks and, by URL, on object stores, the Hub and whatever fsspec has a driver for."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.system import files
from qabuild.system.patience import Advanced, within

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds without an answer after which a store is given up; some drivers wait for ever."""
SLOWEST = 1 << 20
"""Bytes/s of the slowest upload that is waited for: a driver may report its progress only after a part."""
LARGEST_PART = 100 << 20  # bytes; s3fs uploads files below that in one request

READ_BYTES = 1 << 20
"""Size of a read; a request to an object store takes as long as the transfer of a few hundred KiB."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "checksum", "blob_id", "sha"),
    *("mtime", "LastModified", "last_modified", "Last-Modified", "modify", "last_write_time", "modificationTime"),
    "created",
)
"""What stores call a file's hash or, where they have none, the time of its last change; the first counts."""


@dataclass(frozen=True)
class FileState:
    """What tells whether a file has changed."""

    size: int
    version: str
    """Its hash or the time of its last change, as its store tells; of a store that tells neither, a hash of it."""


@dataclass(frozen=True)
class Location:
    """A file, a folder or a glob on a file system of fsspec."""

    filesystem: Any
    path: str
    """As the file system writes it: absolute, without the protocol."""
    shown: str
    """For messages, and to name it again: a path or a URL."""
    patience: float | None = None
    """Seconds without an answer after which a request fails; None waits for ever, as for a local disk."""

    @property
    def local(self) -> Path | None:
        return None if is_url(self.shown) else Path(self.path)

    def child(self, name: str) -> Location:
        """The file in this folder."""
        if self.local:
            return replace(self, path=os.path.join(self.path, name), shown=os.path.join(self.shown, name))
        return self._at(f"{self.path.rstrip('/')}/{name}")

    def parent(self) -> Location:
        if self.local:
            return replace(self, path=os.path.dirname(self.path), shown=os.path.dirname(self.shown.rstrip("/")))
        return self._at(self.path.rstrip("/").rpartition("/")[0])

    def _at(self, path: str) -> Location:
        return replace(self, path=path, shown=self.filesystem.unstrip_protocol(path))

    def contains(self, other: Location) -> bool:
        """Whether `other` is this folder or lies in it."""
        same_store = type(self.filesystem) is type(other.filesystem)
        mine, theirs = (os.path.realpath(one.path) if one.local else one.path.rstrip("/") for one in (self, other))
        return same_store and f"{theirs}/".startswith(f"{mine.rstrip('/')}/")

    def state(self) -> FileState | None:
        """The file's state, asked for anew; None if there is no such file."""
        info = self._info()
        if info is None:
            return None
        state = state_of(info)
        return state if state.version else replace(state, version=f"sha256 {self._sha256()}")

    def exists(self) -> bool:
        """Whether there is such a file or folder, asked for anew."""
        return self._info() is not None

    def _info(self) -> Mapping[str, Any] | None:
        with explained(self.shown):
            try:
                self.filesystem.invalidate_cache()
                found: Mapping[str, Any] = self._ask(lambda _: self.filesystem.info(self.path))
                return found
            except FileNotFoundError:
                return None

    def _sha256(self) -> str:
        with opened(self.shown) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]

    def is_folder(self) -> bool:
        with explained(self.shown):
            self.filesystem.invalidate_cache()
            return bool(self._ask(lambda _: self.filesystem.isdir(self.path)))

    def read(self, most: int | None = None) -> bytes | None:
        """The file's content, asked for anew, or its first bytes, at `most` so many; None if there is no such file."""
        with explained(self.shown):
            try:
                self.filesystem.invalidate_cache()
                return bytes(self._ask(lambda _: self.filesystem.cat_file(self.path, end=most)))
            except FileNotFoundError:
                return None
            except Exception:  # S3 has no beginning of an empty file
                if most is None or (info := self._info()) is None or info.get("size") != 0:
                    raise
                return b""

    def write(self, content: bytes) -> None:
        """Write the file atomically, and its folder where that is absent."""
        with explained(self.shown):
            self._ask(lambda _: self._write(content))

    def _write(self, content: bytes) -> None:
        if self.local:
            self.local.parent.mkdir(parents=True, exist_ok=True)
            files.write(self.local, content)
        else:
            self.filesystem.pipe_file(self.path, content)

    def create(self, content: bytes) -> bool:
        """Write the file atomically, and its folder where that is absent, unless the file exists.

        Returns whether this call wrote it. Drivers of stores without conditional writes look first, and then write.
        """
        with explained(self.shown):
            return self._ask(lambda _: self._create(content))

    def _create(self, content: bytes) -> bool:
        if self.local:
            self.local.parent.mkdir(parents=True, exist_ok=True)
            return files.create(self.local, content)
        try:
            self.filesystem.pipe_file(self.path, content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self) -> None:
        """Remove the file, if there is one."""
        with explained(self.shown), suppress(FileNotFoundError):
            self._ask(lambda _: self.filesystem.rm_file(self.path))

    @contextmanager
    def writing(self, wait_seconds: float = 0.0) -> Iterator[IO[bytes]]:
        """A new file that gets this place, or replaces the one there, when the block ends without an exception.

        Raises QABuildError if another process is writing a local file, and still is after `wait_seconds`. A store's
        upload is atomic, so what goes there is first written to a local temporary file.
        """
        if self.local:
            partial = self.local.with_name(f".{self.local.name}.partial")
            try:
                with files.exclusive(partial, wait_seconds) as file:
                    file.seek(0)  # truncating leaves the position, from which Parquet counts
                    file.truncate()
                    try:
                        yield file
                    except BaseException:
                        os.unlink(partial)
                        raise
                    files.sync(file)
                    os.replace(partial, self.local)
            except BlockingIOError:
                raise QABuildError(f"{self.shown}: another process is writing it", "wait for it") from None
            return
        with tempfile.NamedTemporaryFile(prefix="qabuild-") as temporary:
            yield temporary
            temporary.flush()
            self.put(Path(temporary.name))

    def put(self, file: Path) -> None:
        """Upload a file to this place in a store."""
        with explained(self.shown):
            seconds = min(file.stat().st_size, LARGEST_PART) / SLOWEST
            self._ask(
                lambda advanced: self.filesystem.put_file(str(file), self.path, callback=_callback(advanced)), seconds
            )

    def get(self, file: Path) -> bool:
        """Download to a file of this disk. Returns whether there is such a file."""
        with explained(self.shown):
            try:
                self.filesystem.invalidate_cache()
                self._ask(lambda advanced: self.filesystem.get_file(self.path, str(file), callback=_callback(advanced)))
            except FileNotFoundError:
                return False
            return True

    def _ask(self, request: Callable[[Advanced], T], more_seconds: float = 0.0) -> T:
        """What the request returns. Raises TimeoutError once it has shown no progress for too long."""
        if self.patience is None:
            return request(lambda: None)
        return within(self.patience + more_seconds, request)


def _callback(advanced: Advanced) -> Any:
    """By which a driver reports its progress."""
    from fsspec.callbacks import Callback

    return Callback(hooks={"advanced": lambda *_, **__: advanced()})


def plain(name: str) -> str:
    """The path, where `name` is one or a URL of one; any other URL as it is."""
    return name.removeprefix("file://")


def is_url(name: str) -> bool:
    """Whether `name` is a URL of something that is no local file."""
    return _URL.match(plain(name)) is not None


def locate(name: str) -> Location:
    """The place that a path or URL names. Raises MissingEnvironment without the driver of its store."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    if not is_url(name):
        _refuse_mistyped_url(name)
        return Location(LocalFileSystem(), os.path.abspath(plain(name)), plain(name))
    try:
        with explained(name):
            filesystem, path = fsspec.url_to_fs(name)
    except ImportError as error:
        raise MissingEnvironment(f"{name}: its driver is not installed", _remedy(name, error)) from error
    except ValueError as error:
        raise BadTarget(f"{name}: {error}", "write a URL as fsspec does, as in s3://bucket/folder/") from error
    return Location(filesystem, path, name, PATIENCE)


def _refuse_mistyped_url(name: str) -> None:
    """Raise BadTarget for a path such as s3:/bucket, unless there is such a folder."""
    from fsspec.registry import known_implementations

    protocol, colon, rest = name.partition(":/")
    if colon and protocol in known_implementations.keys() - {"file", "local"} and not os.path.exists(f"{protocol}:"):
        raise BadTarget(f"{name}: is no URL", f"write {protocol}://{rest.lstrip('/')}; or ./{name} for a path")


def _remedy(name: str, error: ImportError) -> str:
    """The command that installs the driver, where its class names the package; else what fsspec says."""
    from fsspec.registry import known_implementations

    match = _URL.match(name)
    module = known_implementations.get(match[1] if match else "", {}).get("class", "fsspec").partition(".")[0]
    return str(error) if module == "fsspec" else f"pip install {module}"


def state_of(info: Mapping[str, Any]) -> FileState:
    """The state in what a file system tells about a file; its version is empty where that tells none."""
    key = next((key for key in _VERSIONS if info.get(key) is not None), "")
    value = info.get(key, "")
    if isinstance(value, datetime):  # a listing may have the timestamp instead
        value = value.timestamp()
    return FileState(int(info.get("size") or 0), f"{key} {value}".strip())


@contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The file of a URL as a stream of bytes, read in large blocks."""
    location = locate(name)
    with explained(name):
        # Columns of a table are read in turns, which a cache that reads ahead would fetch again and again.
        file = within(PATIENCE, lambda _: location.filesystem.open(location.path, "rb", cache_type="none"))
        with io.BufferedReader(_Blocks(file, name)) as stream:
            yield stream


class _Blocks(io.RawIOBase):
    """A file of a store, read in large blocks, each of which must arrive in time.

    A reader of text asks for a few KiB at a time, past any buffer that is put before it.
    """

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._name = file, name
        self._block, self._used = b"", 0
        """The bytes before the file's position, and how many of them are read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def tell(self) -> int:
        return int(self._file.tell()) - len(self._block) + self._used

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = self.tell() + offset, os.SEEK_SET
        used = offset - (int(self._file.tell()) - len(self._block))
        if whence == os.SEEK_SET and 0 <= used <= len(self._block):
            self._used = used
            return offset
        self._block, self._used = b"", 0
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        if self._used == len(self._block):
            size = max(len(buffer), READ_BYTES)
            try:
                self._block, self._used = within(PATIENCE, lambda _: self._file.read(size)), 0
            except ValueError as error:  # of the driver, as where a server sends whole files only
                hint = "download it, and name the copy"
                raise QABuildError(f"{self._name}: {' '.join(str(error).split())}", hint) from error
        content = self._block[self._used : self._used + len(buffer)]
        buffer[: len(content)] = content
        self._used += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what a store's driver raises about `name` into errors of qabuild. Local errors pass, but missing rights.

    Drivers raise errors of their libraries, which have no class in common.
    """
    try:
        yield
    except (QABuildError, MemoryError, ImportError, ValueError):
        raise
    except FileNotFoundError as error:
        raise BadTarget(f"{name}: there is no such file, folder or bucket", "check the address") from error
    except PermissionError as error:
        raise BadTarget(f"{name}: access is denied", "check the rights of this user or of its credentials") from error
    except TimeoutError as error:
        raise QABuildError(f"{name}: {error}", "check the network and the address") from error
    except Exception as error:
        if not is_url(name):
            raise
        lines = str(error).splitlines() or [""]
        raise QABuildError(
            f"{name}: {type(error).__name__}: {lines[0]}", "check the network, the credentials and the address"
        ) from error
