"""Exports: complete folders that say where they come from, or none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import proven
import pytest
from hub import Hub

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.cli import main
from qabuild.errors import BadTarget, QABuildError, UntrustedInput, VerificationFailed
from qabuild.publishing.layouts import LAYOUTS, layout

pytestmark = pytest.mark.both_lines

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`run("export", "x")`: status, stdout and stderr of the command line in this process."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return int(stop.value.code or 0), streams.out, streams.err

    return command


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return proven.make(tmp_path / "tiny")


# --- what is exported -------------------------------------------------------------------------------------------------


def test_the_layouts_are_listed(run):
    status, out, _ = run("export", "--list")
    assert status == 0
    for name in LAYOUTS:
        assert f"{name} " in out
        assert layout(name).SUMMARY in out


def test_the_result_names_folder_files_and_manifest(tiny, tmp_path, run):
    status, out, err = run("export", tiny, "--layout", "docker", "-o", tmp_path / "image", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert (document["directory"], document["layout"]) == (str(tmp_path / "image"), "docker")
    assert document["manifests"] == [open_artifact(tiny).digest]
    assert {"Dockerfile", "README.md", "artifact/manifest.json"} <= set(document["files"])
    assert document["size"] == sum(path.stat().st_size for path in (tmp_path / "image").rglob("*") if path.is_file())


def test_the_readme_says_what_it_is_and_where_it_comes_from(tiny, tmp_path):
    exported = qabuild.export(tiny, "docker", tmp_path / "image")
    text = (exported.directory / "README.md").read_text()
    assert text.startswith("# image\n")
    assert open_artifact(tiny).digest in text
    assert "## What differs" in text
    assert "EM 50.00, F1 50.00 (checkpoint: 100.00), 50.00 % of the answers" in text


def test_an_empty_folder_is_filled(tiny, tmp_path):
    (tmp_path / "image").mkdir()
    assert "Dockerfile" in qabuild.export(tiny, "docker", tmp_path / "image").files


@pytest.mark.hub
def test_an_artifact_on_the_hub_is_exported_at_its_revision(tiny, tmp_path):
    files = {str(path.relative_to(tiny)): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    digest = open_artifact(tiny).digest
    with Hub() as hub:
        first = hub.commit("model", "me/tiny", files)
        hub.commit("model", "me/tiny", {**files, "config.json": b"{}"})
        pinned = ["--revision", first, "--digest", digest]
        process = subprocess.run(
            [sys.executable, "-m", "qabuild", "export", "me/tiny", "--layout", "docker", "-o", "image", *pinned],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert process.returncode == 0, process.stderr
    assert not any(path.is_symlink() for path in (tmp_path / "image").rglob("*"))
    assert open_artifact(tmp_path / "image" / "artifact").digest == digest


# --- what is refused --------------------------------------------------------------------------------------------------


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_nothing_is_replaced(tiny, tmp_path, run):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "mine").write_text("mine")
    status, _, err = run("export", tiny, "--layout", "docker", "-o", tmp_path / "image")
    assert status == BadTarget.exit_status
    assert "is there already" in err
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    with pytest.raises(BadTarget, match="is there already"):
        qabuild.export(tiny, "docker", tmp_path / "link")
    assert left(tmp_path) == {"tiny", "image", "link"}
    assert left(tmp_path / "image") == {"mine"}


def test_an_output_folder_that_cannot_be_made_is_named_at_once(tiny, tmp_path, run):
    (tmp_path / "file").write_text("mine")
    status, _, err = run("export", tiny, "--layout", "docker", "-o", tmp_path / "file" / "image")
    assert status == QABuildError.exit_status
    assert f"the output folder {tmp_path / 'file'}: Not a directory" in err
    assert "name another with --output" in err


def test_nothing_is_added_to_an_artifact(tiny):
    with pytest.raises(BadTarget, match="is sealed"):
        qabuild.export(tiny, "docker", tiny / "image")
    open_artifact(tiny)


def test_a_changed_artifact_is_refused(tiny, tmp_path):
    (tiny / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UntrustedInput, match="not as it was sealed"):
        qabuild.export(tiny, "docker", tmp_path / "image")
    assert left(tmp_path) == {"tiny"}


def test_an_artifact_that_changes_while_it_is_copied_leaves_nothing(tiny, tmp_path, monkeypatch):
    """The check of the copy is what finds it."""
    copied = shutil.copyfile

    def change(source, goal, **options):
        done = copied(source, goal, **options)
        if Path(goal).name == "config.json":
            Path(goal).write_text("{}")
        return done

    monkeypatch.setattr(shutil, "copyfile", change)
    with pytest.raises(UntrustedInput, match="not as it was sealed"):
        qabuild.export(tiny, "docker", tmp_path / "image")
    assert left(tmp_path) == {"tiny"}


def test_an_unverified_artifact_is_exported_only_if_that_is_allowed(tiny, tmp_path, run):
    proven.verify(open_artifact(tiny), **proven.FAILED)
    with pytest.raises(VerificationFailed, match="--allow-unverified"):
        qabuild.export(tiny, "docker", tmp_path / "image")
    status, _, err = run("export", tiny, "--layout", "docker", "-o", tmp_path / "image", "--allow-unverified")
    assert status == 0
    assert "; exported all the same" in err
    assert "**not verified**" in (tmp_path / "image" / "README.md").read_text()


def test_a_digest_pins_one_artifact(tiny, tmp_path):
    with pytest.raises(UntrustedInput, match="its digest is"):
        qabuild.export(tiny, "docker", tmp_path / "image", digest="0" * 64)


@pytest.mark.parametrize(
    ("artifacts", "name", "problem"),
    [
        ([], "docker", "no artifact is named"),
        (["tiny", "tiny"], "docker", "takes one artifact"),
        (["tiny"], "no-such", "there is no layout 'no-such'"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(tiny, tmp_path, artifacts, name, problem):
    with pytest.raises(BadTarget, match=problem):
        qabuild.export([tmp_path / artifact for artifact in artifacts], name, tmp_path / "image")


def test_a_command_line_without_layout_or_folder_is_refused(tiny, run):
    for arguments in ([], [tiny], [tiny, "--layout", "docker"]):
        status, _, err = run("export", *arguments)
        assert status == BadTarget.exit_status
        assert "--list shows the layouts" in err
