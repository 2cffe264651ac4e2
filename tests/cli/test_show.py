"""`show` and `fetch`: artifacts in every state, here and on the Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proven
import pytest
from hub import Hub

from qabuild.artifact import fetch as fetching
from qabuild.artifact.key_pair import keygen
from qabuild.artifact.manifest import open_artifact
from qabuild.cli import main
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.system import hub, hub_files

pytestmark = pytest.mark.both_lines

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def qabuild(capfd: pytest.CaptureFixture[str]) -> Run:
    """`qabuild("show", "x")`: status, stdout and stderr of the command line in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return int(stop.value.code or 0), streams.out, streams.err

    return run


# --- show -----------------------------------------------------------------------------------------------------------


def test_show_says_what_an_artifact_is_and_what_was_measured(tmp_path, qabuild):
    artifact = proven.make(tmp_path / "tiny")
    status, out, err = qabuild("show", artifact)
    assert (status, err) == (0, "")
    facts = {line.split("  ")[0]: line for line in out.splitlines() if "  " in line}
    assert facts["artifact"].endswith(f"{artifact}: passed")
    assert open_artifact(artifact).digest in facts["manifest"]
    assert "name them/base, revision bbbb" in facts["checkpoint"]
    assert "name eager" in facts["backend"]
    assert "device cpu, dtype fp32" in facts["runtime"]
    assert "2 questions of rajpurkar/squad" in facts["shows"]
    assert "EM 50.00 (checkpoint: 100.00)" in facts["measured"]
    assert "2.00 times as fast as the checkpoint" in facts["measured"]
    gates = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert gates["min_f1_retention"][1:] == ["0.5", "at", "least", "0.4", "passed"]
    assert gates["max_logit_difference"][2:] == ["at", "most", "0.001", "passed"]
    assert gates["same_tokens"][1:] == ["true", "true", "passed"]


def test_show_prints_one_json_document(tmp_path, qabuild):
    artifact = proven.make(tmp_path / "tiny")
    status, out, _ = qabuild("show", artifact, "--json")
    document = json.loads(out)
    assert (status, document["state"], document["reason"]) == (0, "passed", None)
    assert document["digest"] == open_artifact(artifact).digest
    assert document["manifest"]["checkpoint"]["name"] == "them/base"
    sealed = open_artifact(artifact).manifest.files
    assert (document["manifest"]["files"], document["size"]) == (len(sealed), sum(f.size for f in sealed.values()))
    assert document["verification"]["measurement"]["f1"] == 50.0


def forge(artifact: Path) -> None:
    path = artifact / "verification.json"
    document = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps({**document, "passed": False}))


STATES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "failed": (
        lambda a: proven.verify(open_artifact(a), **proven.FAILED),
        "failed",
        "min_f1_retention: 0, must be at least 0.4",
    ),
    "unverified": (lambda a: (a / "verification.json").unlink(), "unverified", "verify it: qabuild verify "),
    "forged": (forge, "invalid evidence", "passed is False, and its gates say otherwise"),
}


@pytest.mark.parametrize(("change", "state", "reason"), STATES.values(), ids=STATES)
def test_show_says_why_an_artifact_does_not_count_as_passed(tmp_path, qabuild, change, state, reason):
    artifact = proven.make(tmp_path / "tiny.failed")
    change(artifact)
    status, out, _ = qabuild("show", artifact)
    assert (status, f"{artifact}: {state}\n" in out) == (0, True)
    assert reason in out
    document = json.loads(qabuild("show", artifact, "--json")[1])
    assert (document["state"], reason in document["reason"]) == (state, True)


def test_show_refuses_a_changed_artifact(tmp_path, qabuild):
    artifact = proven.make(tmp_path / "tiny")
    (artifact / "config.json").write_text("{}")
    status, out, err = qabuild("show", artifact)
    assert (status, out) == (4, "")
    assert "config.json" in err


def test_the_artifact_of_a_failed_build_is_named_where_it_is_missing(tmp_path, qabuild):
    failed = proven.make(tmp_path / "tiny.failed")
    for command in ("show", "verify", "publish", "sbom"):
        status, _, err = qabuild(command, tmp_path / "tiny")
        assert (status, f"its build failed: {failed} lies there" in err) == (2, True)
        assert f"`qabuild show {failed}` says why" in err


# --- fetch ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The artifact that every repository holds, as the Hub's cache has it: with links to the content."""
    artifact = proven.make(tmp_path / "cache" / "tiny")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in artifact.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    monkeypatch.setattr(hub, "commit", lambda *_: "0" * 40)
    monkeypatch.setattr(hub_files, "download", lambda *_: artifact)
    return artifact


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fetch_copies_the_artifact_into_the_output_folder(tmp_path, published, qabuild):
    status, out, _ = qabuild("fetch", "me/mine", "--output", tmp_path / "artifacts")
    fetched = tmp_path / "artifacts" / "mine"
    digest = open_artifact(fetched).digest
    assert (status, out) == (0, f"{fetched}: passed, manifest {digest}\n")
    assert content(fetched) == content(published)
    assert not any(path.is_symlink() for path in fetched.rglob("*"))
    assert os.listdir(fetched.parent) == ["mine"]
    again = json.loads(qabuild("fetch", "me/mine", "--output", tmp_path / "artifacts", "--digest", digest, "--json")[1])
    assert (again["artifact"], again["state"], again["digest"]) == (str(fetched), "passed", digest)


