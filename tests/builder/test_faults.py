"""What a build withstands: kills and full disks at every step, company, stores that vanish or come from the future."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.builder.store.local import Store
from qabuild.errors import QABuildError

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = {samples}
"""


def write(path: Path, backend: str = "eager", samples: int = 3) -> Path:
    path.write_text(TARGET.format(backend=backend, samples=samples), encoding="utf-8")
    return path


@pytest.mark.parametrize(("stop", "every"), [("kill", 2), ("full_disk", 8)])
def test_nothing_is_lost_where_builds_of_two_targets_are_stopped(stop, every):
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "faults.py"), stop, "--every", str(every)]
    done = subprocess.run(command, capture_output=True, text=True)
    report = re.match(r"(\w+): (\d+) steps, stopped at (\d+), losses: (\d+)$", done.stdout, re.MULTILINE)
    assert report, done.stderr
    assert int(report[3]) >= 80 / every
    assert report[4] == "0", done.stdout


def test_two_builds_that_share_a_step_at_once_make_it_once_and_both_end_well(tmp_path, isolated_cache):
    targets = [write(tmp_path / "one.toml"), write(tmp_path / "other.toml", samples=4)]
    command = [sys.executable, "-m", "qabuild", "-q", "--json", "--output", str(tmp_path / "artifacts")]
    running = [subprocess.Popen([*command, str(target)], stdout=subprocess.PIPE, text=True) for target in targets]
    documents = [json.loads(process.communicate()[0])[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    compiled = {step["key"] for d in documents for step in d["plan"] if step["name"] == "compile"}
    assert len(compiled) == 1
    for target in targets:
        assert qabuild.build(target, tmp_path / "artifacts").cached


def test_a_store_that_vanishes_is_made_anew(tmp_path):
    target, store = write(tmp_path / "x.toml"), tmp_path / "store"
    first = qabuild.build(target, tmp_path / "artifacts", results=Store(store))
    shutil.rmtree(store)
    again = qabuild.build(target, tmp_path / "artifacts", results=Store(store))
    assert again.manifest == first.manifest
    assert again.cached, "the artifact holds all it needs"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_to_is_said_and_the_old_artifact_stays(tmp_path):
    target, store = write(tmp_path / "x.toml"), tmp_path / "store"
    first = qabuild.build(target, tmp_path / "artifacts", results=Store(store))
    for folder, _, _ in os.walk(store):
        Path(folder).chmod(0o500)
    write(target, samples=4)
    try:
        with pytest.raises(QABuildError, match="QABUILD_CACHE"):
            qabuild.build(target, tmp_path / "artifacts", results=Store(store))
    finally:
        for folder, _, _ in os.walk(store):
            Path(folder).chmod(0o700)
    assert open_artifact(tmp_path / "artifacts" / "x").digest == first.manifest
    assert qabuild.build(target, tmp_path / "artifacts", results=Store(store)).verification.passed


def test_a_store_that_is_a_file_is_said(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(QABuildError, match="QABUILD_CACHE"):
        qabuild.build(write(tmp_path / "x.toml"), tmp_path / "artifacts", results=Store(tmp_path / "store"))
    assert not (tmp_path / "artifacts" / "x").exists()


def test_entries_of_a_newer_program_are_left_alone(tmp_path):
    target, store = write(tmp_path / "x.toml"), tmp_path / "store"
    newer = store / "v2" / "results" / "abc"
    newer.mkdir(parents=True)
    (newer / "entry.json").write_text("{}")
    strange = store / "v1" / "results" / ("0" * 64)
    strange.mkdir(parents=True)
    (strange / "entry.json").write_text(json.dumps({"format": 9, "files": {}}))
    assert qabuild.build(target, tmp_path / "artifacts", results=Store(store)).verification.passed
    assert (newer / "entry.json").is_file()
    assert (strange / "entry.json").is_file()


def test_the_same_target_gives_the_same_bytes_from_two_environments_in_different_folders(tmp_path):
    """Each environment has a copy of the package in a folder of its own; the libraries are those installed here."""
    digests = []
    for name in ("here", "somewhere/else"):
        home = tmp_path / name
        venv.create(home / "venv", with_pip=False, symlinks=True)
        packages = home / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        shutil.copytree(Path(qabuild.__file__).parent, packages / "qabuild")
        (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        backends = ("torchscript", "onnxruntime")
        targets = [str(write(home / f"{backend}.toml", backend)) for backend in backends]
        environment = {**os.environ, "QABUILD_CACHE": str(home / "store"), "PYTHONPATH": ""}
        python = str(home / "venv" / "bin" / "python")
        where = subprocess.run(
            [python, "-c", "import qabuild; print(qabuild.__file__)"],
            env=environment,
            cwd=home,
            capture_output=True,
            text=True,
            check=True,
        )
        assert where.stdout.startswith(str(packages))
        command = [python, "-m", "qabuild", "-q", *targets, "--output", str(home / "artifacts")]
        subprocess.run(command, env=environment, cwd=home, capture_output=True, check=True)
        artifacts = [open_artifact(home / "artifacts" / backend) for backend in backends]
        digests.append([artifact.digest for artifact in artifacts])
        for artifact in artifacts:
            for file in artifact.manifest.files:
                assert str(tmp_path).encode() not in (artifact.directory / file).read_bytes()
    assert digests[0] == digests[1]
