"""Artifacts, files and texts of others: whatever they hold, a command ends with a status and one message."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qabuild.artifact import manifest as artifacts
from qabuild.builder.build import build
from qabuild.cli import console, main
from qabuild.models.training import distributed
from qabuild.system import files
from qabuild.system.terminal import visible

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "{}"
[verify]
dataset = "sample"
samples = 4
"""
QUESTIONS = '{"id": "1", "question": "Who built it?", "context": "Ann built it."}\n'
HOSTILE = "\x1b]0;owned\x07\x9b2J\u202e\u2066\u200f\r"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`built("eager")`: an artifact of that backend. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("built")
    made: dict[str, Path] = {}

    def factory(backend: str) -> Path:
        if backend not in made:
            target = folder / f"{backend}.toml"
            target.write_text(TARGET.format(backend))
            made[backend] = build(target, folder / "artifacts", offline=True).directory
        return made[backend]

    return factory


@pytest.fixture
def artifact(built: Callable[[str], Path], tmp_path: Path) -> Path:
    """A verified artifact; questions.jsonl lies beside it."""
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    return Path(shutil.copytree(built("eager"), tmp_path / "x"))


def reseal(artifact: Path) -> None:
    """Make the sums in the manifest those of the files, as any author of an artifact can."""
    document = json.loads((artifact / "manifest.json").read_text())
    document["files"] = {name: vars(file) for name, file in artifacts.measure_files(artifact).items()}
    (artifact / "manifest.json").write_text(json.dumps(document))
    evidence = json.loads((artifact / "verification.json").read_text())
    evidence["manifest"] = hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
    (artifact / "verification.json").write_text(json.dumps(evidence))


