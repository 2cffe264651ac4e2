"""The command line from outside: exit statuses, streams, messages, and files left on the disk."""

from __future__ import annotations

import gzip
import json
import os
import pty
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import ioctl
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild import __version__, load
from qabuild.artifact.manifest import open_artifact
from qabuild.cli import cli, console, main
from qabuild.errors import INTERRUPTED, QABuildError, VerificationFailed
from qabuild.qa import sample

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 4
"""

HEAVY = {
    *("torch", "transformers", "numpy", "onnxruntime", "datasets", "evaluate", "huggingface_hub", "rich"),
    *("starlette", "uvicorn", "prometheus_client"),
}
ESCAPE = "\x1b"


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def qabuild(capfd: pytest.CaptureFixture[str]) -> Run:
    """`qabuild("plan", "x.toml")`: the command line in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with signal_handlers_restored(), pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return Result(int(stop.value.code or 0), streams.out, streams.err)

    return run


@contextmanager
def signal_handlers_restored() -> Iterator[None]:
    """Restore the signal handlers at the end of the block."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "qabuild", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, **{**pipes, **options})


def ended(running: subprocess.Popen[str]) -> Result:
    out, err = running.communicate(timeout=600)
    return Result(running.returncode, out, err)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.toml, built by a real process, and that build's store. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TARGET)
    result = ended(process("tiny.toml", "-q", cwd=folder, env={**os.environ, "QABUILD_CACHE": str(folder / "store")}))
    (folder / "status.json").write_text(json.dumps([result.status, result.out, result.err]))
    assert result.status == 0, result.err
    return folder


@pytest.fixture
def empty(working_directory: Path) -> Path:
    """The current folder, with tiny.toml in it and nothing built."""
    (working_directory / "tiny.toml").write_text(TARGET)
    return working_directory


@pytest.fixture
def built(empty: Path, finished: Path, isolated_cache: Path) -> Path:
    """The current folder, with tiny.toml built into artifacts/tiny, and a store that holds its results."""
    shutil.copytree(finished / "artifacts", empty / "artifacts")
    shutil.copytree(finished / "store", isolated_cache, dirs_exist_ok=True)
    return empty


def snapshot(*folders: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for folder in folders
        for path in (folder, *folder.rglob("*"))
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def assert_one_error(result: Result, status: int, *expected: str) -> None:
    """The command printed one error message with the expected texts, no traceback, and nothing on stdout."""
    assert result.status == status, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert len(re.findall(r"^(?:error|Error): ", result.err, re.MULTILINE)) == 1, result.err
    message = " ".join(result.err.split())
    for text in expected:
        assert text in message, message


# --- 0 and 1: built, and verified or not ------------------------------------------------------------------------------


def test_a_quiet_build_prints_only_its_result(finished):
    status, out, err = json.loads((finished / "status.json").read_text())
    assert (status, err) == (0, "")
    heading, rule, row = out.splitlines()
    assert " ".join(heading.split()) == "artifact EM F1 F1 retention agreement samples/s speedup result"
    assert set(rule.strip()) == {"─"}
    assert row.split()[0] == "artifacts/tiny"
    assert row.endswith("passed")
    assert names(finished / "artifacts") == {"tiny"}


def test_a_second_build_has_nothing_to_do(built, qabuild):
    result = qabuild("build", "tiny.toml")
    assert (result.status, result.err) == (0, "artifacts/tiny: nothing to do\n")
    assert "artifacts/tiny" in result.out


def test_a_failed_verification_is_status_1_and_leaves_its_evidence(built, qabuild):
    good = snapshot(built / "artifacts" / "tiny")
    result = qabuild("tiny.toml", "--set", "verify.gates.min_speedup=1000")
    assert result.status == 1
    assert "FAILED: min_speedup" in result.out
    assert re.search(
        r"error: artifacts/tiny\.failed: verification failed\n  min_speedup: .*, must be at least 1000", result.err
    )
    assert "artifacts/tiny.failed/verification.json" in result.err
    assert "Traceback" not in result.err
    evidence = json.loads((built / "artifacts" / "tiny.failed" / "verification.json").read_text())
    assert evidence["passed"] is False
    assert snapshot(built / "artifacts" / "tiny") == good


def test_an_error_found_by_the_compiler_is_status_1_and_reported_once(empty, qabuild, monkeypatch):
    def refuse(*_: object) -> None:
        raise VerificationFailed("the exported graph computes something else", "try another level")

    monkeypatch.setattr("qabuild.models.compiler.compile_in_child", refuse)
    assert_one_error(qabuild("tiny.toml", "-q"), 1, "the exported graph computes something else", "try another level")
    assert names(empty / "artifacts") == set()


# --- 2: bad target or usage -------------------------------------------------------------------------------------------

BAD_TARGETS: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "bad.toml: no such target"),
    "not UTF-8": (b"description = 'caf\xe9'", "bad.toml: not UTF-8 at byte 18"),
    "not TOML": (b"checkpoint = [", "bad.toml: not TOML"),
    "empty": (b"", "bad.toml: is empty"),
    "wrong type": (TARGET.encode().replace(b"= 4", b"= 'four'"), "bad.toml:7: verify.samples: given 'four'"),
    "unknown key": (TARGET.encode() + b"sampels = 4", "bad.toml:8: verify.sampels: unknown key; perhaps you meant"),
    "no such backend": (TARGET.encode().replace(b"eager", b"eagle"), "perhaps you meant 'eager'"),
    "impossible": (
        TARGET.encode() + b"[runtime]\ndtype = 'int8'",
        "bad.toml:9: runtime.dtype = 'int8': eager PyTorch quantises nothing",
    ),
}


@pytest.mark.parametrize(("content", "expected"), BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_a_bad_target_is_status_2_before_any_work(empty, qabuild, isolated_cache, content, expected):
    if content is not None:
        (empty / "bad.toml").write_bytes(content)
    before = snapshot(empty, isolated_cache)
    for command in ("build", "plan", "doctor"):
        assert_one_error(qabuild(command, "bad.toml"), 2, expected)
    assert_one_error(qabuild("tiny.toml", "bad.toml"), 2, expected)
    assert snapshot(empty, isolated_cache) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["buidl", "tiny.toml"], "'buidl' is neither a command nor a target (a .toml file); perhaps you meant 'build'"),
        (["tiny"], "perhaps you meant 'tiny.toml'"),
        (["bogus"], "commands are build, verify"),
        (["--bogus"], "No such option '--bogus'"),
        (["build"], "Missing argument 'TARGET...'"),
        (["plan", "tiny.toml", "--compile-only"], "No such option '--compile-only'"),
        (["tiny.toml", "--output", "tiny.toml"], "'tiny.toml' is a file"),
        (["tiny.toml", "--set", "verify.samples"], "--set verify.samples: not of the form key=value"),
        (["tiny.toml", "--set", "verify.sampels=3"], "--set: verify.sampels: unknown key; perhaps you meant 'samples'"),
        (["tiny.toml", "--set", "verify.samples=many"], "--set: verify.samples: given 'many'"),
        (["tiny.toml", "--set", "backend.name=tensorrt"], "--set: backend.name: given 'tensorrt'; accepted: eager"),
        (["tiny.toml", "--set", "checkpoint.model="], "--set: checkpoint: name one of `model` and `target`"),
        (["tiny.toml", "--set", "extends=x.toml"], "write a file for it"),
        (["-q", "verify", "gone"], "gone: no such folder"),
        (["tiny.toml", "sub/tiny.toml"], "two targets are named tiny their artifacts would share a folder"),
        (["."], ". is a folder name a .toml file in it"),
        (["targets", "gone"], "gone: no targets here"),
        (["verify"], "Missing argument 'ARTIFACT...'"),
        (["verify", "gone"], "gone: no such folder name a folder that `qabuild build` wrote"),
        (["verify", "sub"], "sub: not an artifact: it holds no manifest.json"),
        (["verify", "tiny.toml"], "tiny.toml: not an artifact: a folder is wanted, this is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_usage_error_is_status_2(empty, qabuild, isolated_cache, arguments, expected):
    (empty / "sub").mkdir()
    (empty / "sub" / "tiny.toml").write_text(TARGET)
    before = snapshot(empty, isolated_cache)
    assert_one_error(qabuild(*arguments), 2, expected)
    result = qabuild(*arguments, "--json")
    assert (result.status, result.err.count("rror: ")) == (2, 1)
    document = result.document[0] if isinstance(result.document, list) else result.document
    assert document["status"] == 2
    assert document["error"].split()[0] in " ".join(result.err.split())
    assert snapshot(empty, isolated_cache) == before


def test_a_folder_that_is_not_an_artifact_is_not_replaced(built, qabuild):
    (built / "artifacts" / "mine").mkdir()
    shutil.copy("tiny.toml", "mine.toml")
    assert_one_error(qabuild("mine.toml"), 2, "artifacts/mine: is not an artifact", "--output")
    assert names(built / "artifacts") == {"tiny", "mine"}


# --- 3: missing environment -------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qabuild.system.machine.gpus", lambda: ())


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_target_without_a_gpu_is_status_3_before_any_work(empty, qabuild, isolated_cache):
    before = snapshot(empty, isolated_cache)
    result = qabuild("tiny.toml", "--set", "runtime.device=cuda")
    assert_one_error(result, 3, "no CUDA device here", "--compile-only", "qabuild doctor")
    assert snapshot(empty, isolated_cache) == before


def test_a_package_that_is_not_installed_is_status_3_before_any_work(empty, qabuild, isolated_cache, monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name.startswith(("onnx", "optimum")):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    before = snapshot(empty, isolated_cache)
    result = qabuild("tiny.toml", "--set", "backend.name=onnxruntime")
    assert_one_error(result, 3, "onnxruntime and onnx are not installed: pip install 'qabuild[cpu]' or 'qabuild[gpu]'")
    optimum = qabuild("tiny.toml", "--set", "backend.name=onnxruntime", "--set", "backend.exporter=optimum")
    assert_one_error(optimum, 3, "are not installed: pip install 'qabuild[optimum]' or 'qabuild[optimum-gpu]'")
    assert snapshot(empty, isolated_cache) == before


@pytest.mark.usefixtures("no_gpu")
def test_compile_only_builds_for_another_machine_and_marks_the_artifact_unverified(empty, qabuild):
    result = qabuild("tiny.toml", "--set", "runtime.device=cuda", "--compile-only")
    assert result.status == 0
    assert result.out.splitlines()[-1].split() == ["artifacts/tiny", *"------", "compiled,", "unverified"]
    assert open_artifact(Path("artifacts/tiny")).evidence is None
    (document,) = qabuild("tiny.toml", "--set", "runtime.device=cuda", "--compile-only", "--json").document
    assert (document["cached"], document["verification"], document["status"]) == (True, None, 0)
    assert_one_error(qabuild("verify", "artifacts/tiny"), 3, "no CUDA device here")


# --- 4: untrusted input -----------------------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_in_an_artifact_is_status_4(built, qabuild):
    flip_a_byte(Path("artifacts/tiny/model.safetensors"))
    before = snapshot(built / "artifacts")
    result = qabuild("verify", "artifacts/tiny")
    assert_one_error(
        result, 4, "artifacts/tiny: not as it was sealed", "model.safetensors: its SHA-256 is", "build or fetch"
    )
    assert snapshot(built / "artifacts") == before


def truncate(weights: Path) -> None:
    content = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(content[: len(content) // 2])


def remove_head(weights: Path) -> None:
    content = (weights / "model.safetensors").read_bytes()
    (weights / "model.safetensors").write_bytes(content.replace(b'"qa_outputs.', b'"lm_outputs.'))


@pytest.mark.parametrize(
    ("damage", "expected"), [(truncate, "model.safetensors: is cut off"), (remove_head, "no question-answering head")]
)
def test_a_checkpoint_that_is_damaged_or_has_no_qa_head_is_status_4_and_leaves_nothing(
    empty, qabuild, damage, expected
):
    shutil.copytree(sample.CHECKPOINT, empty / "weights")
    damage(empty / "weights")
    assert_one_error(qabuild("tiny.toml", "--set", "checkpoint.model=./weights"), 4, expected)
    assert names(empty / "artifacts") == set()


def test_invalid_or_damaged_questions_are_status_4_and_leave_nothing(built, qabuild):
    document = json.loads(sample.HELDOUT.read_text())
    document["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    (built / "shifted.json").write_text(json.dumps(document))
    (built / "torn.json.gz").write_bytes(gzip.compress(sample.HELDOUT.read_bytes())[:-9])
    for file, expected in (("shifted.json", "answer_start"), ("torn.json.gz", "torn.json.gz: damaged gzip file")):
        result = qabuild("tiny.toml", "-q", "--set", f"verify.dataset=./{file}", "--output", "elsewhere")
        assert_one_error(result, 4, file, expected)
        assert names(built / "elsewhere") == set()


# --- 5: anything else -------------------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_written_is_status_5(empty, qabuild, monkeypatch):
    (empty / "file").write_text("")
    monkeypatch.setenv("QABUILD_CACHE", str(empty / "file" / "store"))
    expected = f"the store {empty}/file/store: Not a directory"
    assert_one_error(qabuild("tiny.toml"), 5, expected, "point QABUILD_CACHE at another folder")
    assert names(empty) == {"tiny.toml", "file"}


def test_an_output_that_cannot_be_written_is_status_5(built, qabuild):
    result = qabuild("tiny.toml", "--output", "tiny.toml/x", "-q")
    assert_one_error(result, 5, "the output folder tiny.toml/x: Not a directory", "name another with --output")


def test_offline_names_what_is_not_in_the_cache(empty, qabuild):
    for key, subject in (
        ("checkpoint.model", "the checkpoint"),
        ("verify.dataset", "verify.dataset: the data set"),
    ):
        result = qabuild("tiny.toml", "--offline", "--set", f"{key}=me/nowhere")
        message = f"{subject} 'me/nowhere' (main) is not in the cache, and this run is offline"
        assert_one_error(result, 5, message, "run once with a network")
    assert names(empty / "artifacts") == set()


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(empty, qabuild, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("qabuild.target.lock.load", fail)
    result = qabuild("plan", "tiny.toml", "--json")
    assert result.status == 5
    assert "Traceback" in result.err
    assert "this is a bug in qabuild; please report it" in result.err
    assert result.document == {"error": "ZeroDivisionError: of all things", "hint": None, "status": 5}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(13, "Permission denied", "/etc/shadow"), "/etc/shadow: Permission denied give this user"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer -v shows where"),
        (MemoryError(), "out of memory"),
    ],
)
def test_an_operating_system_error_is_one_message(empty, qabuild, monkeypatch, error, expected):
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("qabuild.target.lock.load", refuse)
    assert_one_error(qabuild("plan", "tiny.toml"), 5, expected)
    assert "Traceback" in qabuild("plan", "tiny.toml", "-v").err


# --- a place that is not writable, and a full disk --------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["answer", "artifacts/tiny", "questions.jsonl", "-o", "/proc/answers.jsonl"],
        ["build", "tiny.toml", "--output", "/proc/artifacts"],
        ["data", "check", "questions.jsonl", "--fix", "/proc/mended.json"],
        ["export", "artifacts/tiny", "--layout", "docker", "-o", "/proc/image"],
        ["fetch", "me/model", "--output", "/proc/fetched"],
        ["init", "sample", "-o", "/proc/sample.toml"],
        ["keygen", "/proc/release.key"],
        ["report", "artifacts/tiny", "-o", "/proc/report.html"],
        ["report", "artifacts/tiny", "--png", "/proc/report.png"],
        ["sbom", "artifacts/tiny", "-o", "/proc/bill.json"],
        ["targets", "/proc", "--copy", "quickstart"],
        ["tune", "sample", "-o", "/proc/tuned"],
    ],
    ids=" ".join,
)
def test_an_output_that_is_not_writable_is_status_5_at_once(built, qabuild, command):
    row = {"id": "1", "question": "Who came?", "context": "Ann came."}
    (built / "questions.jsonl").write_text(json.dumps(row) + "\n")
    assert_one_error(qabuild(*command), 5, "/proc", "make it writable, or name another")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond this many bytes, in this process and its children: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def results(cache: Path) -> set[str]:
    return {json.loads(path.read_text())["step"] for path in cache.glob("v1/results/*/entry.json")}


def drop(cache: Path, *steps: str) -> None:
    for entry in cache.glob("v1/results/*/entry.json"):
        if json.loads(entry.read_text())["step"] in steps:
            shutil.rmtree(entry.parent)


@pytest.mark.parametrize(("step", "size"), [("compile", 500_000), ("reference", 30_000)])
def test_a_full_disk_while_a_step_runs_is_status_5_and_leaves_nothing(built, qabuild, isolated_cache, step, size):
    drop(isolated_cache, step)
    shutil.rmtree(built / "artifacts")
    with files_up_to(size):
        result = qabuild("tiny.toml", "-q")
    assert_one_error(result, 5, f"the store {isolated_cache}: File too large", "make room")
    assert names(built / "artifacts") == set()
    assert names(isolated_cache / "v1" / "staging") == set()
    assert step not in results(isolated_cache)
    if step == "reference":  # recompiling takes seconds; the test of a killed build covers it
        assert qabuild("tiny.toml", "-q").status == 0, "with enough space, the next build completes"


def test_a_full_disk_while_the_artifact_is_assembled_leaves_the_earlier_one(built, qabuild, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)  # as when the store is on another disk
    before = snapshot(built / "artifacts" / "tiny")
    changed = ("tiny.toml", "-q", "--set", "verify.gates.min_f1_retention=0.5")
    with files_up_to(500_000):
        result = qabuild(*changed)
    assert_one_error(result, 5, "the output folder artifacts: File too large", "name another with --output")
    assert names(built / "artifacts") == {"tiny"}
    assert snapshot(built / "artifacts" / "tiny") == before
    assert qabuild(*changed).status == 0


def test_a_full_disk_while_locking_is_status_5_and_leaves_the_earlier_lock(built, qabuild):
    assert qabuild("lock", "tiny.toml", "-q").status == 0
    Path("tiny.lock").write_text(before := Path("tiny.lock").read_text() + "# old\n")
    with files_up_to(300):  # the captured output goes to a file, too
        result = qabuild("lock", "tiny.toml")
    assert_one_error(result, 5, "the lock's folder", "File too large", "make room")
    assert Path("tiny.lock").read_text() == before


def test_an_unusable_home_is_reported_with_the_variable_to_set(built, tmp_path):
    (tmp_path / "home").write_text("no folder")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("QABUILD_", "HF_", "XDG_"))}
    homeless = {**environment, "HOME": str(tmp_path / "home")}
    result = ended(process("tiny.toml", cwd=built, env=homeless))
    assert result.status == 5
    assert f"the store {tmp_path}/home/.cache/qabuild: Not a directory" in result.err
    assert "QABUILD_CACHE" in result.err
    result = ended(process("verify", "artifacts/tiny", cwd=built, env=homeless))
    assert (result.status, "passed" in result.out) == (0, True), "a command that caches nothing needs no home"


def test_a_result_that_cannot_be_written_is_status_5(empty):
    with open("/dev/full", "w") as full:
        result = ended(process("targets", cwd=empty, stdout=full))
    assert (result.status, result.err.splitlines()[0]) == (
        5,
        "error: the result cannot be written: No space left on device",
    )
    assert "Exception ignored" not in result.err


def test_a_closed_pipe_is_no_failure(empty):
    reading, writing = os.pipe()
    os.close(reading)
    for options in ([], ["--json"]):
        result = ended(process("targets", *options, cwd=empty, stdout=writing))
        assert (result.status, result.err) == (0, "")
    os.close(writing)


def test_a_command_with_closed_stdout_succeeds(empty):
    result = ended(process("targets", cwd=empty, stdout=None, preexec_fn=lambda: os.close(1)))
    assert (result.status, result.err) == (0, "")


# --- 130 and 143: interrupted -----------------------------------------------------------------------------------------

GOES_ON = "interrupted; the same command goes on from there"


def family(mark: Path) -> dict[int, str]:
    """Ids and command lines of the processes whose environment names `mark`."""
    processes = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(mark) in (folder / "environ").read_bytes():
                processes[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended
    return processes


def compilers(mark: Path) -> list[int]:
    return [number for number, command in family(mark).items() if "qabuild.models.compiler" in command]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@pytest.fixture
def running(empty: Path, isolated_cache: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`running("tiny.toml", until="compile")`: a build that has reached that step."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, until: str) -> subprocess.Popen[str]:
        build = process(*arguments)
        started.append(build)
        for line in build.stderr or ():
            if line.startswith(until):
                break
        if until == "compile":
            wait_until(lambda: compilers(isolated_cache) != [])
        return build

    yield start
    for build in started:
        build.kill()
        build.communicate()
    for number in family(isolated_cache):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def assert_nothing_left(folder: Path, cache: Path) -> None:
    wait_until(lambda: not family(cache))
    assert names(folder / "artifacts") == set()
    assert names(cache / "v1" / "staging") == set()


def test_an_interrupted_compilation_ends_with_all_its_processes_and_leaves_nothing(
    empty, isolated_cache, running, qabuild
):
    build = running("tiny.toml", until="compile")
    refused = qabuild("tiny.toml")
    assert_one_error(refused, 5, "another build of artifacts/tiny is running", "wait for it")
    build.send_signal(signal.SIGINT)
    result = ended(build)
    assert (result.status, result.out, result.err.strip()) == (INTERRUPTED, "", GOES_ON)
    assert_nothing_left(empty, isolated_cache)


def test_a_terminated_compilation_ends_with_all_its_processes_and_leaves_nothing(empty, isolated_cache, running):
    build = running("tiny.toml", "--json", until="compile")
    build.send_signal(signal.SIGTERM)
    result = ended(build)
    status = 128 + signal.SIGTERM
    assert result.status == status
    hint = "the same command goes on from there"
    assert json.loads(result.out) == {"error": "interrupted", "hint": hint, "status": status}
    assert "Traceback" not in result.err
    assert_nothing_left(empty, isolated_cache)


def test_an_interruption_after_compiling_keeps_the_compiled_result(empty, finished, isolated_cache, running):
    shutil.copytree(finished / "store", isolated_cache, dirs_exist_ok=True)
    drop(isolated_cache, "reference", "verify")
    build = running("tiny.toml", until="reference")
    time.sleep(1)  # into the imports, or beyond
    build.send_signal(signal.SIGINT)
    result = ended(build)
    # Python dies of the signal if it hit an extension's import; a shell reports 130 for both.
    assert result.status in (INTERRUPTED, -signal.SIGINT)
    assert result.err.strip() == GOES_ON
    assert_nothing_left(empty, isolated_cache)
    assert results(isolated_cache) == {"compile"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_a_library_hides_is_still_an_interruption(empty, qabuild, monkeypatch, number):
    def fail(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ImportError("numpy could not be imported") from None

    monkeypatch.setattr("qabuild.target.lock.load", fail)
    result = qabuild("plan", "tiny.toml")
    assert (result.status, result.err.strip()) == (128 + number, "interrupted")
    assert qabuild("--version").status == 0
    result = qabuild("plan", "tiny.toml", "--json")
    assert (result.status, result.err.strip()) == (128 + number, "interrupted")
    assert json.loads(result.out) == {"error": "interrupted", "hint": None, "status": 128 + number}

    def refuse(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise QABuildError("something is not installed") from None

    monkeypatch.setattr("qabuild.evaluation.verify.verify", refuse)
    result = qabuild("verify", "one", "two")
    assert (result.status, result.out, result.err.strip()) == (128 + number, "", "interrupted")


def test_a_command_started_with_sigint_ignored_ignores_it(empty):
    script = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import qabuild.target.lock\nread = qabuild.target.lock.load\n"
        "qabuild.target.lock.load = lambda *a, **k: (print(signal.raise_signal(signal.SIGINT)), read(*a, **k))[1]\n"
        "from qabuild.cli import main\nmain(['plan', 'tiny.toml'])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("None\n"), "the signal was raised"


def test_a_killed_build_ends_its_compiler_and_the_next_build_cleans_up(built, isolated_cache, running, qabuild):
    drop(isolated_cache, "compile")
    shutil.rmtree(built / "artifacts")
    build = running("tiny.toml", until="compile")
    (compiler,) = compilers(isolated_cache)
    wait_until(lambda: "libtorch" in Path(f"/proc/{compiler}/maps").read_text())
    os.kill(compiler, signal.SIGSTOP)  # else it would soon finish; stopped, it ends only if it is killed, too
    build.kill()
    build.wait()
    wait_until(lambda: not family(isolated_cache))
    assert names(built / "artifacts") == {".tiny.partial"}
    assert names(isolated_cache / "v1" / "staging") != set()
    assert qabuild("tiny.toml", "-q").status == 0
    assert names(built / "artifacts") == {"tiny"}
    assert names(isolated_cache / "v1" / "staging") == set()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], *([name] for name in cli.commands)], ids=lambda c: "".join(c) or "qabuild")
def test_every_command_has_help(qabuild, command, option):
    result = qabuild(*command, option)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"Usage: {' '.join(['qabuild', *command])} ")
    if not command:
        for status in (0, 1, 2, 3, 4, 5, INTERRUPTED):
            assert re.search(rf"^ +{status}  +\w", result.out, re.MULTILINE)


def test_version_is_printed(qabuild):
    result = qabuild("--version")
    assert (result.status, result.out) == (0, f"qabuild, version {__version__}\n")


def test_qabuild_without_arguments_shows_its_help_and_is_status_2(qabuild):
    result = qabuild()
    assert result.status == 2
    assert "Commands:" in result.err


@pytest.mark.parametrize("option", ["-v", "--verbose", "-qv"])
def test_verbose_shows_where_an_error_came_from(empty, qabuild, option):
    result = qabuild("plan", "gone.toml", option)
    assert result.status == 2
    assert "Traceback" in result.err
    assert "error: gone.toml: no such target" in result.err


def test_output_and_set_are_applied(built, qabuild):
    result = qabuild(
        "tiny.toml", "--output", "a/b", "--set", "publish.repo=me/there", "--set", "verify.gates.min_speedup=0.01"
    )
    assert result.status == 0
    manifest = open_artifact(Path("a/b/tiny")).manifest
    assert manifest.publish["repo"] == "me/there"
    assert manifest.verify["gates"]["min_speedup"] == 0.01


def test_a_failed_target_does_not_stop_the_others(built, qabuild):
    for name in ("first", "last"):
        shutil.copy("tiny.toml", f"{name}.toml")
    Path("fails.toml").write_text(TARGET + "[verify.gates]\nmin_speedup = 1000\n")
    Path("breaks.toml").write_text(TARGET.replace('"sample"', '"./gone"', 1))
    result = qabuild("first.toml", "breaks.toml", "fails.toml", "last.toml")
    assert result.status == 2, "the status of the first failure"
    rows = {line.split()[0]: line for line in result.out.splitlines()[2:]}
    assert list(rows) == ["artifacts/first", "breaks", "artifacts/fails.failed", "artifacts/last"]
    assert rows["artifacts/first"].endswith("passed")
    assert rows["breaks"].endswith("gone: no such file or folder")
    assert rows["artifacts/fails.failed"].endswith("FAILED: min_speedup")
    assert rows["artifacts/last"].endswith("passed")
    assert "== breaks\nerror: " in result.err
    assert "error: artifacts/fails.failed: verification failed" in result.err
    assert names(built / "artifacts") == {"tiny", "first", "fails.failed", "last"}

    quiet = qabuild("-q", "first.toml", "fails.toml", "breaks.toml", "--json")
    assert quiet.status == 1
    assert [document["status"] for document in quiet.document] == [0, 1, 2]
    assert re.findall(r"^\S+", quiet.err, re.MULTILINE) == ["error:", "error:"], "errors are printed even with --quiet"


def test_build_and_verify_print_one_json_document(built, qabuild):
    (document,) = qabuild("tiny.toml", "--json").document
    assert (document["target"], document["artifact"], document["status"]) == ("tiny", "artifacts/tiny", 0)
    assert document["manifest"] == open_artifact(Path("artifacts/tiny")).digest
    assert [step["name"] for step in document["plan"]] == ["checkpoint", "compile", "reference", "verify"]
    assert document["verification"]["passed"] is True

    failed = qabuild("tiny.toml", "--json", "--set", "verify.gates.min_speedup=1000")
    (document,) = failed.document
    assert (failed.status, document["status"], document["verification"]["passed"]) == (1, 1, False)
    assert document["error"].startswith("artifacts/tiny.failed: verification failed")

    failed = qabuild("verify", "artifacts/tiny", "artifacts/gone", "--digest", "0" * 64, "--json")
    assert [(document["artifact"], document["status"]) for document in failed.document] == [
        ("artifacts/tiny", 4),
        ("artifacts/gone", 2),
    ]
    assert failed.status == 4


def test_the_other_commands_print_one_json_document(empty, qabuild):
    (plan,) = qabuild("plan", "tiny.toml", "--json").document
    assert plan["target"] == "tiny"
    assert [step["reason"] for step in plan["steps"]] == ["its bytes are here", *["not built before"] * 3]
    (empty / "bad.toml").write_text("x = 1\n")
    bad, tiny = qabuild("targets", "--json").document
    assert "x: unknown key" in bad["error"]
    assert (tiny["target"], tiny["verify"]["samples"]) == ("tiny.toml", 4)
    assert qabuild("schema", "--json").document == qabuild("schema").document


def test_targets_are_listed_with_their_mistakes(empty, qabuild):
    (empty / "bad.toml").write_text("x = 1\n")
    result = qabuild("targets")
    assert result.status == 0
    _, _, bad, tiny = result.out.splitlines()
    assert re.search(r"bad\.toml +- +- +- +error: 3 mistakes +bad\.toml: checkpoint: is missing", bad)
    assert tiny.split() == ["tiny.toml", "sample", "eager", "cpu", "fp32"]


def test_characters_that_the_encoding_lacks_are_escaped(empty):
    (empty / "tiny.toml").write_text('description = "café → naïve"\n' + TARGET, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    table = ended(process("targets", cwd=empty, env=environment))
    assert table.status == 0
    assert r"caf\xe9 \u2192 na\xefve" in table.out
    (document,) = ended(process("targets", "--json", cwd=empty, env=environment)).document
    assert document["description"] == "café → naïve"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_scripts_are_printed(shell):
    environment = {**os.environ, "_QABUILD_COMPLETE": f"{shell}_source"}
    result = ended(process(env=environment))
    assert result.status == 0
    assert "_QABUILD_COMPLETE" in result.out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("qabuild ver", ["plain,verify"]),
        ("qabuild tiny", ["file,tiny"]),
        ("qabuild build --comp", ["plain,--compile-only"]),
        ("qabuild tiny.toml --comp", ["plain,--compile-only"]),
        ("qabuild nonsense --comp", ["plain,--compile-only"]),
        ("qabuild --vers", ["plain,--version"]),
    ],
)
def test_commands_options_and_files_are_completed(empty, qabuild, monkeypatch, typed, expected):
    monkeypatch.setenv("_QABUILD_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    result = qabuild()
    assert (result.status, result.out.splitlines(), result.err) == (0, expected, "")


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_a_plan_shows_cached_and_pending_steps_with_reasons_and_writes_nothing(built, qabuild, isolated_cache):
    home = built / "home"
    home.mkdir()
    environment = {
        **os.environ,
        **{name: str(home) for name in ("HOME", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME")},
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = snapshot(built, isolated_cache)
    result = ended(process("plan", "tiny.toml", "--set", "runtime.dtype=bf16", env=environment))
    assert (result.status, result.err) == (0, "")
    steps = {line.split()[1]: line.split(maxsplit=2)[2] for line in result.out.splitlines()[2:]}
    assert steps["compile"].startswith("to do    not built before")
    assert steps["reference"].startswith("cached   another build made it")
    assert steps["verify"].startswith("to do    not built before")
    result = ended(process("plan", "tiny.toml", "--set", "verify.dataset=me/questions", env=environment))
    steps = {line.split()[1]: line.split(maxsplit=2)[2] for line in result.out.splitlines()[2:]}
    assert steps["compile"].startswith("cached ")
    assert steps["reference"].startswith("unknown   unknown until its Hub id is resolved")
    assert snapshot(built, isolated_cache) == before


def test_a_plan_names_what_changed_since_the_last_build(built, qabuild):
    assert qabuild("tiny.toml", "-q", "--set", "verify.gates.min_speedup=0.01").status == 0
    (plan,) = qabuild("plan", "tiny.toml", "--set", "verify.samples=3", "--json").document
    reasons = {step["name"]: (step["cached"], step["reason"]) for step in plan["steps"]}
    assert reasons == {
        "checkpoint": (True, "its bytes are here"),
        "compile": (True, "nothing changed"),
        "reference": (False, "verify.samples: 4 became 3"),
        "verify": (False, "follows reference"),
    }
    assert all(step["seconds"] > 0 for step in plan["steps"][1:])


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_names_what_is_missing_on_this_machine(built, qabuild):
    result = qabuild("plan", "tiny.toml", "--set", "runtime.device=cuda")
    assert (result.status, result.err) == (0, "")
    assert "\ntiny: no CUDA device here" in result.out


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def moved_artifact(built: Path, qabuild: Run) -> Path:
    """A moved artifact whose checkpoint and questions, a folder and a file, were moved, too."""
    shutil.copytree(sample.CHECKPOINT, built / "weights")
    shutil.copy(sample.HELDOUT, built / "dev.json")
    Path("local.toml").write_text(TARGET.replace('"sample"', '"./weights"', 1).replace('"sample"', '"./dev.json"'))
    result = qabuild("local.toml", "-q")
    assert result.status == 0, result.err
    os.rename("weights", "moved-weights")
    os.rename("dev.json", "moved-dev.json")
    os.rename("artifacts/local", "elsewhere")
    return built


def test_a_moved_artifact_is_verified_without_its_checkpoint(moved_artifact, qabuild):
    without_data = qabuild("verify", "elsewhere")
    assert_one_error(without_data, 2, "its questions come from a file, dev.json", "--data")

    evidence = Path("elsewhere/verification.json").read_bytes()
    result = qabuild("verify", "elsewhere", "--data", "./moved-dev.json")
    assert result.status == 0
    assert re.fullmatch(r"cross-check: .* gave (\d+) of \1 answers alike\n", result.err)
    assert result.out.splitlines()[-1].split()[-2:] == ["-", "passed"], "no speedup without the checkpoint"
    assert Path("elsewhere/verification.json").read_bytes() != evidence

    digest = open_artifact(Path("elsewhere")).digest
    pinned = ("verify", "elsewhere", "--data", "./moved-dev.json", "--digest", digest.upper())
    result = qabuild(*pinned, "--checkpoint", "./moved-weights", "--json")
    assert result.status == 0
    assert result.document[0]["verification"]["measurement"]["speed"]["speedup"] > 0


def test_another_digest_checkpoint_or_data_set_is_status_4(moved_artifact, qabuild):
    evidence = Path("elsewhere/verification.json").read_bytes()
    verify = ("verify", "elsewhere", "--data")
    assert_one_error(qabuild(*verify, "./moved-dev.json", "--digest", "0" * 64), 4, "its digest is", "not 0000")
    flip_a_byte(Path("moved-weights/model.safetensors"))
    result = qabuild(*verify, "./moved-dev.json", "--checkpoint", "./moved-weights")
    assert_one_error(result, 4, "not the checkpoint that the artifact was built from")
    document = json.loads(sample.HELDOUT.read_text())
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["context"] += " "
    Path("other.json").write_text(json.dumps(document))
    assert_one_error(
        qabuild(*verify, "./other.json"), 4, "these are not the questions that the artifact was built with"
    )
    assert Path("elsewhere/verification.json").read_bytes() == evidence


# --- terminals --------------------------------------------------------------------------------------------------------


@contextmanager
def terminals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mapping[str, bytearray]]:
    """Make stdout and stderr of this process two terminals, and collect their output."""
    shown = {"stdout": bytearray(), "stderr": bytearray()}
    threads, streams = [], []
    for name, collected in shown.items():
        controller, terminal = pty.openpty()
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        stream = open(terminal, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed below
        monkeypatch.setattr(sys, name, stream)
        streams.append(stream)
        threads.append(threading.Thread(target=_collect, args=(controller, collected)))
        threads[-1].start()
    try:
        yield shown
    finally:
        monkeypatch.undo()
        for stream in streams:
            stream.close()
        for thread in threads:
            thread.join()


def _collect(controller: int, collected: bytearray) -> None:
    try:
        while chunk := os.read(controller, 4096):
            collected.extend(chunk)
    except OSError:
        pass  # the terminal was closed
    os.close(controller)


def shown_on_terminals(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]
) -> tuple[str, str]:
    with monkeypatch.context() as patch, terminals(patch) as shown, signal_handlers_restored():
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as stop:
            main(["verify", str(artifact)])
        assert not stop.value.code
    return shown["stdout"].decode(), shown["stderr"].decode()


def test_on_a_terminal_progress_is_shown_on_stderr_and_the_result_on_stdout(built, monkeypatch):
    out, err = shown_on_terminals(built / "artifacts" / "tiny", monkeypatch, {})
    assert "artifact answers" in err
    assert "4/4" in err
    assert "passed" not in err
    assert "passed" in out
    assert "artifact answers" not in out


def report_progress(monkeypatch: pytest.MonkeyPatch, total: int, steps: list[tuple[float, int]], **how: bool) -> None:
    """Report progress without a terminal, by `steps`: the second at which so many further items are done."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.Console(**how).progress("batch 8", total) as advance:
        for at, count in steps:
            now = at
            advance(count)


