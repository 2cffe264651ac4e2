"""A result as one object of a remote cache: an uncompressed tar.

    result.json     the object's format, the entry of the result, and its signature where it has one
    files/NAME      the files, in the order of their names

Whoever can write to a remote cache writes what they like. So the reader takes nothing from the tar but bytes: which
files there are, their sizes and SHA-256 say the entry, and that is what was asked for, or the object is refused.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any, Protocol, cast

from qabuild.artifact.manifest import SealedFile
from qabuild.builder.keys import json_digest, step_key
from qabuild.builder.store.local import ENTRY, FILES, Entry, entry_of
from qabuild.system import documents, files

FORMAT = 1
HEADER = "result.json"
LARGEST_HEADER = 1 << 23  # bytes
CHUNK = 1 << 20


class Refused(ValueError):
    """The object is not what it should be."""


class Newer(Exception):
    """A newer version of qabuild wrote the object."""


class Signing(Protocol):
    """Signs and verifies the digests of results."""

    def sign(self, digest: str) -> str:
        """A signature of the digest."""

    def is_signed(self, digest: str, signature: str) -> bool:
        """Whether it is a valid signature of the digest."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    __pydantic_config__ = documents.CLOSED

    format: int
    entry: dict[str, Any]
    signature: str | None = None


def write(result: Path, file: IO[bytes], signing: Signing | None) -> None:
    """Write the result in the folder `result` of the store, as an object."""
    document = documents.read_json(files.read(result / ENTRY))
    signature = signing.sign(_signed_digest(FORMAT, document)) if signing else None
    header = json.dumps({"format": FORMAT, "entry": document, "signature": signature}, ensure_ascii=False).encode()
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_member(HEADER, len(header)), BytesIO(header))
        for name in sorted(document["files"]):
            with files.opened(result / FILES / name) as content:
                archive.addfile(_member(f"{FILES}/{name}", document["files"][name]["size"]), content)


def read(file: BufferedReader, key: str, stage: Path, signing: Signing | None) -> None:
    """Write the result with that key, which the object holds, into the empty folder `stage`, every byte checked.

    Raises Newer; Refused where the object is damaged, another result, or not signed as `signing` demands; OSError
    where `stage` cannot be written.
    """
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Bounded(file)), mode="r:") as archive:
            header = _read_header(archive, signing)
            entry = entry_of(header.entry, stage / FILES)
            if not key == entry.key == step_key(entry.inputs):
                raise Refused("the result of another step")
            if problem := next(files.strange_names(entry.files), None):
                raise Refused(f"{problem[0]!r} {problem[1]}")
            (stage / FILES).mkdir()
            for name in sorted(entry.files):
                _extract(archive, name, entry.files[name], entry)
            if archive.next() is not None:
                raise Refused("it holds more than its entry says")
    except (Newer, Refused, OSError):
        raise
    except Exception as error:  # tarfile raises whatever it meets in what anyone may have written
        raise Refused(f"damaged: {error}") from None
    (stage / ENTRY).write_text(json.dumps(header.entry, indent=1, ensure_ascii=False), encoding="utf-8")


def _read_header(archive: tarfile.TarFile, signing: Signing | None) -> _Header:
    member = archive.next()
    content = archive.extractfile(member) if member and member.name == HEADER and _is_plain(member) else None
    if member is None or content is None or member.size > LARGEST_HEADER:
        raise Refused(f"damaged: it does not begin with {HEADER}")
    document = documents.typed(dict[str, Any], documents.read_json(b"".join(_chunks(content))))
    number, entry, signature = (document.get(name) for name in ("format", "entry", "signature"))
    if signing and not (isinstance(signature, str) and signing.is_signed(_signed_digest(number, entry), signature)):
        raise Refused("not signed with the key of this cache")
    if isinstance(number, int) and number > FORMAT:
        raise Newer
    header = documents.typed(_Header, document)
    if header.format != FORMAT:
        raise Refused(f"damaged: format {header.format}")
    return header


def _signed_digest(number: Any, entry: Any) -> str:
    """What is signed: of every format, so that nobody else can have a result taken for one of a newer version."""
    return json_digest({"format": number, "entry": entry})


def _extract(archive: tarfile.TarFile, name: str, expected: SealedFile, entry: Entry) -> None:
    """Write the next member, which must be the file `name`, of that size and SHA-256."""
    member = archive.next()
    if member is None or member.name != f"{FILES}/{name}" or not _is_plain(member) or member.size != expected.size:
        raise Refused(f"damaged: {name} is not where it should be")
    tarfile.data_filter(member, str(entry.directory.parent))
    content = archive.extractfile(member)
    assert content is not None
    goal = entry.directory / name
    goal.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with open(goal, "xb") as file:
        for chunk in _chunks(content):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != expected.sha256:
        raise Refused(f"damaged: {name} has other bytes than its entry says")


def _member(name: str, size: int) -> tarfile.TarInfo:
    """What the tar says of a file: the same on every machine."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _is_plain(member: tarfile.TarInfo) -> bool:
    """Whether it is a file: no link, device or folder, and no sparse file, whose size is not that of its bytes."""
    return member.type == tarfile.REGTYPE and not member.issparse()


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: content.read(CHUNK), b"")


class _Bounded:
    """The file, of which nothing is read at once that would fill the memory: tarfile reads headers of any size."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)