def changed(artifact: Path) -> None:
    path = artifact / "config.json"
    path.unlink()
    path.write_text("{}")


@pytest.mark.parametrize(
    ("change", "options", "status", "expected"),
    [
        (lambda _: None, ["--digest", "0" * 64], 4, "its digest is"),
        (changed, [], 4, "config.json"),
        (lambda a: (a / "extra.py").write_text(""), [], 4, "extra.py"),
    ],
)
def test_fetch_leaves_nothing_of_an_artifact_that_it_refuses(
    tmp_path, published, qabuild, change, options, status, expected
):
    change(published)
    left, out, err = qabuild("fetch", "me/mine", "--output", tmp_path / "artifacts", *options)
    assert (left, out, expected in err) == (status, "", True)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("command", [["fetch", "me/mine"], ["answer", "me/mine", "questions.json"]], ids=" ".join)
@pytest.mark.parametrize(
    ("options", "problem"), [(["--digest", "zz"], "not a SHA-256"), (["--key", "no.pub"], "no.pub: No such file")]
)
def test_what_no_artifact_can_match_is_refused_before_the_download(
    tmp_path, qabuild, monkeypatch, command, options, problem
):
    if "--key" in options:
        pytest.importorskip("model_signing", reason="signatures need the extra sign")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "commit", lambda *_: pytest.fail("asked the Hub"))
    status, _, err = qabuild(*command, *options)
    assert (status, problem in err) == (2, True), err
    assert os.listdir(tmp_path) == []


def test_fetch_requires_the_signature_of_a_key(tmp_path, published, qabuild):
    pytest.importorskip("model_signing", reason="signatures need the extra sign")
    key = keygen(tmp_path / "mine.key")
    status, _, err = qabuild("fetch", "me/mine", "--output", tmp_path / "artifacts", "--key", key)
    assert (status, "not signed" in err) == (4, True)
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_an_interrupted_fetch_leaves_nothing(tmp_path, published, monkeypatch, error):
    def interrupted(source: Path, copy: Path) -> None:
        copy.mkdir()
        shutil.copy(source / "manifest.json", copy)
        raise error

    monkeypatch.setattr(fetching.shutil, "copytree", interrupted)
    with pytest.raises((KeyboardInterrupt, QABuildError)):
        fetching.fetch("me/mine", tmp_path / "artifacts")
    assert os.listdir(tmp_path / "artifacts") == []


def test_a_copy_is_checked_before_it_gets_its_name(tmp_path, published, monkeypatch):
    def damaged(source: Path, copy: Path) -> None:
        for name, text in content(source).items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(text if name != "model.safetensors" else b"as from a failing disk")

    monkeypatch.setattr(fetching.shutil, "copytree", damaged)
    with pytest.raises(UntrustedInput, match=r"model\.safetensors"):
        fetching.fetch("me/mine", tmp_path / "artifacts")
    assert os.listdir(tmp_path / "artifacts") == []


def test_fetch_replaces_nothing(tmp_path, published):
    other = proven.make(tmp_path / "artifacts" / "mine", weights=b"others")
    before = content(other)
    with pytest.raises(BadTarget, match="holds another artifact"):
        fetching.fetch("me/mine", tmp_path / "artifacts")
    assert content(other) == before
    (tmp_path / "artifacts" / "notes").mkdir()
    with pytest.raises(BadTarget, match="not an artifact"):
        fetching.fetch("me/notes", tmp_path / "artifacts")
    same = fetching.fetch("me/new", tmp_path / "artifacts").directory
    (same / "config.json").write_text("{}")
    with pytest.raises(UntrustedInput, match=r"config\.json"):
        fetching.fetch("me/new", tmp_path / "artifacts")


@pytest.mark.parametrize("name", ["tiny", "./me/tiny", "/me/tiny"])
def test_fetch_needs_the_name_of_a_repository(tmp_path, name):
    with pytest.raises(BadTarget, match="no repository on the Hub"):
        fetching.fetch(name, tmp_path)


@pytest.mark.hub
def test_an_artifact_on_the_hub_is_shown_and_fetched(tmp_path):
    files = content(proven.make(tmp_path / "tiny"))
    with Hub() as server:
        first = server.commit("model", "me/mine", files)
        server.commit("model", "me/mine", {**files, "config.json": b"{}"})

        def run(*arguments: str) -> tuple[int, Any]:
            environment = {**os.environ, **server.environment(tmp_path / "home")}
            command = [sys.executable, "-m", "qabuild", *arguments, "--json"]
            process = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            return process.returncode, json.loads(process.stdout)

        status, shown = run("show", "me/mine", "--revision", first)
        assert (status, shown["state"], shown["manifest"]["name"]) == (0, "passed", "tiny")
        status, refused = run("fetch", "me/mine")
        assert (status, "config.json" in refused["error"]) == (4, True)
        assert not (tmp_path / "artifacts").exists()
        status, fetched = run("fetch", "me/mine", "--revision", first, "--digest", shown["digest"])
    assert (status, fetched["artifact"]) == (0, "artifacts/mine")
    assert content(tmp_path / "artifacts" / "mine") == files