@given(total=st.integers(0, 500), pauses=st.lists(st.floats(0.01, 30), max_size=40))
def test_without_a_terminal_there_is_at_most_a_line_in_ten_seconds(total, pauses):
    with pytest.MonkeyPatch.context() as patch:
        messages: list[tuple[float, str]] = []
        now = 0.0
        patch.setattr(console, "print_message", lambda text: messages.append((now, text)))
        patch.setattr(console.time, "monotonic", lambda: now)
        with console.Console().progress("batch 8", total) as advance:
            for pause in pauses:
                now += pause
                advance(1)
    times = [at for at, _ in messages]
    assert all(after - before >= 10 for before, after in pairwise([0.0, *times]))
    assert now < 10 + (times[-1] if times else 0) + max(pauses, default=0), "and none is missing"


def test_a_line_of_progress_tells_how_far_and_how_fast(monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(console, "print_message", messages.append)
    steps = [(1.0, 100), (11.0, 20), (21.0, 20), (31.0, 20)]  # 100 of them by an earlier run
    report_progress(monkeypatch, 160, steps)
    assert messages == [
        "  batch 8: 120 of 160, 2.0/s, about 20 s left",
        "  batch 8: 140 of 160, 2.0/s, about 10 s left",
        "  batch 8: 160 of 160, 2.0/s",
    ]
    messages.clear()
    report_progress(monkeypatch, 0, [(11.0, 5), (22.0, 11)])
    assert messages == ["  batch 8: 5", "  batch 8: 16, 1.0/s"]
    messages.clear()
    report_progress(monkeypatch, 3, [(11.0, 1), (53.0, 1), (95.0, 1)])
    assert messages == [
        "  batch 8: 1 of 3",
        "  batch 8: 2 of 3, 42 s each, about 42 s left",
        "  batch 8: 3 of 3, 42 s each",
    ]
    messages.clear()
    report_progress(monkeypatch, 160, steps, quiet=True)
    assert messages == []


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_no_escape_sequences_with_no_color_or_a_dumb_terminal(built, monkeypatch, environment):
    out, err = shown_on_terminals(built / "artifacts" / "tiny", monkeypatch, environment)
    assert ESCAPE not in out + err
    assert "passed" in out


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}], ids=str)
def test_no_escape_sequences_into_pipes_and_files(built, qabuild, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = qabuild("tiny.toml", "--set", "verify.gates.min_speedup=1000")
    assert (result.status, ESCAPE in result.out + result.err) == (1, False)


def test_a_table_prints_markup_verbatim_and_columns_of_any_width(capsys):
    console.table(["name", "figure"], [["[bold]:smile:[/bold]", "1.5"], ["x" * 500, "-"]])
    heading, _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["[bold]:smile:[/bold]", "1.5"]
    assert second.split() == ["x" * 500, "-"]
    assert heading.index("figure") + len("figure") == len(first)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (80, ["name       a remark                  figure", "a name     words that go on and on       1"]),
        (50, ["name       a remark                  figure", "a name     words that go on and on       1"]),
        (
            40,
            [
                "name      a name",
                "a remark  words that go on and on",
                "figure    1",
                "name      another",
                "figure    2.5",
            ],
        ),
    ],
)
def test_a_table_too_wide_for_the_terminal_becomes_records(capsys, monkeypatch, width, lines):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    console.table(["name", "a remark", "figure"], [["a name", "words that go on and on", "1"], ["another", "", "2.5"]])
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert [" ".join(line.split()) for line in shown][: len(lines)] == [" ".join(line.split()) for line in lines]
    assert all(len(line) <= width for line in shown)


