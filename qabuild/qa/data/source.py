"""Question files and pipes as streams of bytes or text: gzip, devices, encodings."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.system import storage

PIPE = "-"

_BYTE_ORDER_MARKS = {  # UTF-32 before UTF-16, whose little-endian mark begins alike
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NULS = {(1, 2, 3): "utf-32-le", (0, 1, 2): "utf-32-be", (1, 3): "utf-16-le", (0, 2): "utf-16-be"}
"""Encoding of text without a byte order mark, by the zeros among the bytes of its first ASCII characters."""


def is_pipe(name: str) -> bool:
    """Whether `name` is a pipe, a device or the like: readable once, and never replaced by a file."""
    return name == PIPE or not stat.S_ISREG(_mode(name))


def _mode(name: str) -> int:
    """The file's mode; that of a regular file if it does not exist."""
    try:
        return os.stat(name).st_mode
    except OSError:
        return stat.S_IFREG


@contextmanager
def opened(source: str, unpack: bool = True) -> Iterator[IO[bytes]]:
    """The file, at a path or a URL, as a binary stream, decompressed if it starts with the gzip magic.

    Raises BadTarget if there is no such file, or it cannot be read; UntrustedInput if it is a damaged gzip file.
    """
    if storage.is_url(source):
        with storage.opened(source) as remote, _unpacked(remote, source, unpack) as stream:
            yield stream
        return
    try:
        raw: Any = sys.stdin.buffer if source == PIPE else open(source, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise BadTarget(f"{source}: there is no such file", "check the path") from error
    except PermissionError as error:
        raise BadTarget(f"{source}: access is denied", "give this user the right to read it") from error
    except OSError as error:
        raise BadTarget(f"{source}: cannot be read ({error.strerror})", "give a file of questions") from error
    try:
        _refuse_device(raw, source)
        with _unpacked(raw, source, unpack) as stream:
            yield stream
    finally:
        if source != PIPE:
            raw.close()


@contextmanager
def _unpacked(raw: Any, source: str, unpack: bool) -> Iterator[Any]:
    try:
        yield gzip.GzipFile(fileobj=raw) if unpack and raw.peek(2)[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UntrustedInput(f"{source}: damaged gzip file ({error})", "fetch or compress it again") from error


def _refuse_device(raw: Any, source: str) -> None:
    """Files, pipes and terminals end; a disk or /dev/zero does not, or holds no text."""
    with suppress(OSError):  # a stream without a descriptor, as in tests
        mode = os.fstat(raw.fileno()).st_mode
        terminal = raw.isatty() or os.path.samestat(os.fstat(raw.fileno()), os.stat(os.devnull))
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not terminal):
            raise BadTarget(f"{source}: is a device", "give a file or a pipe")


class Encoding(NamedTuple):
    """The encoding of a text: its name for Python, and whether a byte order mark or UTF-8's own rules prove it."""

    name: str
    certain: bool

    @property
    def shown(self) -> str:
        return _SHOWN.get(self.name, self.name.upper())


_SHOWN = {
    "utf-8-sig": "UTF-8",
    "cp1252": "Windows-1252",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
}
"""Names as iconv knows them, where they differ from Python's."""


def encoding_of(text: bytes) -> Encoding | None:
    """The encoding of `text`: by its byte order mark, UTF-8, or else what it looks like. None: it looks like none."""
    if marked := _marked(text):
        return Encoding(marked, certain=True)
    if unmarked := _unmarked(text):
        return Encoding(unmarked, certain=False)
    try:
        text.decode()
    except UnicodeDecodeError:
        return Encoding("cp1252", certain=False) if _is_western(text) else None
    return Encoding("utf-8", certain=True)


def _marked(text: bytes) -> str | None:
    """The encoding that its byte order mark tells."""
    return next((name for mark, name in _BYTE_ORDER_MARKS.items() if text.startswith(mark)), None)


def _unmarked(text: bytes) -> str | None:
    """The encoding that the zeros of the first four bytes tell."""
    return _NULS.get(tuple(index for index, byte in enumerate(text[:4]) if byte == 0))


def _is_western(text: bytes) -> bool:
    """Whether it looks like Windows-1252: its bytes outside ASCII are letters among ASCII ones, not in sequences."""
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return False
    sequences = re.findall(rb"[\x80-\xff]+", text)
    return sum(len(sequence) == 1 for sequence in sequences) * 2 > len(sequences)


@contextmanager
def decoded(
    stream: IO[bytes], where: str, newline: str | None = None, encoding: str | None = None
) -> Iterator[io.TextIOWrapper]:
    """The stream as text in `encoding`; by default in that of its byte order mark, or else in UTF-8.

    Raises UntrustedInput, which says what the encoding looks like, for any other text.
    """
    head = stream.peek(4)[:4]  # type: ignore[attr-defined]
    encoding = encoding or _marked(head)
    if encoding is None and (likely := _unmarked(head)):
        raise _not_utf8(where, Encoding(likely, certain=False), "it has no byte order mark")
    text = io.TextIOWrapper(stream, encoding=encoding or "utf-8", newline=newline)
    try:
        yield text
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise UntrustedInput(
                f"{where}: damaged {error.encoding.upper()} text ({error.reason})", "write it again as UTF-8"
            ) from None
        before = error.object[: error.start].decode("utf-8", "replace")[-20:]
        problem = f"byte 0x{error.object[error.start]:02X} after {before!r}"
        raise _not_utf8(where, encoding_of(error.object), problem) from None
    finally:
        text.detach()  # whoever opened the wrapped stream closes it


def _not_utf8(where: str, likely: Encoding | None, problem: str) -> UntrustedInput:
    if likely is None or likely.certain:
        return UntrustedInput(
            f"{where}: not UTF-8 text: {problem}",
            "convert it, as with `iconv -f GB18030 -t UTF-8` (or SHIFT_JIS, EUC-KR, WINDOWS-1251, ...)",
        )
    return UntrustedInput(
        f"{where}: not UTF-8 text, it looks like {likely.shown}: {problem}",
        f"convert it, with `iconv -f {likely.shown.upper()} -t UTF-8` or `qabuild data check FILE --fix OUT.json`",
    )
