"""The remote cache: what one machine made the others fetch, and whatever is wrong there, builds go on."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3
from fsspec.implementations.memory import MemoryFileSystem

from qabuild.artifact.key_pair import keygen
from qabuild.builder.keys import step_key
from qabuild.builder.steps import of_stage
from qabuild.builder.steps.step import ARTIFACT, VERIFICATION
from qabuild.builder.store import archive, gc
from qabuild.builder.store.local import Entry, Store
from qabuild.builder.store.remote import EVIDENCE, Remote, open_store
from qabuild.builder.store.signing import EllipticSigning
from qabuild.errors import BadTarget

PERIOD = 3.0
"""Seconds after which a lease expires in these tests."""


@dataclass
class Machine:
    """A machine with a store of its own, which counts what it makes."""

    folder: Path
    remote: str
    key: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        signing = EllipticSigning(self.key) if self.key else None
        self.store = Store(self.folder, Remote(self.remote, signing=signing, reporter=self, **self.options))

    def make(self, number: int = 1, step: str = "compile", follows: Sequence[str] = ()) -> Entry:
        def produce(folder: Path) -> Mapping[str, Any]:
            self.made.append(number)
            (folder / "model.bin").write_bytes(content(number))
            return {"number": number}

        entry = self.store.make(step, {"number": number}, produce, follows=follows)
        assert (entry.directory / "model.bin").read_bytes() == content(number)
        assert entry.record == {"number": number}
        return entry

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        yield lambda count: None


def content(number: int) -> bytes:
    return f"weights of {number}\n".encode() * 1000


def key(number: int = 1) -> str:
    return step_key({"number": number})


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture
def machine(tmp_path: Path, memory: Any) -> Callable[..., Machine]:
    """`machine(name)`: one of several machines that share the folder `remote`, or another URL."""

    def make(name: str, remote: str | None = None, **options: Any) -> Machine:
        return Machine(tmp_path / name, f"file://{tmp_path}/remote" if remote is None else remote, **options)

    return make


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The object of result 1 in the shared folder."""
    return tmp_path / "remote" / "v1" / "results" / f"{key()}.tar"