def test_a_result_that_cannot_be_written_is_an_error(monkeypatch, tmp_path):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(QABuildError, match="No space left"):
            console.emit("x")


# --- imports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import qabuild",
        "main(['--help'])",
        "main(['--version'])",
        "main(['buidl', 'x'])",
        "main(['bad.toml'])",
        "main(['plan', 'gone.toml'])",
        "main(['verify', 'gone'])",
    ],
)
def test_commands_that_compute_nothing_import_nothing_heavy(empty, code):
    (empty / "bad.toml").write_text("x = 1\n")
    script = (
        "import atexit, sys\n"
        f"heavy = {HEAVY!r}\n"
        "atexit.register(lambda: print('imported', sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        f"{'from qabuild.cli import main' if 'main' in code else ''}\n{code}\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "imported []"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_do_not_even_import_pydantic(argument):
    """It takes longer than all the rest of them."""
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('pydantic' in sys.modules, file=sys.stderr))\n"
        f"from qabuild.cli import main\nmain([{argument!r}])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == "False"


def test_a_cached_build_and_its_plan_import_no_runtime(built):
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr))\n"
        "from qabuild.cli import main\nmain(sys.argv[1:])\n"
    )
    for arguments in (["tiny.toml"], ["plan", "tiny.toml"]):
        command = [sys.executable, "-c", script, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stderr.splitlines()[-1] == "[]"


# --- lock -----------------------------------------------------------------------------------------------------------


def test_a_locked_target_builds_only_what_is_pinned(built, qabuild):
    assert qabuild("plan", "tiny.toml", "--locked").status == 2
    result = qabuild("lock", "tiny.toml")
    assert result.status == 0
    assert re.search(r"^ ?tiny\.lock +sample [0-9a-f]{12} +sample [0-9a-f]{12} +written$", result.out, re.MULTILINE)
    assert qabuild("lock", "tiny.toml", "--json").document[0]["changed"] is False
    assert qabuild("tiny.toml", "--locked").err == "artifacts/tiny: nothing to do\n", "a lock changes no file"
    assert_one_error(
        qabuild("tiny.toml", "--locked", "--set", "verify.split=train"),
        2,
        "split validation became train",
        "qabuild lock",
    )
    pinned = Path("tiny.lock").read_text()
    Path("tiny.lock").write_text(re.sub('digest = "....', 'digest = "0000', pinned))
    assert_one_error(qabuild("tiny.toml"), 4, "pinned is 0000")
    Path("tiny.lock").write_text(re.sub('fingerprint = "....', 'fingerprint = "0000', pinned))
    assert_one_error(qabuild("tiny.toml", "--set", "verify.samples=3"), 4, "pinned is 0000")


# --- cache ----------------------------------------------------------------------------------------------------------


def test_the_cache_is_listed_pruned_and_verified(built, qabuild, isolated_cache):
    cached = qabuild("cache", "list", "--json").document
    assert {entry["step"] for entry in cached} == {"compile", "reference", "verify"}
    result = qabuild("cache", "list")
    assert (result.status, result.err) == (0, f"{isolated_cache}\n")
    assert "3 results" in result.out
    assert qabuild("cache", "verify").out == "3 results intact, 0 damaged\n"

    (compiled,) = (entry["key"] for entry in cached if entry["step"] == "compile")
    weights = isolated_cache / "v1" / "results" / compiled / "files" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    result = qabuild("cache", "verify", "--json")
    assert (result.status, result.document["intact"]) == (4, 2)
    assert [entry["key"] for entry in result.document["damaged"]] == [compiled]

    assert len(qabuild("cache", "prune", "--max-size", "0MB", "--dry-run", "--json").document) == 2
    assert len(qabuild("cache", "prune", "--older-than", "1d", "--json").document) == 0
    assert len(qabuild("cache", "prune", "--max-size", "0MB", "--json").document) == 2
    assert qabuild("cache", "list", "--json").document == []
    assert qabuild("verify", "artifacts/tiny").status == 0, "artifacts are not touched"


@pytest.mark.parametrize("option", [("--older-than", "30"), ("--older-than", "-1d"), ("--max-size", "big")])
def test_an_age_or_size_without_a_valid_unit_is_refused(qabuild, option):
    assert "is not a number with one of the units" in qabuild("cache", "prune", *option).err


# --- answer ---------------------------------------------------------------------------------------------------------


def test_answer_gives_the_answers_of_the_python_pipeline(built, qabuild):
    rows = [
        {"id": "a", "question": "Who repaired the bridge?", "context": "The old bridge was repaired by Alma Serin."},
        {"id": "b", "question": "What is it?", "context": ""},
        {"id": "c", "question": "Where is it?", "context": "The mill stands in Orvel."},
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = qabuild("answer", "artifacts/tiny", "q.jsonl", "-o", "a.jsonl")
    assert result.status == 4
    assert "q.jsonl: line 2.context is blank" in result.err
    answers = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["a", "b", "c"]
    pipeline = load("artifacts/tiny")
    for row, answer in zip(rows, answers, strict=True):
        if row["context"]:
            assert answer["answer"] == pipeline(question=row["question"], context=row["context"])["answer"]


CONTEXT = "The old bridge of Orvel was repaired by Alma Serin. The mill stands in Arvik, where 4,200 people live. " * 3
OPTIONS: dict[tuple[str, ...], dict[str, Any]] = {
    ("--max-question-len", "3"): {"max_question_len": 3},
    ("--max-seq-len", "60", "--doc-stride", "9"): {"max_seq_len": 60, "doc_stride": 9},
    ("--max-answer-len", "1"): {"max_answer_len": 1},
    ("--no-align-to-words",): {"align_to_words": False},
    ("--no-answer",): {"handle_impossible_answer": True},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_of_answer_override_how_it_was_verified(built, qabuild, options):
    rows = [{"question": "Who built the lighthouse?", "context": CONTEXT}]
    Path("q.jsonl").write_text(json.dumps({"id": 1, **rows[0]}))
    result = qabuild("answer", "artifacts/tiny", "q.jsonl", "-o", "a.jsonl", "--top-k", "9", *options)
    assert result.status == 0, result.err
    ours = load("artifacts/tiny")(**rows[0], top_k=9, **OPTIONS[options])
    answers = json.loads(Path("a.jsonl").read_text())["answers"]
    assert answers == [{**answer, "score": pytest.approx(answer["score"])} for answer in ours]
    assert ("with a truncated question" in result.err) == ("max_question_len" in OPTIONS[options])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--max-seq-len", "9999"), "`max_seq_len` (9999) is more than the model reads"),
        (("--doc-stride", "384"), "`doc_stride` (384) leaves no tokens for text"),
        (("--max-seq-len", "10", "--doc-stride", "11"), "`doc_stride` (11) is larger than `max_seq_len` (10)"),
    ],
)
def test_windows_that_cannot_be_cut_are_status_2(built, qabuild, options, expected):
    Path("q.jsonl").write_text('{"question": "Who?", "context": "Mira"}')
    assert_one_error(qabuild("answer", "artifacts/tiny", "q.jsonl", "-o", "a.jsonl", *options), 2, expected)
    assert not Path("a.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["answer.max_seq_len=9999"], "`max_seq_len` (9999) is more than the model reads"),
        (["answer.doc_stride=385"], "`doc_stride` (385) is larger than `max_seq_len` (384)"),
        (["answer.doc_stride=384"], "`doc_stride` (384) leaves no tokens for text"),
        (["answer.max_seq_len=9999", "train.dataset=sample"], "is more than the model reads"),
        (["answer.max_seq_len=9999", "prune.dataset=sample", "prune.ffn=0.5"], "is more than the model reads"),
        (
            ["answer.max_seq_len=200", "train.dataset=sample", "distill.teacher.model=./bert"],
            "bert: `max_seq_len` (200)",
        ),
    ],
)
def test_an_answer_table_that_the_model_does_not_take_is_refused_before_any_work(
    empty, qabuild, isolated_cache, tiny_checkpoint, settings, expected
):
    shutil.copytree(tiny_checkpoint("bert", max_position_embeddings=130), "bert")
    overrides = [argument for setting in settings for argument in ("--set", setting)]
    for command in ("plan", "build"):
        assert_one_error(qabuild(command, "tiny.toml", "-q", *overrides), 2, "tiny: [answer]: ", expected)
    assert not names(isolated_cache / "v1" / "results")