Run = Callable[..., tuple[int, str, str]]
Refusal = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("verify", "x")`: status, output and messages of the command line in `tmp_path`; it must not hang."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        signal.alarm(300)  # a hang ends the process
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return int(stop.value.code or 0), *capfd.readouterr()

    return call


@pytest.fixture
def refusal(run: Run) -> Refusal:
    """`refusal(4, "verify", "x")`: the one error message of the command, which must end with that status."""

    def call(status: int, *arguments: object) -> str:
        actual, _, message = run(*arguments)
        assert actual == status, message
        assert "Traceback" not in message
        assert "bug in qabuild" not in message
        assert len(re.findall(r"^(?:error|Error): ", message, re.MULTILINE)) == 1, message
        return message

    return call


# --- links, pipes and devices in an artifact --------------------------------------------------------------------------


def link_cache(artifact: Path, victim: Path) -> None:
    (artifact / ".cache").symlink_to(victim.parent)


def link_temporary_file(artifact: Path, victim: Path) -> None:
    (artifact / ".cache").mkdir()
    (artifact / ".cache" / ".verification.json.partial").symlink_to(victim)


def link_deep_in_cache(artifact: Path, victim: Path) -> None:
    (artifact / ".cache" / "huggingface").mkdir(parents=True)
    (artifact / ".cache" / "huggingface" / "x").symlink_to(victim)


def link_evidence(artifact: Path, victim: Path) -> None:
    shutil.move(artifact / "verification.json", victim)
    (artifact / "verification.json").symlink_to(victim)


def link_folder(artifact: Path, victim: Path) -> None:
    shutil.move(artifact / "reference", victim.parent / "reference")
    (artifact / "reference").symlink_to(victim.parent / "reference")


def link_manifest(artifact: Path, victim: Path) -> None:
    shutil.move(artifact / "manifest.json", victim)
    (artifact / "manifest.json").symlink_to(victim)


@pytest.mark.parametrize(
    "plant",
    [link_cache, link_temporary_file, link_deep_in_cache, link_evidence, link_folder, link_manifest],
    ids=lambda plant: plant.__name__,
)
def test_nothing_is_written_through_a_link(artifact, tmp_path, refusal, plant):
    victim = tmp_path / "elsewhere" / "victim"
    victim.parent.mkdir()
    victim.write_text("precious")
    plant(artifact, victim)
    before = {path: path.read_bytes() for path in victim.parent.rglob("*") if path.is_file()}
    assert "not a plain file" in refusal(4, "verify", "x")
    assert {path: path.read_bytes() for path in victim.parent.rglob("*") if path.is_file()} == before


def test_temporary_files_follow_no_link_that_appears_meanwhile(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "stage").symlink_to(tmp_path)
    with pytest.raises(OSError, match="x"):
        files.write(tmp_path / "x", b"new", tmp_path / "stage")
    (tmp_path / "x").symlink_to(tmp_path / "victim")
    files.write(tmp_path / "x", b"new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "x").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage", "victim", "x"]


PLACES = ["manifest.json", "verification.json", "README.md", "config.json", ".cache", ".cache/x"]


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, listener, device], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", PLACES)
def test_pipes_sockets_and_devices_in_an_artifact_never_hang(artifact, tmp_path, refusal, make, name):
    path = artifact / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    assert "not a plain file" in refusal(4, "answer", "x", "questions.jsonl")


@pytest.mark.parametrize("make", [pipe, listener, device], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["x.toml", "x.lock", "data.json"])
def test_pipes_sockets_and_devices_instead_of_a_users_file_never_hang(tmp_path, refusal, make, name):
    (tmp_path / "x.toml").write_text(TARGET.format("eager").replace('dataset = "sample"', 'dataset = "./data.json"'))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    message = refusal(2, "build", "x.toml")
    assert "not a regular file" in message or "No such device" in message


def test_answer_still_reads_process_substitution_and_standard_input(artifact, tmp_path):
    command = f"{sys.executable} -m qabuild answer x <(cat questions.jsonl)"
    outputs = {
        subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for line in (
            command,
            f"cat questions.jsonl | {sys.executable} -m qabuild answer x /dev/stdin",
            f"cat questions.jsonl | {sys.executable} -m qabuild answer x -",
        )
    }
    (output,) = outputs
    assert json.loads(output)["id"] == "1"


def test_a_device_is_no_file_of_questions(artifact, refusal):
    assert "/dev/zero: is a device" in refusal(2, "answer", "x", "/dev/zero")


# --- damaged documents and models -------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000
DOCUMENTS = [
    DEEP,
    '{"a":' * 500 + "1" + "}" * 500,
    "NaN",
    "[]",
    '"x"',
    "",
    "\x00",
    "{}",
    '{"a": 1, "a": 2}',
    "1" * 5000,
]


@pytest.mark.parametrize("text", DOCUMENTS, ids=lambda text: ascii(text[:12]))
@pytest.mark.parametrize("name", ["manifest.json", "reference/answers.json", "config.json", "tokenizer.json"])
def test_a_damaged_document_of_an_artifact_is_status_4(artifact, tmp_path, refusal, name, text):
    (artifact / name).write_text(text)
    if name != "manifest.json":
        reseal(artifact)
    refusal(4, "verify", "x")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("checkpoint",), "sample"),
        (("checkpoint", "digest"), None),
        (("backend", "name"), 3),
        (("backend", "name"), "x\x1b[2J"),
        (("verify", "batch_size"), 0),
        (("verify", "batch_size"), 10**400),
        (("verify", "gates"), []),
        (("verify", "cross_check"), [1]),
        (("record", "needs"), "avx"),
        (("runtime", "device"), "tpu"),
        (("versions", "torch"), {}),
        (("steps",), [["compile", "x"]]),
        (("files", "../x"), {"size": 1, "sha256": "0"}),
        (("files", "config.json", "size"), 1e999),
        (("training",), {"start": None}),
        (("more",), True),
    ],
    ids=str,
)
def test_a_wrong_value_in_a_manifest_is_status_4_and_named(artifact, tmp_path, refusal, place, value):
    document = json.loads((artifact / "manifest.json").read_text())
    table = document
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    (artifact / "manifest.json").write_text(json.dumps(document))
    (artifact / "verification.json").unlink()
    message = refusal(4, "verify", "x")
    assert "\x1b" not in message


GARBAGE = {
    "empty": b"",
    "archive": b"PK\x03\x04" + bytes(200),
    "protobuf": bytes(range(256)) * 16,
    "xml": b'<?xml version="1.0"?><net name="x" version="11"><layers></layers><edges></edges></net>',
    "header": (2**62).to_bytes(8, "little") + b"{}",
    "pickle": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
}
MODELS = [
    ("eager", "model.safetensors"),
    ("eager", "reference/probes.safetensors"),
    ("torchscript", "model.pt"),
    ("torchscript", "trace.json"),
    ("torch_export", "model.pt2"),
    ("torch_export", "export.json"),
    ("onnxruntime", "model.onnx"),
    ("openvino", "openvino_model.xml"),
    ("openvino", "openvino_model.bin"),
]


@pytest.mark.parametrize(("backend", "name"), MODELS)
def test_garbage_instead_of_a_model_file_is_status_4(built, tmp_path, refusal, backend, name):
    if backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
    half = (built(backend) / name).read_bytes()[: (built(backend) / name).stat().st_size // 2]
    for kind, content in {**GARBAGE, "half": half}.items():
        artifact = Path(shutil.copytree(built(backend), tmp_path / kind))
        (artifact / name).write_bytes(content)
        reseal(artifact)
        refusal(4, "verify", artifact)


def give_all_tokens_one_id(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"] = dict.fromkeys(tokenizer["model"]["vocab"], 5)


def normalise_by(charsmap: str) -> Callable[[dict[str, Any]], None]:
    return lambda tokenizer: tokenizer.update(normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})


PANICS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no map of characters": normalise_by(""),
    "a map of characters beyond its end": normalise_by("/////wAAAAAA"),
    "one id": give_all_tokens_one_id,
}
"""Changes of a tokenizer.json on which the library tokenizers panics."""


@pytest.mark.both_lines
@pytest.mark.parametrize("change", PANICS.values(), ids=PANICS)
def test_a_tokenizer_that_panics_is_status_4(artifact, tmp_path, refusal, change):
    if change is give_all_tokens_one_id and version("tokenizers") < "0.23":
        pytest.skip("tokenizers 0.22 reads it")
    path = artifact / "tokenizer.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    reseal(artifact)
    refusal(4, "answer", "x", "questions.jsonl")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "checkpoint").mkdir(exist_ok=True)
        shutil.copy(artifact / name, tmp_path / "checkpoint")
    (tmp_path / "t.toml").write_text(TARGET.format("eager").replace('"sample"', '"./checkpoint"', 1))
    refusal(4, "build", "t.toml")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_labels"])
def test_a_config_of_endless_parts_is_status_4(artifact, refusal, key):
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps({**config, key: 10**12}))
    reseal(artifact)
    assert f"{key} is 1e+12" in refusal(4, "answer", "x", "questions.jsonl")


def test_an_error_of_onnx_runtime_is_the_only_message(built, tmp_path, refusal):
    onnx = pytest.importorskip("onnx")
    artifact = Path(shutil.copytree(built("onnxruntime"), tmp_path / "x"))
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    model = onnx.load(artifact / "model.onnx")
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    far = onnx.numpy_helper.from_array(np.array(10**9), "far")
    model.graph.initializer.append(far)
    gather.input[1] = "far"
    onnx.save(model, artifact / "model.onnx")
    reseal(artifact)
    message = refusal(4, "answer", "x", "questions.jsonl")
    assert message.startswith("error: "), message


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.sig", "verification.sig", "verification.json", "README.md", ".gitattributes"])
def test_a_folder_instead_of_an_unsealed_file_is_status_4(artifact, refusal, name):
    (artifact / name).unlink(missing_ok=True)
    (artifact / name).mkdir()
    assert f"{name}: not a plain file" in refusal(4, "verify", "x")


@pytest.mark.parametrize(
    "name", ["Model.safetensors", "REFERENCE/answers.json", "readme.md", ".git/config", ".hidden", "reference/.x"]
)
def test_a_name_that_no_artifact_needs_is_status_4(artifact, refusal, name):
    (artifact / name).parent.mkdir(exist_ok=True)
    (artifact / name).write_text("{}")
    reseal(artifact)
    assert name in refusal(4, "publish", "x", "--dry-run")


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript", "torch_export"])
def test_a_path_that_native_libraries_cannot_take_is_status_3(built, tmp_path, refusal, backend):
    """Not UTF-8, as any path beyond ASCII is in the locale C."""
    if backend == "onnxruntime":
        pytest.importorskip(backend)
    (tmp_path / "questions.jsonl").write_text(QUESTIONS)
    folder = Path(shutil.copytree(built(backend), tmp_path / os.fsdecode(b"f\xfcr")))
    assert "LC_ALL" in refusal(3, "answer", folder, "questions.jsonl")


@pytest.mark.parametrize("output", ["folder", "link", "no/x.json"])
def test_a_place_that_cannot_be_written_is_status_2(artifact, tmp_path, refusal, output):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    refusal(2, "sbom", "x", "-o", output)


# --- environment variables --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "x"},
        {"WORLD_SIZE": "2.5"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "9" * 5000},
        {"RANK": "-1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "port"},
        {"HF_HUB_DOWNLOAD_TIMEOUT": "soon"},
        {"HF_HUB_ETAG_TIMEOUT": "\x1b[2J"},
        {"HF_ENDPOINT": "http://["},
        {"HF_ENDPOINT": "huggingface.co"},
        {"HF_TOKEN": "hf_\u202e"},
    ],
    ids=lambda environment: ascii({name: value[:9] for name, value in environment.items()}),
)
def test_an_unusable_environment_variable_is_status_3_and_named(tmp_path, refusal, monkeypatch, environment):
    (tmp_path / "x.toml").write_text(TARGET.format("eager"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.current.cache_clear()
    message = refusal(3, "build", "x.toml")
    distributed.current.cache_clear()
    assert any(name in message for name in environment)
    assert "\x1b" not in message


def test_an_unknown_users_home_is_a_path_that_does_not_exist(tmp_path, refusal):
    (tmp_path / "x.toml").write_text(TARGET.format("eager").replace('"sample"\n[b', '"~nobody-9/x"\n[b'))
    assert "~nobody-9/x" in refusal(2, "build", "x.toml")


# --- control and bidirectional characters -----------------------------------------------------------------------------


def assert_visible(text: str) -> None:
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", text), ascii(text)


def test_descriptions_names_and_keys_of_others_are_escaped_on_the_terminal(tmp_path, run):
    name = f"x{HOSTILE.replace('/', '')}"
    escaped = json.dumps(HOSTILE)
    (tmp_path / "x.toml").write_text(f"description = {escaped}\n" + TARGET.format("eager"))
    (tmp_path / f"{name}.toml").write_text(TARGET.format("eager"))
    (tmp_path / "bad.toml").write_text(f"{escaped} = 1\n" + TARGET.format("eager").replace("eager", "\u202eeager"))
    for arguments in (
        ["targets", "."],
        ["plan", f"{name}.toml"],
        ["build", "bad.toml"],
        ["build", f"{name}.toml", "--x"],
    ):
        _, out, err = run(*arguments)
        assert_visible(out + err)
    assert "\\u001b]0;owned\\u0007\\u009b2J\\u202e\\u2066\\u200f\\u000d" in run("targets", ".")[1]


def test_names_in_an_artifact_are_escaped_on_the_terminal(artifact, run, refusal):
    (artifact / f"y{HOSTILE.replace('/', '')}").write_text("x")
    assert_visible(refusal(4, "verify", "x"))
    _, _, message = run("verify", "x", "-v")
    assert "Traceback" in message
    assert_visible(message)


def test_json_output_keeps_its_values(tmp_path, run):
    (tmp_path / "x.toml").write_text(f"description = {json.dumps(HOSTILE + chr(127))}\n" + TARGET.format("eager"))
    _, out, _ = run("targets", ".", "--json")
    assert_visible(out)
    assert json.loads(out)[0]["description"] == HOSTILE + chr(127)


@given(st.text())
def test_visible_text_holds_no_control_characters_and_json_keeps_its_meaning(text):
    assert_visible(visible(text).replace("\r\n", "\n"))
    assert json.loads(visible(json.dumps(text, ensure_ascii=False))) == text
    assert visible(visible(text)) == visible(text)


def test_a_table_and_a_message_are_escaped(capsys):
    console.table([f"name{HOSTILE}"], [[HOSTILE]])
    console.print_message(f"error: {HOSTILE}")
    console.emit(HOSTILE)
    streams = capsys.readouterr()
    assert_visible(streams.out + streams.err)