@contextmanager
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records what a driver is asked for, as its methods, outermost calls only."""
    made: list[str] = []
    depth = threading.local()

    def recorded(name: str) -> Callable[..., Any]:
        method = getattr(MemoryFileSystem, name)

        def call(self: Any, *args: Any, **named: Any) -> Any:
            depth.n = getattr(depth, "n", 0) + 1
            if depth.n == 1:
                made.append(name)
            try:
                return method(self, *args, **named)
            finally:
                depth.n -= 1

        return call

    with monkeypatch.context() as patched:
        for name in ("cat_file", "get_file", "pipe_file", "put_file", "info", "exists", "open", "ls", "rm_file"):
            patched.setattr(MemoryFileSystem, name, recorded(name))
        yield made


# --- fetch and put --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [None, "memory://team/qabuild", "memory://team/qabuild/"])
def test_what_one_machine_made_another_fetches(machine, remote):
    first, second = machine("first", remote), machine("second", remote)
    entries = [first.make(), second.make()]
    assert (first.made, second.made) == ([1], [])
    assert second.said == ["compile: from the remote cache"]
    assert entries[0].files == entries[1].files
    assert second.store.find_intact(key()) == entries[1]
    second.make()  # now from its own store
    assert len(second.said) == 1


def test_a_folder_needs_no_url(machine, tmp_path):
    machine("first", str(tmp_path / "here")).make()
    assert (tmp_path / "here" / "v1" / "results" / f"{key()}.tar").exists()


def test_a_fetched_result_takes_one_request_and_a_made_one_six(machine, memory, monkeypatch):
    with requests(monkeypatch) as made:
        machine("first", "memory://team").make()
    # Is it there; the lease; is it there now; is it still absent; the result; the end of the lease.
    assert made == ["get_file", "pipe_file", "get_file", "info", "put_file", "rm_file"]
    with requests(monkeypatch) as made:
        machine("second", "memory://team").make()
    assert made == ["get_file"]
    assert list(memory.find("/team")) == [f"/team/v1/results/{key()}.tar"]
    assert memory.size(f"/team/v1/results/{key()}.tar") < len(content(1)) + 10240  # a tar is a multiple of that


def test_a_result_can_be_fetched_alone(machine):
    first, second = machine("first"), machine("second")
    assert second.store.fetch("train", key()) is None
    made = first.make(step="train")
    fetched = second.store.fetch("train", key())
    assert fetched
    assert fetched.files == made.files


def test_what_fails_is_not_put_and_releases_its_lease(machine, tmp_path):
    first = machine("first")

    def fail(folder: Path) -> Mapping[str, Any]:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        first.store.make("compile", {"number": 1}, fail)
    assert [path for path in (tmp_path / "remote").rglob("*") if path.is_file()] == []
    machine("second").make()


def test_a_result_that_does_not_fit_is_made_anew(machine):
    machine("first").make()
    second = machine("second")
    entry = second.store.make("compile", {"number": 1}, lambda folder: {"own": True}, lambda entry: False)
    assert entry.record == {"own": True}


def test_a_killed_download_is_cleared_away(machine, tmp_path):
    left = tmp_path / "first" / "v1" / "staging" / f"{key()}.remote" / "download"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    gc.prune(Store(tmp_path / "first"))
    assert not left.parent.exists()


# --- damage ---------------------------------------------------------------------------------------------------------


def position(stored: bytes, what: str) -> int:
    """Where in the object a byte of that kind is."""
    with tarfile.open(fileobj=io.BytesIO(stored)) as tar:
        header, file = tar.getmembers()
    return {
        "the entry's tar header": 3,
        "the entry": header.offset_data + stored[header.offset_data :].index(b"inputs") + 3,
        "the name of the file": file.offset + 7,
        "the file's tar header": file.offset + 130,
        "the file": file.offset_data + file.size // 2,
        "the file's last byte": file.offset_data + file.size - 1,
    }[what]


@pytest.mark.parametrize(
    "what",
    [
        *("the entry's tar header", "the entry"),
        *("the name of the file", "the file's tar header", "the file", "the file's last byte"),
    ],
)
def test_a_flipped_byte_is_noticed_and_the_step_made_anew(machine, shared, what):
    machine("first").make()
    stored = bytearray(shared.read_bytes())
    whole = bytes(stored)
    stored[position(whole, what)] ^= 1
    shared.write_bytes(stored)
    second = machine("second")
    second.make()
    assert second.made == [1]
    assert [message.partition(" is ignored: ")[0] for message in second.said] == [
        f"remote cache {shared.parents[2].as_uri()}: the result {key()[:16]} of compile"
    ]
    third = machine("third")  # for which the good one was put
    third.make()
    assert third.made == []


@pytest.mark.parametrize("size", [0, 1, 700, 10_000])
def test_a_truncated_object_is_replaced(machine, shared, size):
    machine("first").make()
    shared.write_bytes(shared.read_bytes()[:size])
    second, third = machine("second"), machine("third")
    second.make()
    third.make()
    assert (second.made, third.made) == ([1], [])


def test_a_newer_version_is_ignored_with_one_remark_and_left_alone(machine, shared):
    first = machine("first")
    for number in (1, 2):
        first.make(number)
        path = shared.with_name(f"{key(number)}.tar")
        header = b'{"format": 2}'
        info = tarfile.TarInfo("result.json")
        info.size = len(header)
        with tarfile.open(path, "w") as tar:
            tar.addfile(info, io.BytesIO(header))
    before = shared.read_bytes()
    second = machine("second")
    second.make(1)
    second.make(2)
    assert second.made == [1, 2]
    assert len(second.said) == 1
    assert "newer version of qabuild" in second.said[0]
    assert shared.read_bytes() == before


def test_a_pipe_in_the_place_of_a_result_does_not_block(machine, shared):
    shared.parent.mkdir(parents=True)
    os.mkfifo(shared)
    first = machine("first")
    first.make()
    assert first.made == [1]


# --- reading only ---------------------------------------------------------------------------------------------------


def test_in_read_only_mode_nothing_is_written(machine, memory, monkeypatch):
    machine("first", "memory://team").make(1)
    before = dict(memory.store)
    second = machine("second", "memory://team?mode=ro")
    with requests(monkeypatch) as made:
        second.make(1)
        second.make(2)
    assert (second.made, memory.store) == ([2], before)
    assert made == ["get_file", "get_file"]


def test_a_folder_served_over_http_is_read(machine, tmp_path):
    machine("first").make(1)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "remote")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        second = machine("second", f"http://127.0.0.1:{server.server_port}?mode=ro")
        second.make(1)
        second.make(2)
        server.shutdown()
    assert second.made == [2]
    assert second.said == ["compile: from the remote cache"]


@pytest.mark.parametrize("option", ["mode=rw", "mod=ro", "mode=ro&x=1"])
def test_another_mode_is_refused(machine, option):
    with pytest.raises(BadTarget, match=rf"\?{option}: there is no such option\n  write \?mode=ro"):
        machine("first", f"memory://team?{option}")


def test_read_only_mode_may_end_in_a_slash(machine, tmp_path):
    reader = machine("reader", f"file://{tmp_path}/remote?mode=ro/")
    reader.make()
    assert not reader.store.remote.writes
    assert {path.name for path in tmp_path.iterdir()} == {"reader"}


def test_without_the_right_to_write_results_are_still_fetched(machine, memory, monkeypatch):
    machine("first", "memory://team").make(2)

    def denied(*args: Any, **named: Any) -> None:
        raise PermissionError("Forbidden")

    for name in ("pipe_file", "put_file", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, name, denied)
    second = machine("second", "memory://team")
    second.make(1)
    second.make(2)
    second.make(3)
    assert second.made == [1, 3]
    remarks = [message for message in second.said if message.startswith("remote cache")]
    assert len(remarks) == 1
    assert remarks[0].endswith("access is denied; nothing is put there")


def test_what_another_users_killed_build_left_does_not_hinder(machine, shared, monkeypatch):
    first, other = machine("first"), machine("other")
    with monkeypatch.context() as patched:
        patched.setattr(os, "getuid", lambda: 4321)
        patched.setattr(archive, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.make()
    (left,) = shared.parent.iterdir()
    other.make()
    assert {path.name for path in shared.parent.iterdir()} == {shared.name, left.name}


def interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


# --- signatures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    pytest.importorskip("model_signing")
    return tmp_path / "team.key", keygen(tmp_path / "team.key")


def test_signed_results_are_fetched_with_the_public_key(machine, keys):
    private, public = keys
    machine("first", key=private).make()
    for name, file in (("second", public), ("third", private)):
        other = machine(name, key=file)
        other.make()
        assert other.made == []


def test_unsigned_results_are_ignored_and_replaced_by_signed_ones(machine, keys, tmp_path):
    private, public = keys
    stranger = tmp_path / "stranger.key"
    keygen(stranger)
    for name, theirs in (("none", None), ("stranger", stranger)):
        remote = f"file://{tmp_path}/remote-{name}"
        machine(f"first-{name}", remote, key=theirs).make()
        reader = machine(f"reader-{name}", remote, key=public)
        reader.make()
        assert reader.made == [1]
        assert reader.said[-1].endswith("is ignored: not signed with the key of this cache")
        machine(f"writer-{name}", remote, key=private).make()
        again = machine(f"again-{name}", remote, key=public)
        again.make()
        assert again.made == []


def test_with_a_public_key_nothing_is_put(machine, keys, tmp_path):
    machine("first", key=keys[1]).make()
    assert not (tmp_path / "remote").exists()


def test_a_signature_is_of_one_result(machine, keys, shared):
    """Another result's signed object, under this name, is not this result."""
    first = machine("first", key=keys[0])
    first.make(1)
    first.make(2)
    shared.with_name(f"{key(2)}.tar").replace(shared)
    second = machine("second", key=keys[1])
    second.make(1)
    assert second.made == [1]


