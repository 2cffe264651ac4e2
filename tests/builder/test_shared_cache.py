"""Builds on several machines that share a remote cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qabuild.artifact import measurements
from qabuild.artifact.key_pair import keygen
from qabuild.artifact.manifest import open_artifact
from qabuild.builder.build import Built, build
from qabuild.builder.steps import STEPS
from qabuild.builder.steps import verify as measured
from qabuild.builder.store.local import Store
from qabuild.target.read import load

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = 4
"""
PRUNE = '[prune]\ndataset = "sample"\nffn = 0.65\nround_to = 8\nsamples = 32\n'
TARGETS = {
    "one": TARGET.format(backend="eager"),
    "two": TARGET.format(backend="torchscript"),
    "pruned": TARGET.format(backend="eager") + PRUNE,
}


@dataclass
class Machine:
    """A machine with folders of its own; what it shares with others is in the environment."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def build(self, name: str) -> Built:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.toml"
        path.write_text(TARGETS[name])
        old = dict(os.environ)
        os.environ |= {"QABUILD_CACHE": str(self.folder / "cache"), "XDG_STATE_HOME": str(self.folder / "state")}
        try:
            return build(load(path), self.folder / "artifacts", reporter=self)
        finally:
            os.environ.clear()
            os.environ.update(old)

    def steps(self, *, fetched: bool) -> list[str]:
        """The steps that it fetched, or those that it ran, by what it said."""
        names = {step.name for step in STEPS}
        said = [message.partition(": ") for message in self.said if ": cached" not in message]
        return [name for name, _, what in said if name in names and (what == "from the remote cache") == fetched]

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        yield lambda count: None


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("model_signing")
    folder = tmp_path_factory.mktemp("keys")
    keygen(folder / "team.key")
    return folder / "team.key"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, key: Path) -> tuple[Path, dict[str, str]]:
    """A remote cache of signed results, which is not to be changed, and the digest of each artifact built over it."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QABUILD_REMOTE_CACHE", f"file://{folder}/remote")
        patch.setenv("QABUILD_REMOTE_CACHE_KEY", str(key))
        first = Machine(folder / "first")
        return folder / "remote", {name: first.build(name).manifest for name in TARGETS}


def test_over_a_filled_remote_cache_no_step_runs(filled, key, tmp_path, monkeypatch):
    remote, manifests = filled
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{remote}?mode=ro")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", str(key.with_suffix(".pub")))

    def never(self: Any, context: Any, directory: Path) -> Any:
        raise AssertionError(f"{self.name} ran")

    for step in STEPS:
        monkeypatch.setattr(type(step), "run", never)
    second = Machine(tmp_path / "second")
    builds = {name: second.build(name) for name in TARGETS}
    assert {name: built.manifest for name, built in builds.items()} == manifests
    assert all(built.verification and built.verification.passed for built in builds.values())
    assert second.steps(fetched=False) == []
    assert second.steps(fetched=True) == [
        *("compile", "reference", "verify"),
        *("compile", "verify"),
        *("prune", "compile", "reference", "verify"),
    ]
    assert second.build("one").cached


def test_a_fetched_measurement_is_not_this_machines_own(filled, key, tmp_path, monkeypatch):
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{filled[0]}")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", str(key))
    second = Machine(tmp_path / "second")
    built = second.build("one")
    assert built.verification
    assert second.steps(fetched=False) == []
    monkeypatch.setenv("XDG_STATE_HOME", str(second.folder / "state"))
    assert not measurements.is_registered(open_artifact(built.directory), built.verification.measurement)


def test_without_signatures_each_machine_measures_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    first, second = Machine(tmp_path / "first"), Machine(tmp_path / "second")
    manifests = [machine.build("one").manifest for machine in (first, second)]
    assert manifests[0] == manifests[1]
    assert second.steps(fetched=False) == ["verify"]
    monkeypatch.setenv("XDG_STATE_HOME", str(second.folder / "state"))
    artifact = open_artifact(second.folder / "artifacts" / "one")
    verification = second.build("one").verification
    assert verification
    assert measurements.is_registered(artifact, verification.measurement)


def test_a_measurement_of_other_files_is_made_anew(filled, key, tmp_path, monkeypatch):
    """A signed measurement under the right key, but of an artifact whose files differ."""
    shutil.copytree(filled[0], tmp_path / "remote")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", str(key))
    monkeypatch.setattr(measured, "is_of", lambda entry, artifact: False)
    second = Machine(tmp_path / "second")
    second.build("one")
    assert second.steps(fetched=False) == ["verify"]


def test_a_step_damaged_in_the_remote_cache_is_made_anew(filled, key, tmp_path, monkeypatch):
    shutil.copytree(filled[0], tmp_path / "remote")
    for path in (tmp_path / "remote" / "v1" / "results").iterdir():
        content = bytearray(path.read_bytes())
        content[1000] ^= 1  # in the entry
        path.write_bytes(content)
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", str(key))
    second = Machine(tmp_path / "second")
    assert second.build("one").manifest == filled[1]["one"]
    assert second.steps(fetched=False) == ["compile", "reference", "verify"]
    assert Store(tmp_path / "second" / "cache").keys()
