"""Files of questions and answers, and a pipeline and a reporter to answer them with."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet


class FirstWord:
    """A pipeline that answers with the context's first word and reads a stream `ahead` rows ahead, as the real one."""

    def __init__(self, ahead: int = 5, answering: Callable[[str], None] = lambda question: None) -> None:
        self.ahead, self.answering = ahead, answering
        self.answered: list[str] = []

    def __call__(self, stream: Iterator[dict[str, str]] | None = None, **named: Any) -> Any:
        top_k = named.pop("top_k", 1)
        return self._stream(stream, top_k) if stream is not None else self._one(named, top_k)

    def _stream(self, stream: Iterator[dict[str, str]], top_k: int) -> Iterator[Any]:
        pending = []
        for example in stream:
            pending.append(example)
            if len(pending) == self.ahead:
                yield from [self._one(example, top_k) for example in pending]
                pending = []
        yield from [self._one(example, top_k) for example in pending]

    def _one(self, example: dict[str, str], top_k: int) -> Any:
        self.answering(example["question"])
        self.answered.append(example["question"])
        words = example["context"].split()[:top_k]
        answers = [{"score": 1 / (1 + n), "start": n, "end": 1, "answer": word} for n, word in enumerate(words)]
        return answers[0] if len(answers) == 1 else answers


class RecordingReporter:
    """A reporter that records its messages and progress."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.done = self.total = 0

    def say(self, message: str) -> None:
        self.messages.append(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        self.total = total

        def advance(count: int) -> None:
            self.done += count

        yield advance


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{n}", "question": f"What is {n}?", "context": f"été{n} 東京 😀"} for n in range(count)]


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    """Write a line for each value: strings unchanged, all else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", errors="surrogatepass")
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kill_at(number: int) -> Callable[[str], None]:
    def answering(question: str) -> None:
        if question == f"What is {number}?":
            os.kill(os.getpid(), signal.SIGKILL)

    return answering


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows, without empty cells; ids and texts of CSV are strings."""
    if path.suffix == ".parquet":
        rows = parquet.read_table(path).to_pylist()
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]