def test_a_table_counts_truncated_questions(empty, qabuild):
    result = qabuild("tiny.toml", "--set", "answer.max_question_len=4", "--set", "verify.samples=3")
    assert result.status == 0, result.err
    assert "passed, 3 questions truncated" in " ".join(result.out.split())


def test_answer_prints_a_json_summary_if_the_answers_go_to_a_file(built, qabuild):
    refused = qabuild("answer", "artifacts/tiny", sample.HELDOUT, "--json")
    assert (refused.status, refused.document["status"]) == (2, 2)
    assert "name a file with -o" in refused.document["error"]
    result = qabuild("answer", "artifacts/tiny", sample.HELDOUT, "-o", "a.jsonl", "--json")
    assert result.status == 0
    assert result.document == {
        "answers": "a.jsonl",
        "manifest": open_artifact(Path("artifacts/tiny")).digest,
        "rows": 135,
        "answered": 135,
        "bad": 0,
        "resumed": 0,
        "truncated": 0,
    }


def test_a_mistyped_artifact_in_an_existing_folder_is_not_queried_on_the_hub(built, qabuild):
    assert_one_error(qabuild("answer", "artifacts/tyni", sample.HELDOUT), 2, "artifacts/tyni: no such folder")


def test_a_squad_document_gives_squad_predictions(built, qabuild):
    result = qabuild("answer", "artifacts/tiny", sample.HELDOUT, "-o", "predictions.json", "-q")
    assert (result.status, result.out, result.err) == (0, "", "")
    predictions = json.loads(Path("predictions.json").read_text())
    sealed = json.loads(Path("artifacts/tiny/reference/answers.json").read_text())["answers"]
    assert len(predictions) == 135
    assert {name: predictions[name] for name in sealed} == sealed