@pytest.mark.parametrize("step", ["reference", "original", "deviation", "verify"])
def test_evidence_is_exchanged_only_where_it_is_signed(machine, keys, step):
    machine("first").make(1, step=step)
    second = machine("second")
    second.make(1, step=step)
    assert second.made == [1]
    machine("third", key=keys[0]).make(2, step=step)
    fourth = machine("fourth", key=keys[1])
    fourth.make(2, step=step)
    assert fourth.made == []


def test_what_is_made_from_what_is_fetched_is_evidence_but_for_what_is_compiled():
    """A new step of these stages has to be thought about."""
    steps = {step.name for stage in (ARTIFACT, VERIFICATION) for step in of_stage(stage)}
    assert steps - EVIDENCE == {"compile"}
    assert steps >= EVIDENCE


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_unsigned_is_replaced_whatever_version_it_claims(machine, keys, shared, number):
    """Else anyone could keep a key of the cache empty for ever, as if a newer version had taken it."""
    private, public = keys
    machine("first", key=private).make(1)
    change_header(shared, lambda header: {**header, "format": 2})  # signed, but as another format
    if number == 2:
        change_header(shared, lambda header: {**header, "signature": None})
    machine("second", key=private).make(1)
    third = machine("third", key=public)
    third.make(1)
    assert third.made == []


