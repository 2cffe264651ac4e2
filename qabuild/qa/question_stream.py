"""Streaming reader of question files: JSON Lines or a SQuAD document, plain or gzip, from a file or a pipe.

A bad row is yielded with its problem, so that reading continues; a file that cannot be parsed raises an error.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Literal

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.qa.data.schema import field, items

QuestionsFormat = Literal["jsonl", "squad"]

PIPE = "-"
READ_CHARACTERS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question of a file, or its problem."""

    at: str
    """Its place: "line 7", or "data[0].paragraphs[1].qas[2]"."""
    id: str | int | None = None
    question: str = ""
    context: str = ""
    problem: str | None = None


def bad_row(at: str, problem: str, name: str | int | None = None) -> Row:
    """A row with a problem, which is not answered."""
    return Row(at=at, id=name, problem=problem)


def read_rows(source: str, form: QuestionsFormat) -> Iterator[Row]:
    """Read the rows of `source`, a file or a pipe; a SQuAD document is held in memory one article at a time.

    Raises BadTarget for a missing file, UntrustedInput if it cannot be parsed.
    """
    with opened(source) as stream:
        try:
            yield from (_jsonl if form == "jsonl" else _squad)(stream, source)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UntrustedInput(f"{source}: damaged gzip file ({error})", "fetch or compress it again") from error


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
    """The file as a binary stream, decompressed if it starts with the gzip magic."""
    try:
        raw: Any = sys.stdin.buffer if source == PIPE else open(source, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise BadTarget(f"{source}: there is no such file", "check the path; '-' reads from a pipe") from error
    except OSError as error:
        raise BadTarget(f"{source}: cannot be read ({error.strerror})", "give a .jsonl or SQuAD .json file") from error
    try:
        _refuse_device(raw, source)
        compressed = unpack and raw.peek(2)[:2] == b"\x1f\x8b"
        stream: Any = gzip.GzipFile(fileobj=raw) if compressed else raw
        yield stream
    finally:
        if source != PIPE:
            raw.close()


def _refuse_device(raw: Any, source: str) -> None:
    """Files, pipes and terminals end; a disk or /dev/zero does not, or holds no text."""
    with suppress(OSError):  # a stream without a descriptor, as in tests
        mode = os.fstat(raw.fileno()).st_mode
        terminal = raw.isatty() or os.path.samestat(os.fstat(raw.fileno()), os.stat(os.devnull))
        if stat.S_ISBLK(mode) or (stat.S_ISCHR(mode) and not terminal):
            raise BadTarget(f"{source}: is a device", "give a file or a pipe")


def _jsonl(stream: IO[bytes], where: str) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        at = f"line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield bad_row(at, f"{at} is not JSON ({error})")
        else:
            yield _row(entry, entry, where, at)


def _squad(stream: IO[bytes], where: str) -> Iterator[Row]:
    """The rows of a SQuAD document; a malformed article or paragraph is one bad row."""
    for index, article in enumerate(_articles(io.TextIOWrapper(stream, encoding="utf-8-sig"), where)):
        try:
            paragraphs = list(items(article, "paragraphs", where, f"data[{index}]"))
        except UntrustedInput as error:
            yield bad_row(f"data[{index}]", _problem(error, where))
            continue
        for paragraph, at in paragraphs:
            try:
                entries = list(items(paragraph, "qas", where, at))
            except UntrustedInput as error:
                yield bad_row(at, _problem(error, where))
                continue
            yield from (_row(entry, paragraph, where, at_entry) for entry, at_entry in entries)


def _row(entry: Any, holder: Any, where: str, at: str) -> Row:
    """The row of `entry`; `holder` is the object with its context."""
    raw_id = entry.get("id") if isinstance(entry, dict) else None
    row_id = raw_id if type(raw_id) in (str, int) else None
    try:
        if row_id is None:
            if isinstance(entry, dict) and "id" in entry:
                return bad_row(at, f"{at}.id is neither a string nor a whole number")
            field(entry, "id", str, where, at)
        question = field(entry, "question", str, where, at)
        context = field(holder, "context", str, where, at)
    except UntrustedInput as error:
        return bad_row(at, _problem(error, where), row_id)
    blank = [
        key for key, text in (("id", str(raw_id)), ("question", question), ("context", context)) if not text.strip()
    ]
    if blank:
        return bad_row(at, f"{at}.{blank[0]} is blank", row_id)
    try:
        f"{raw_id}{question}{context}".encode()
    except UnicodeEncodeError:
        return bad_row(at, f"{at} holds characters that are not valid text (lone surrogates)")
    return Row(at=at, id=row_id, question=question, context=context)


def _problem(error: UntrustedInput, where: str) -> str:
    """The error's message without the file's name, which is reported beside it."""
    return error.message.removeprefix(f"{where}: ").removeprefix("not in the layout of SQuAD: ")


def _articles(text: io.TextIOWrapper, where: str) -> Iterator[Any]:
    """The entries of the list `data` of a JSON document, parsed lazily."""
    try:
        yield from _entries(_Reader(text), where)
    except UnicodeDecodeError as error:
        raise UntrustedInput(f"{where}: not UTF-8 text ({error.reason})", "give a SQuAD-layout JSON file") from error
    except (json.JSONDecodeError, RecursionError) as error:
        problem = getattr(error, "msg", error)
        raise UntrustedInput(f"{where}: not JSON ({problem})", "give a SQuAD-layout JSON file") from error
    finally:
        text.detach()  # whoever opened the wrapped stream closes it


def _entries(reader: _Reader, where: str) -> Iterator[Any]:
    has_data = False
    reader.expect("{")
    while not reader.takes("}"):
        key = reader.value()
        reader.expect(":")
        if key == "data" and reader.takes("["):
            has_data = True
            while not reader.takes("]"):
                yield reader.value()
                reader.separator("]")
        else:
            reader.value()
        reader.separator("}")
    reader.end()
    if not has_data:
        raise UntrustedInput(f"{where}: not in the layout of SQuAD: there is no list 'data'", "give a SQuAD document")


class _Reader:
    """Incremental JSON reader; holds one value in memory."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._read, self._at = text, "", 0
        self._decoder = json.JSONDecoder()

    def value(self) -> Any:
        while self._next():
            try:
                value, end = self._decoder.raw_decode(self._read, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
            else:
                if end < len(self._read) or not self._more():  # a number may continue
                    self._at = end
                    return value
        raise json.JSONDecodeError("unexpected end", self._read, self._at)

    def expect(self, sign: str) -> None:
        if not self.takes(sign):
            raise json.JSONDecodeError(f"a {sign!r} is missing", self._read, self._at)

    def takes(self, sign: str) -> bool:
        """Read `sign` if it comes next; whether it did."""
        taken = self._next() == sign
        self._at += taken
        return taken

    def separator(self, end: str) -> None:
        """Read the comma before the next value, unless `end` comes next, which is not read."""
        if self._next() != end:
            self.expect(",")

    def end(self) -> None:
        if self._next():
            raise json.JSONDecodeError("more follows its end", self._read, self._at)

    def _next(self) -> str:
        """Peek at the next character that is not blank; empty at the end of the text."""
        while True:
            while self._at < len(self._read):
                if self._read[self._at] not in " \t\r\n":
                    return self._read[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read more text, at least doubling the buffer, so that a long value is parsed in few attempts."""
        more = self._text.read(max(READ_CHARACTERS, len(self._read) - self._at))
        if more:
            self._read, self._at = self._read[self._at :] + more, 0
        return bool(more)