def test_shards_answer_a_folder_into_a_folder(built, qabuild):
    Path("questions").mkdir()
    row = {"id": 1, "question": "Who repaired it?", "context": "It was repaired by Alma Serin."}
    Path("questions/a.jsonl").write_text(json.dumps(row))
    Path("questions/b.jsonl").write_text(json.dumps({"id": 2}))
    command = ("answer", "artifacts/tiny", "questions", "-o", "answers/")
    assert qabuild(*command, "--shard", "0/2").status == 0
    result = qabuild(*command, "--shard", "1/2", "--json")
    assert (result.status, result.document["bad"]) == (4, 1)
    assert "questions/b.jsonl: line 1 has no 'question', only id" in result.err
    assert [path.name for path in sorted(Path("answers").glob("part-*"))] == ["part-00000.jsonl", "part-00001.jsonl"]
    assert json.loads(Path("answers/part-00000.jsonl").read_text())["id"] == 1
    assert "0 answered, 1 without an answer, 1 from an earlier run" in qabuild(*command, "--shard", "1/2").err
    manifest = json.loads(Path("answers/_manifest.json").read_text())
    assert manifest["run"]["artifact"] == open_artifact(Path("artifacts/tiny")).digest


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("questions", "-o", "answers/", "--shard", "3/3"), "shard 3/3: there is none"),
        (("questions", "-o", "answers/", "--shard", "x"), "'x' is not of the form I/N, as in 0/4"),
        (("questions", "-o", "a.jsonl", "--shard", "0/2"), "--shard and --part-rows need a folder for the answers"),
        (("-", "--shard", "0/2"), "--shard and --part-rows need a folder for the answers"),
        (("questions", "-o", "a.jsonl", "--engine", "ray"), "--engine needs a folder for the answers"),
        (("questions", "-o", "answers/", "--workers", "2"), "--workers and --gpus-per-worker need --engine ray"),
        (("-", "-o", "answers/"), "-: is read once"),
        (("questions", "-o", "a.jsonl"), "questions: these are 2 files"),
        (("questions", "-o", "artifacts/tiny/answers/"), "lies in the artifact"),
        (("questions/a.jsonl", "-o", "s3://bucket/answers"), "its ending names no format of answers"),
    ],
)
def test_folders_and_shards_that_do_not_fit_are_status_2(built, qabuild, arguments, expected):
    Path("questions").mkdir()
    for name in ("a", "b"):
        Path(f"questions/{name}.jsonl").write_text('{"question": "Who?", "context": "Mira"}')
    result = qabuild("answer", "artifacts/tiny", *arguments)
    assert result.status == 2
    assert expected in " ".join(result.err.split())
    assert not Path("answers").exists()


