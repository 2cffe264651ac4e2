"""Incremental reader of JSON texts; holds one value in memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

READ_CHARACTERS = 1 << 16


class JsonReader:
    """Reads a JSON text value by value. Raises json.JSONDecodeError or RecursionError."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._read, self._at = text, "", 0
        self._lines = 0  # before what is held
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
        raise self._error("unexpected end")

    def items(self) -> Iterator[Any]:
        """The values of a list whose opening bracket is read."""
        while not self.takes("]"):
            yield self.value()
            self._separator("]")

    def object_keys(self) -> Iterator[str]:
        """The keys of an object; whoever takes a key reads its value before the next one."""
        self._expect("{")
        while not self.takes("}"):
            key = self.value()
            if not isinstance(key, str):
                raise self._error("a key is not a string")
            self._expect(":")
            yield key
            self._separator("}")

    def takes(self, sign: str) -> bool:
        """Read `sign` if it comes next; whether it did."""
        taken = self._next() == sign
        self._at += taken
        return taken

    def at_end(self) -> bool:
        return not self._next()

    def require_end(self) -> None:
        if not self.at_end():
            raise self._error("more follows its end")

    def line(self, error: json.JSONDecodeError) -> int:
        """The line of the text in which an error of this reader is, from 1."""
        return self._lines + error.lineno

    def _expect(self, sign: str) -> None:
        if not self.takes(sign):
            raise self._error(f"a {sign!r} is missing")

    def _separator(self, end: str) -> None:
        """Read the comma before the next value, unless `end` comes next, which is not read."""
        if self._next() != end:
            self._expect(",")

    def _error(self, problem: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(problem, self._read, self._at)

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
            self._lines += self._read.count("\n", 0, self._at)
            self._read, self._at = self._read[self._at :] + more, 0
        return bool(more)
