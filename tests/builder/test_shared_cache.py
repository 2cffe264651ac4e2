"""Builds on several machines that share a remote cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from qabuild.artifact import measurements
from qabuild.artifact.key_pair import keygen
from qabuild.artifact.manifest import measure_files, open_artifact
from qabuild.builder.build import Built, build
from qabuild.builder.preview import preview
from qabuild.builder.steps import STEPS
from qabuild.builder.steps import verify as measured
from qabuild.builder.store import archive
from qabuild.builder.store.local import Store, document_of, entry_of
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
SEARCHED = """\
[checkpoint]
model = "sample"
[train]
dataset = "sample"
samples = 32
held_out = 10
layers = [0]
epochs = 1
dtype = "fp32"
[distill]
teacher.model = "sample"
[distill.search]
trials = 1
storage = "{storage}"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 4
[verify.gates]
min_teacher_f1_retention = 0.0
"""
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
    assert second.steps(fetched=False) == ["reference", "verify"]
    monkeypatch.setenv("XDG_STATE_HOME", str(second.folder / "state"))
    artifact = open_artifact(second.folder / "artifacts" / "one")
    verification = second.build("one").verification
    assert verification
    assert measurements.is_registered(artifact, verification.measurement)


@pytest.mark.parametrize("step", ["reference", "original"])
def test_without_signatures_answers_that_others_put_there_change_no_verdict(tmp_path, monkeypatch, step):
    """Else who can write there has an artifact pass: its F1 is compared with that of wrong answers."""
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    first, second = Machine(tmp_path / "first"), Machine(tmp_path / "second")
    honest = first.build("pruned")
    key = str(honest.plan.step(step).key)
    put_wrong_answers(Store(first.folder / "cache"), key, tmp_path / "remote" / "v1" / "results")

    built = second.build("pruned")
    assert second.steps(fetched=True) == ["prune", "compile"]
    assert built.manifest == honest.manifest
    assert honest.verification
    assert built.verification
    assert honest.verification.measurement.original
    assert built.verification.measurement.original == honest.verification.measurement.original
    assert built.verification.measurement.checkpoint_f1 == honest.verification.measurement.checkpoint_f1


def test_an_artifact_of_unsigned_results_is_built_again_where_a_key_is_demanded(tmp_path, monkeypatch, key):
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    first, second = Machine(tmp_path / "first"), Machine(tmp_path / "second")
    first.build("one")
    second.build("one")
    assert second.build("one").cached
    monkeypatch.setenv("QABUILD_REMOTE_CACHE_KEY", str(key))
    assert not second.build("one").cached
    assert second.steps(fetched=False)[-1] == "compile"  # what it answered and measured itself stands
    assert second.build("one").cached


def test_what_is_no_checkpoint_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    first, second = Machine(tmp_path / "first"), Machine(tmp_path / "second")
    honest = first.build("pruned")
    folder = first.folder / "cache" / "v1" / "results" / str(honest.plan.step("prune").key)
    (folder / "files" / "config.json").unlink()
    put_forged(folder, tmp_path / "remote" / "v1" / "results")
    assert second.build("pruned").manifest == honest.manifest
    assert "prune" in second.steps(fetched=False)


def put_forged(folder: Path, results: Path) -> None:
    """Put a result whose files were changed into the unsigned remote cache, with an entry that fits them."""
    entry = entry_of(json.loads((folder / "entry.json").read_text()), folder / "files")
    (folder / "entry.json").write_text(document_of(replace(entry, files=measure_files(folder / "files"))))
    with open(results / f"{folder.name}.tar", "wb") as file:
        archive.write(folder, file, None)


def put_wrong_answers(store: Store, key: str, results: Path) -> None:
    """Put the result with that key into the unsigned remote cache, with other answers that fit its entry."""
    folder = results.parent / "forged" / key
    shutil.copytree(store.folder(key), folder)
    answers = folder / "files" / "answers.json"
    document = json.loads(answers.read_text())
    answers.write_text(json.dumps({**document, "answers": dict.fromkeys(document["answers"], "wrong")}))
    put_forged(folder, results)


def test_a_search_whose_trials_hosts_share_waits_for_no_other_host(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", f"file://{tmp_path}/remote")
    monkeypatch.setitem(TARGETS, "searched", SEARCHED.format(storage=f"journal://{tmp_path}/study.log"))
    (tmp_path / "searched.toml").write_text(TARGETS["searched"])
    plan = preview(load(tmp_path / "searched.toml"), Store(tmp_path / "none"), "searched")
    lease = tmp_path / "remote" / "v1" / "leases" / str(plan.step("search").key)
    lease.parent.mkdir(parents=True)
    lease.write_text("gpu-7 0123 5")  # of a host that began the search before
    first = Machine(tmp_path / "first")
    first.build("searched")
    assert {"logits", "search", "train"} <= set(first.steps(fetched=False))
    assert not [message for message in first.said if "waiting" in message]

    other = Machine(tmp_path / "other")
    other.build("searched")
    assert other.steps(fetched=True) == ["train", "compile"]


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