def test_answer_reads_and_writes_pipes(built):
    running = process("answer", "artifacts/tiny", "-", stdin=subprocess.PIPE)
    row = {"id": 1, "question": "Who repaired it?", "context": "It was repaired by Alma Serin."}
    out, err = running.communicate(json.dumps(row) + "\n", timeout=600)
    assert running.returncode == 0, err
    assert json.loads(out)["id"] == 1


# --- passwords in URLs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ftp://ann:s3c:ret@h:1/x", "ftp://ann:***@h:1/x"),
        ("https://:s3cret@h/x?versionId=7", "https://:***@h/x?versionId=7"),
        (
            "https://h/x?X-Amz-Credential=s3cret&X-Amz-Date=1&X-Amz-Signature=s3cret",
            "https://h/x?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("https://h/x?se=2026&sig=s3cret%3D", "https://h/x?se=2026&sig=***"),
        ("https://h/x?access_token=s3cret", "https://h/x?access_token=***"),
        ("s3://bucket/a@b:c/x", "s3://bucket/a@b:c/x"),
        ("https://h:80/x", "https://h:80/x"),
    ],
)
def test_an_error_names_a_url_without_what_opens_it(url, shown):
    assert str(QABuildError(f"{url}: gone", f"check '{url}'")) == f"{shown}: gone\n  check '{shown}'"


