"""Stores: how few requests they get, and that each of them ends."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild.errors import QABuildError
from qabuild.qa.data import question_files, records
from qabuild.system import storage

pytest.importorskip("aiohttp")
CONTENT = b'{"question": "?", "context": "c"}\n' * 200_000
"""Several reads long."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.5)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts, and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def stalling() -> Iterator[Callable[[int], str]]:
    """`stalling(3)`: the address of a file whose server answers three requests for its content, and no more."""
    ended = threading.Event()
    answered = 0

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()

        def do_GET(self) -> None:
            nonlocal answered
            answered += 1
            if answered > self.server.answers:  # type: ignore[attr-defined]
                ended.wait()
                return
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            part = CONTENT[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(CONTENT)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def start(answers: int) -> str:
        server.answers = answers  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{server.server_port}/q.jsonl"

    yield start
    ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["in/", "in/*.jsonl", "in/q.jsonl"])
def test_questions_in_a_store_that_never_answers_are_given_up(impatient: None, silent: str, name: str) -> None:
    with pytest.raises(QABuildError, match=rf"{silent}/in.*: no answer for 0.5 s\n  check the network and the address"):
        question_files.find(f"{silent}/{name}")


@pytest.mark.parametrize(
    "request_of",
    [
        lambda place, file: place.state(),
        lambda place, file: place.read(),
        lambda place, file: place.write(b"x"),
        lambda place, file: place.create(b"x"),
        lambda place, file: place.put(file),
        lambda place, file: place.get(file),
        lambda place, file: place.is_folder(),
    ],
)
def test_each_request_to_a_store_that_never_answers_is_given_up(
    impatient: None, silent: str, tmp_path: Path, request_of: Callable[[storage.Location, Path], object]
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(QABuildError, match=f"{silent}/x: no answer for 0.5 s"):
        request_of(storage.locate(f"{silent}/x"), file)


def test_a_file_whose_server_stalls_is_given_up_after_the_rows_that_arrived(
    impatient: None, stalling: Callable[[int], str]
) -> None:
    address = stalling(2)
    arrived: list[records.Record] = []
    with pytest.raises(QABuildError, match=f"{address}: no answer for 0.5 s"):
        arrived.extend(records.read_records(address, "jsonl"))
    assert 0 < len(arrived) < 200_000


@pytest.mark.parametrize("form", ["jsonl", "csv", "squad"])
def test_text_is_read_in_large_blocks(stalling: Callable[[int], str], form: Any) -> None:
    """A store takes as long for a request of a few KiB as for one of a MiB."""
    blocks = len(CONTENT) / storage.READ_BYTES
    assert sum(1 for _ in records.read_records(stalling(round(blocks) + 2), form)) >= 199_999


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["read", "read1", os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]), st.integers(-90, 90))
    ),
    block=st.integers(1, 40),
)
def test_a_file_of_a_store_reads_as_one_of_the_disk(steps: list[tuple[Any, int]], block: int) -> None:
    content = bytes(range(64))
    fsspec.filesystem("memory").pipe_file("/blocks", content)
    on_disk = io.BytesIO(content)
    with pytest.MonkeyPatch.context() as patch, storage.opened("memory://blocks") as stream:
        patch.setattr(storage, "READ_BYTES", block)
        for step, number in steps:
            if step == "read":
                assert stream.read(abs(number)) == on_disk.read(abs(number))
            elif step == "read1":
                part = stream.read1(abs(number))  # type: ignore[attr-defined]
                assert on_disk.read(len(part)) == part
            else:
                start = {os.SEEK_SET: 0, os.SEEK_CUR: on_disk.tell(), os.SEEK_END: len(content)}[step]
                goal = min(max(start + number, 0), len(content))
                assert stream.seek(goal - start, step) == on_disk.seek(goal) == goal
            assert stream.tell() == on_disk.tell()
