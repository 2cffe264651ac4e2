"""A sound artifact passes wherever it lands: packed, copied, read only, in a bare environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import qabuild
from qabuild.builder.requirements import missing
from qabuild.models.backends import BACKENDS
from qabuild.target.read import load

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = 8
cross_check = 0
"""

READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && umask 077 && exec "$@"'
"""Runs a command where the folder of its first argument cannot be written, not even by root."""


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """A folder of one artifact for each backend that runs on this machine, named like it."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for backend in BACKENDS:
        target = folder / f"{backend}.toml"
        target.write_text(TARGET.format(backend=backend))
        if not missing(load(target)):
            qabuild.build(target, folder)
        target.unlink()
    return folder


@pytest.fixture
def moved(artifacts: Path, tmp_path: Path) -> list[Path]:
    """Links to the artifacts after a journey by tar, in a folder with a name that is not ASCII."""
    archive, home = tmp_path / "artifacts.tar", tmp_path / "für Özgür"
    with tarfile.open(archive, "w") as out:
        out.add(artifacts, arcname=".", filter=_without_writing)
    with tarfile.open(archive) as packed:
        packed.extractall(home, filter="fully_trusted")
    links = [tmp_path / folder.name for folder in sorted(home.iterdir())]
    for link in links:
        link.symlink_to(home / link.name)
    return links


def _without_writing(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mtime, entry.mode = 0, entry.mode & 0o555
    return entry


def test_artifacts_pass_where_they_were_moved_to(moved: list[Path], tmp_path: Path) -> None:
    verify = [sys.executable, "-P", "-m", "qabuild", "verify", "--json", *(path.name for path in moved)]
    mount = ["unshare", "-rm", "sh", "-c", READ_ONLY, str(tmp_path / "für Özgür")]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted read only here")
    bare = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    done = subprocess.run(
        [*mount, *verify],
        cwd=tmp_path,
        env={**bare, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "QABUILD_CACHE": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    passed = {result["artifact"]: result["verification"]["passed"] for result in json.loads(done.stdout)}
    assert passed == {path.name: True for path in moved}
    assert len(moved) > 1