def test_a_command_does_not_print_the_password_of_a_url(built, qabuild, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{closed.getsockname()[1]}"
    failed = qabuild("answer", "artifacts/tiny", f"http://ann:s3cret@{place}/q.jsonl")
    assert_one_error(failed, 5, f"http://ann:***@{place}/q.jsonl: ")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"ftp://ann:s3cret@{place}/cache")
    monkeypatch.setenv("QABUILD_CACHE", str(built / "empty"))
    went_on = qabuild("build", "tiny.toml", "--set", "verify.samples=7")
    assert f"remote cache ftp://ann:***@{place}/cache" in went_on.err
    assert "s3cret" not in failed.out + failed.err + went_on.out + went_on.err


# --- the remote cache -------------------------------------------------------------------------------------------------


def test_a_key_of_the_remote_cache_that_is_none_or_has_none_ends_the_build_at_once(empty, monkeypatch, qabuild):
    (empty / "no.key").write_text("none")
    command = ("build", "tiny.toml", "--remote-cache-key", "no.key")
    assert_one_error(qabuild(*command), 2, "no.key: a key, but no remote cache", "QABUILD_REMOTE_CACHE")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", str(empty / "shared"))
    assert_one_error(qabuild(*command), 2, "no.key: not a private or public key", "qabuild keygen")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", "gone.key")
    assert_one_error(qabuild("build", "tiny.toml"), 2, "gone.key: No such file or directory")
    assert not (empty / "artifacts").exists()