def test_what_a_newer_version_has_signed_is_left_alone(machine, keys, shared, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(archive, "FORMAT", 2)
        machine("first", key=keys[0]).make(1)
    content = shared.read_bytes()
    second = machine("second", key=keys[0])
    second.make(1)
    assert second.said[-1].endswith("holds results of a newer version of qabuild; they are ignored")
    assert shared.read_bytes() == content


def change_header(path: Path, change: Callable[[Any], Any]) -> None:
    """Write the object with another header."""
    with tarfile.open(path) as old:
        members = [(member.name, old.extractfile(member).read()) for member in old.getmembers()]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as new:
        for name, data in members:
            if name == "result.json":
                data = json.dumps(change(json.loads(data))).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def test_what_came_unsigned_is_made_anew_where_signatures_are_demanded(machine, keys):
    """So is what was made of it: nobody signs what others have made."""
    machine("first").make(1)
    second = machine("second")
    second.make(1)
    second.make(2, follows=[key(1)])
    second.make(3)
    assert second.made == [2, 3]
    signing = machine("second", key=keys[0])
    assert signing.store.keys() == {key(3)}
    for number in (1, 2, 3):
        signing.make(number)
    assert signing.made == [1, 2]
    third = machine("third", key=keys[1])
    for number in (1, 2):
        third.make(number)
    assert third.made == []


def test_what_an_interrupted_step_made_of_unsigned_results_is_not_gone_on_from(machine, keys):
    machine("first").make(1)
    second = machine("second")
    second.make(1)
    with pytest.raises(KeyboardInterrupt):
        second.store.make("train", {"number": 2}, interrupted_in(second.store.work(key(2))), follows=[key(1)])
    assert (second.store.work(key(2)) / "state").exists()
    signing = machine("second", key=keys[0])
    signing.make(1)
    with pytest.raises(KeyboardInterrupt):
        signing.store.make("train", {"number": 2}, interrupted_in(second.store.work(key(2))), follows=[key(1)])


def interrupted_in(work: Path) -> Callable[[Path], Any]:
    """A step that goes on from what it finds, and is interrupted."""

    def produce(folder: Path) -> Any:
        work.mkdir(parents=True, exist_ok=True)
        assert not (work / "state").exists()
        (work / "state").touch()
        raise KeyboardInterrupt

    return produce


@pytest.mark.parametrize("offline", [True, False])
def test_what_came_unsigned_does_not_count_offline_and_in_plans_either(machine, keys, tmp_path, monkeypatch, offline):
    machine("first").make(1)
    machine("second").make(1)
    monkeypatch.setenv("QABUILD_CACHE", str(tmp_path / "second"))
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", str(tmp_path / "remote"))
    assert open_store(offline=offline).keys() == {key(1)}
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", str(keys[1]))
    assert open_store(offline=offline).keys() == frozenset()
    assert Store(tmp_path / "second").keys() == {key(1)}  # `qabuild cache` shows all


def test_a_result_that_does_not_fit_does_not_replace_the_own_one(machine):
    machine("first").make(1)
    second = machine("second")
    for _ in range(2):
        assert second.store.fetch("compile", key(1), lambda entry: False) is None
    second.store.fetch("compile", key(1))
    assert second.store.fetch("compile", key(1), lambda entry: False, replace=True)


def test_an_empty_name_of_the_key_is_an_error(tmp_path, monkeypatch):
    """A secret that is not there must not mean that no signature is demanded."""
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", str(tmp_path))
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", "")
    with pytest.raises(BadTarget, match="QABUILD_REMOTE_CACHE_KEY is empty"):
        open_store()


def test_a_file_that_is_no_key_is_an_error_at_once(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    (tmp_path / "no.key").write_text("none")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", "memory://team")
    for path in ("no.key", "gone.key"):
        with pytest.raises(BadTarget, match=path):
            open_store(key=tmp_path / path)
    monkeypatch.delenv("QABUILD_REMOTE_CACHE")
    with pytest.raises(BadTarget, match="a key, but no remote cache\n  name the remote cache in QABUILD_REMOTE_CACHE"):
        open_store(key=tmp_path / "no.key")


# --- failures -------------------------------------------------------------------------------------------------------


def test_offline_the_remote_cache_is_not_asked(machine, monkeypatch, tmp_path):
    said = machine("first")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    open_store(offline=True, reporter=said).make("compile", {}, lambda folder: {})
    assert said.said == [f"remote cache file://{tmp_path}/remote: not used offline"]
    assert not (tmp_path / "remote").exists()
    open_store(reporter=said).make("compile", {"a": 1}, lambda folder: {})
    assert (tmp_path / "remote").exists()


@contextmanager
def endpoint(answers: bool) -> Iterator[tuple[int, list[Any]]]:
    """A port of loopback that refuses connections, or accepts and never answers; and the connections."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        accepted: list[Any] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listening.accept())
                except OSError:
                    return

        if answers:
            listening.listen()
            threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1], accepted
        listening.shutdown(socket.SHUT_RDWR) if answers else None


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "never answers"])
def test_an_endpoint_that_cannot_be_reached_costs_a_bounded_time_once(machine, answers):
    with endpoint(answers) as (port, accepted):
        first = machine("first", f"http://127.0.0.1:{port}/cache", options={"patience": 2.0 if answers else 30.0})
        started = time.monotonic()
        first.make(1)
        spent = time.monotonic() - started
        asked = len(accepted)
        first.make(2)
    assert first.made == [1, 2]
    assert spent < 20
    assert len(first.said) == 1
    assert first.said[0].endswith("; going on without it")
    assert ("no answer for 2 s" in first.said[0]) == answers
    assert len(accepted) == asked


@pytest.mark.parametrize("remote", ["nosuch://team", "memory://team"])
def test_whatever_the_driver_raises_the_build_goes_on(machine, monkeypatch, remote):
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *_, **__: 1 / 0)
    first = machine("first", remote)
    first.make(1)
    first.make(2)
    assert first.made == [1, 2]
    assert [message.endswith("; going on without it") for message in first.said] == [True]


def test_a_failing_upload_is_told_and_loses_nothing(machine, monkeypatch):
    def full(*args: Any, **named: Any) -> None:
        raise OSError("the bucket is full")

    monkeypatch.setattr(MemoryFileSystem, "put_file", full)
    first = machine("first", "memory://team")
    first.make()
    assert first.store.find_intact(key())
    assert "the bucket is full" in first.said[0]


# --- leases ---------------------------------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")


def work(folder: str, remote: str, log: str, numbers: list[int], seconds: float) -> None:
    """What one of several processes does: makes results, each of which takes so long, and logs what it makes."""
    store = Store(Path(folder), Remote(remote, period=PERIOD))
    for number in numbers:

        def produce(at: Path, number: int = number) -> Mapping[str, Any]:
            with open(log, "a") as file:
                file.write(f"{number}\n")
            time.sleep(seconds)
            (at / "model.bin").write_bytes(content(number))
            return {"number": number}

        entry = store.make("compile", {"number": number}, produce)
        assert (entry.directory / "model.bin").read_bytes() == content(number)


@dataclass
class Cluster:
    """Processes with stores of their own, which share a remote cache."""

    folder: Path
    remote: str = ""

    def start(self, name: str, numbers: list[int], seconds: float) -> Any:
        remote = self.remote or f"file://{self.folder}/remote"
        arguments = (str(self.folder / name), remote, str(self.log), numbers, seconds)
        process = SPAWN.Process(target=work, args=arguments)
        process.start()
        return process

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def made(self) -> Counter[str]:
        return Counter(self.log.read_text().split() if self.log.exists() else ())

    @property
    def leases(self) -> list[Path]:
        return [path for path in self.folder.glob("remote/v1/leases/*") if not path.name.startswith(".")]

    def wait_until_made(self, number: int, times: int = 1) -> None:
        ends = time.monotonic() + 120
        while self.made[str(number)] < times:
            assert time.monotonic() < ends
            time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_processes_with_stores_of_their_own_make_each_step_once(cluster):
    processes = [cluster.start(f"host{n}", [1, 2, 3], 0.5) for n in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert cluster.made == {"1": 1, "2": 1, "3": 1}
    assert cluster.leases == []


def test_the_lease_of_a_killed_holder_is_taken_over_by_one_of_those_who_wait(cluster):
    holder = cluster.start("holder", [1], 600)
    cluster.wait_until_made(1)
    waiters = [cluster.start(f"waiter{n}", [1], 0.5) for n in range(3)]
    os.kill(holder.pid, signal.SIGKILL)
    for process in waiters:
        process.join()
    assert [process.exitcode for process in waiters] == [0, 0, 0]
    assert cluster.made == {"1": 2}
    assert cluster.leases == []


def test_a_holder_whose_lease_expired_goes_on_and_nothing_breaks(cluster, tmp_path):
    holder = cluster.start("holder", [1], 1)
    cluster.wait_until_made(1)
    os.kill(holder.pid, signal.SIGSTOP)
    second = cluster.start("second", [1], 0.1)
    second.join()
    put = next((tmp_path / "remote" / "v1" / "results").iterdir())
    before = put.stat()
    os.kill(holder.pid, signal.SIGCONT)
    holder.join()
    assert (holder.exitcode, second.exitcode) == (0, 0)
    assert cluster.made == {"1": 2}
    assert (put.stat().st_ino, put.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # put if absent
    assert cluster.leases == []


@pytest.mark.parametrize("apart", [-3600, 3600])
def test_clocks_may_be_apart_by_an_hour(cluster, apart):
    """The holder's lease has times of another clock. It is alive for longer than a period, and not taken over."""
    holder = cluster.start("holder", [1], 2 * PERIOD)
    cluster.wait_until_made(1)
    waiter = cluster.start("waiter", [1], 0.1)
    while holder.is_alive():
        for lease in cluster.leases:
            when = time.time() + apart
            try:
                os.utime(lease, (when, when))
            except FileNotFoundError:
                continue
        time.sleep(0.02)
    waiter.join()
    assert (holder.exitcode, waiter.exitcode) == (0, 0)
    assert cluster.made == {"1": 1}


def test_who_took_over_and_fails_releases_all_leases(machine, tmp_path):
    lease = tmp_path / "remote" / "v1" / "leases" / key()
    lease.parent.mkdir(parents=True)
    lease.write_text("gpu-7 0123 5")  # of a host that is no more

    def fail(folder: Path) -> Mapping[str, Any]:
        assert len(list(lease.parent.iterdir())) == 2
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        machine("first", options={"period": 0.3}).store.make("compile", {"number": 1}, fail)
    assert list(lease.parent.iterdir()) == []


def test_who_waits_says_for_whom(machine, tmp_path):
    lease = tmp_path / "remote" / "v1" / "leases" / key()
    lease.parent.mkdir(parents=True)
    lease.write_text("gpu-7\x1b[2J 0123 5")  # of a host that is no more, and whose name would clear a terminal
    first = machine("first", options={"period": 0.3})
    first.make()
    assert first.said == ["compile: gpu-7[2J is making it; waiting for that"]
    assert first.made == [1]
    assert list(lease.parent.iterdir()) == []


def test_leases_that_nobody_holds_do_not_hold_up_a_build_for_ever(machine, tmp_path):
    """The second one is its own successor."""
    leases = tmp_path / "remote" / "v1" / "leases"
    leases.mkdir(parents=True)
    for name in (key(), f"{key()}.{hashlib.sha256(b'gpu-7 0123').hexdigest()[:16]}"):
        (leases / name).write_text("gpu-7 0123 5")
    first = machine("first", options={"period": 0.3})
    first.make()
    assert first.made == [1]
    for name in (key(2), f"{key(2)}.{hashlib.sha256(f'gpu-7 {OWNER}'.encode()).hexdigest()[:16]}"):
        (leases / name).write_text(f"gpu-7 {OWNER} 5")
    first.store.remote.lease("compile", key(2), OWNER).remove_abandoned()
    assert not (leases / key(2)).exists()


def test_of_a_lease_only_the_beginning_is_read(machine, tmp_path):
    lease = tmp_path / "remote" / "v1" / "leases" / key()
    lease.parent.mkdir(parents=True)
    with open(lease, "wb") as file:
        file.write(b"gpu-7 0123 5")
        file.truncate(1 << 40)  # a sparse file, larger than any memory
    first = machine("first", options={"period": 0.3})
    first.make()
    assert first.said == ["compile: gpu-7 is making it; waiting for that"]
    assert first.made == [1]


OWNER = "0123456789abcdef" * 2


def abandoned_leases(folder: Path) -> Path:
    """The folder of leases, with those that two dead processes of the owner left, one after the other."""
    leases = folder / "remote" / "v1" / "leases"
    leases.mkdir(parents=True)
    (leases / key()).write_text(f"gpu-7 {OWNER}0123 5")
    successor = f"{key()}.{hashlib.sha256(f'gpu-7 {OWNER}0123'.encode()).hexdigest()[:16]}"
    (leases / successor).write_text(f"gpu-8 {OWNER}4567 2")
    return leases


def test_what_a_process_of_the_same_owner_left_is_taken_over_at_once(machine, tmp_path):
    """Its driver has seen it die; a lease of others, whose period is two minutes, would have to expire."""
    leases = abandoned_leases(tmp_path)
    first = machine("first", options={"owner": OWNER})
    started = time.monotonic()
    first.make()
    assert time.monotonic() - started < PERIOD
    assert first.said == []
    assert list(leases.iterdir()) == []


def test_the_leases_of_dead_processes_of_an_owner_can_be_removed(machine, tmp_path):
    leases = abandoned_leases(tmp_path)
    (leases / key(2)).write_text("gpu-9 another 1")
    remote = machine("first").store.remote
    for number in (1, 2):
        remote.lease("compile", key(number), OWNER).remove_abandoned()
    assert [path.name for path in leases.iterdir()] == [key(2)]


def test_a_result_that_is_here_only_can_be_shared(machine, tmp_path):
    first, second = machine("first"), machine("second")
    store = Store(first.folder)
    store.make(
        "compile", {"number": 1}, lambda folder: {"number": (folder / "model.bin").write_bytes(content(1)) and 1}
    )
    assert first.store.remote
    assert not first.store.remote.holds(key())
    first.store.share("compile", key())
    first.store.share("compile", key(2))  # it is not here
    assert first.store.remote.holds(key())
    second.make()
    assert second.made == []


def test_a_result_that_arrives_by_another_way_is_taken_whole_and_is_unsigned(tmp_path):
    store = Store(tmp_path / "store")
    entry = Store(tmp_path / "other").make("verify", {"number": 1}, lambda folder: {"number": 1})

    def unpack(stage: Path) -> None:
        shutil.copytree(entry.directory.parent, stage, dirs_exist_ok=True)

    def fail(stage: Path) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        store.receive(key(), fail)
    assert store.keys() == frozenset()
    store.receive(key(), unpack)
    with pytest.raises(RuntimeError, match="boom"):
        store.receive(key(), fail)
    found = store.find_intact(key())
    assert found
    assert found.record == {"number": 1}
    assert not Store(tmp_path / "store", signed=True).find(key())
    assert store.find(key())  # it is refused, and not dropped


# --- S3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket() -> Iterator[Any]:
    """The file system of an S3 server that has the bucket "team"."""
    with s3.bucket("team") as filesystem:
        yield filesystem


@pytest.mark.scale
def test_results_are_shared_over_s3(machine, bucket, keys, caplog):
    first, second = machine("first", "s3://team/cache", key=keys[0]), machine("second", "s3://team/cache", key=keys[1])
    caplog.set_level("INFO", "werkzeug")
    caplog.clear()
    first.make(step="verify")
    # As over other stores, and a list: where s3fs finds no object, it looks for a folder.
    assert served(caplog) == ["GET", "PUT", "GET", "HEAD", "GET", "PUT", "DELETE"]
    caplog.clear()
    second.make(step="verify")
    assert served(caplog) == ["GET"]
    assert (first.made, second.made) == ([1], [])
    assert bucket.find("team") == [f"team/cache/v1/results/{key()}.tar"]


def served(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The methods of the requests that the server got."""
    return [
        match[1]
        for record in caplog.records
        if record.name == "werkzeug" and (match := re.search(r"(GET|PUT|HEAD|POST|DELETE) /", record.getMessage()))
    ]


@pytest.mark.scale
def test_a_large_result_goes_through_s3_in_parts(machine, bucket):
    size = 120 << 20  # s3fs uploads more than 100 MiB in parts of 50
    first, second = machine("first", "s3://team/cache"), machine("second", "s3://team/cache")

    def produce(folder: Path) -> Mapping[str, Any]:
        with open(folder / "model.bin", "wb") as file:
            for number in range(size >> 20):
                file.write(number.to_bytes(1, "big") * (1 << 20))
        return {}

    made = first.store.make("train", {"large": True}, produce)
    fetched = second.store.fetch("train", made.key)
    assert fetched
    assert fetched.files == made.files
    assert fetched.files["model.bin"].size == size


@pytest.mark.scale
def test_over_s3_each_step_is_made_once_and_a_killed_holder_is_replaced(tmp_path, bucket):
    cluster = Cluster(tmp_path, "s3://team/cache")
    processes = [cluster.start(f"host{n}", [1, 2], 0.5) for n in range(3)]
    for process in processes:
        process.join()
    assert cluster.made == {"1": 1, "2": 1}
    holder = cluster.start("holder", [3], 600)
    cluster.wait_until_made(3)
    waiters = [cluster.start(f"waiter{n}", [3], 0.5) for n in range(2)]
    os.kill(holder.pid, signal.SIGKILL)
    for process in waiters:
        process.join()
    assert [process.exitcode for process in (*processes, *waiters)] == [0] * 5
    assert cluster.made["3"] == 2
    assert [path for path in bucket.find("team") if "/leases/" in path] == []


@pytest.mark.scale
def test_a_bucket_that_there_is_not_is_told_once(machine, bucket):
    first = machine("first", "s3://no-bucket/cache")
    first.make(1)
    first.make(2)
    assert first.made == [1, 2]
    assert len(first.said) == 1
    assert "there is no such file, folder or bucket; going on without it" in first.said[0]


@pytest.mark.scale
@pytest.mark.parametrize("content", [b"", b"gpu-7 0123 5" + bytes(10000)])
def test_a_lease_over_s3_that_no_build_wrote_expires(machine, bucket, content):
    bucket.pipe_file(f"team/cache/v1/leases/{key()}", content)
    first = machine("first", "s3://team/cache", options={"period": 0.5})
    first.make()
    assert first.made == [1]
    assert [message for message in first.said if "without it" in message] == []
    assert first.store.remote.holds(key())
