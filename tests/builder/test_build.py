"""A build does what is left to do, and whatever happens to it, a name stands for a whole artifact or for none."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qabuild.artifact import staging
from qabuild.artifact.manifest import open_artifact
from qabuild.builder import build as builder
from qabuild.builder import plan as planning
from qabuild.builder import preview
from qabuild.builder.build import Built
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.evaluation.verify import verify
from qabuild.models import compiler
from qabuild.models.backends import backend
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.runtime import Runtime
from qabuild.qa import sample
from qabuild.system import packages
from qabuild.target.read import load

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 4
"""


@dataclass
class Workshop:
    """A folder with a target, its artifacts and a store of its own."""

    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def output(self) -> Path:
        return self.folder / "artifacts"

    @property
    def artifact(self) -> Path:
        return self.output / "tiny"

    def build(self, *overrides: str, target: str = "tiny.toml", **options: Any) -> Built:
        self.said.clear()
        read = load(self.folder / target, overrides)
        return builder.build(read, self.output, results=self.store, reporter=self, **options)

    def stored(self, step: str) -> Path:
        """The folder of the one result of that step."""
        found = [p.parent for p in self.folder.glob("store/v1/results/*/entry.json") if step in _step(p)]
        assert len(found) == 1
        return found[0]

    def say(self, message: str) -> None:
        self.said.append(message)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Any]:
        yield lambda count: None


def _step(entry: Path) -> str:
    return str(json.loads(entry.read_text())["step"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The sample, built once; copy it before changing it.

    The folder it was built from holds a file that is named like a package.
    """
    workshop = Workshop(tmp_path_factory.mktemp("finished"))
    (workshop.folder / "tiny.toml").write_text(TARGET)
    (workshop.folder / "torch.py").write_text("raise SystemExit('this is not torch')")
    before = Path.cwd()
    os.chdir(workshop.folder)
    try:
        workshop.build()
    finally:
        os.chdir(before)
    return workshop


@pytest.fixture
def workshop(finished: Workshop, tmp_path: Path) -> Workshop:
    """A copy of what was built."""
    shutil.copytree(finished.folder, tmp_path / "workshop")
    return Workshop(tmp_path / "workshop")


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What is in a folder, and when it came there."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # it may be a hard link
    path.write_bytes(content)


# --- what is left to do -----------------------------------------------------------------------------------------------


def test_a_build_ends_in_a_sealed_artifact_with_its_proof(finished):
    artifact = open_artifact(finished.artifact)
    assert artifact.evidence is not None
    assert artifact.evidence["passed"]
    assert entries(finished.output) == {"tiny"}
    assert [line.split(":")[0] for line in finished.said] == ["compile", "reference", "verify", "cross-check"]
    steps = artifact.manifest.steps
    assert set(steps.values()) < finished.store.keys()


def test_every_file_of_an_artifact_may_be_read_by_whom_a_new_file_may(finished, tmp_path):
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in finished.artifact.rglob("*") if path.is_file()}
    assert modes == dict.fromkeys(modes, (tmp_path / "new").stat().st_mode)


def test_a_second_build_does_nothing(workshop):
    first = snapshot(workshop.artifact)
    built = workshop.build()
    # Built in another folder, so the store's history knows it not, and still all is there.
    assert built.cached
    assert built.verification is not None
    assert built.verification.passed
    assert workshop.said == [f"{workshop.artifact}: nothing to do"]
    assert snapshot(workshop.artifact) == first


def test_a_changed_gate_judges_again_what_was_measured(workshop):
    before, keys = open_artifact(workshop.artifact), workshop.store.keys()
    measured = before.evidence["measurement"]
    built = workshop.build("verify.gates.min_f1_retention=0.5", "publish.repo=me/there")
    after = open_artifact(workshop.artifact)
    assert not built.cached
    assert [line.split(" ")[1] for line in workshop.said] == ["cached", "cached", "cached"]
    assert workshop.store.keys() == keys
    assert after.evidence["measurement"] == measured
    assert after.manifest.verify["gates"]["min_f1_retention"] == 0.5
    assert after.manifest.publish["repo"] == "me/there"
    assert after.manifest.files == before.manifest.files


def test_a_failed_gate_keeps_the_evidence_aside_and_the_artifact_in_place(workshop):
    good = snapshot(workshop.artifact)
    built = workshop.build("verify.gates.min_speedup=1000")
    assert built.directory == workshop.output / "tiny.failed"
    assert built.verification is not None
    assert [gate.name for gate in built.verification.failed_gates] == ["min_speedup"]
    assert open_artifact(built.directory).evidence["passed"] is False
    assert snapshot(workshop.artifact) == good
    workshop.build("verify.gates.min_speedup=1001")
    assert entries(workshop.output) == {"tiny", "tiny.failed"}
    workshop.build("verify.gates.min_speedup=0.001")
    assert entries(workshop.output) == {"tiny"}, "what passes clears the failure away"


def test_another_target_with_the_same_steps_takes_all_from_the_store(workshop):
    (workshop.folder / "other.toml").write_text(TARGET)
    workshop.build(target="other.toml")
    assert [line.partition(": ")[2] for line in workshop.said] == ["cached (another build made it)"] * 3
    assert open_artifact(workshop.output / "other").manifest.name == "other"


def test_an_artifact_under_a_name_that_is_not_its_own_is_not_taken_for_the_target(workshop):
    (workshop.folder / "other.toml").write_text(TARGET)
    os.rename(workshop.artifact, workshop.output / "other")
    assert not workshop.build(target="other.toml").cached
    assert open_artifact(workshop.output / "other").manifest.name == "other"


def test_evidence_that_makes_no_sense_is_replaced(workshop):
    evidence = json.loads((workshop.artifact / "verification.json").read_text())
    del evidence["measurement"]["machine"]
    (workshop.artifact / "verification.json").write_text(json.dumps(evidence))
    assert not workshop.build().cached
    assert workshop.build().cached


def test_artifacts_are_hard_links_to_the_store(workshop):
    shutil.rmtree(workshop.artifact)
    workshop.build()
    stored = workshop.stored("compile") / "files"
    assert (workshop.artifact / "model.safetensors").samefile(stored / "model.safetensors")


def test_artifacts_are_copies_where_the_file_system_has_no_links(workshop, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    shutil.rmtree(workshop.artifact)
    assert workshop.build().verification.passed
    stored = workshop.stored("compile") / "files"
    assert not (workshop.artifact / "model.safetensors").samefile(stored / "model.safetensors")


# --- a store that is damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "file"),
    [
        ("compile", "files/model.safetensors"),
        ("reference", "files/answers.json"),
        ("reference", "entry.json"),
        ("verify", "files/measurement.json"),
    ],
)
def test_a_flipped_byte_in_the_store_is_noticed_and_made_good(workshop, step, file):
    good = open_artifact(workshop.artifact)
    shutil.rmtree(workshop.artifact)
    flip_a_byte(workshop.stored(step) / file)
    built = workshop.build()
    told = {line.partition(":")[0]: line for line in workshop.said}
    assert "its result in the store is damaged" in told[step]
    assert all("cached" in line for name, line in told.items() if name not in (step, "verify", "cross-check"))
    assert built.verification.passed
    made = open_artifact(workshop.artifact).manifest.files
    assert {name: made[name] for name in made if "probes" not in name} == {
        name: good.manifest.files[name] for name in made if "probes" not in name
    }
    assert workshop.store.find_intact(workshop.stored(step).name) is not None, "and the store is whole again"


def test_a_plan_tells_what_was_edited_in_place_from_what_is_kept_and_changes_nothing(workshop):
    target = load(workshop.folder / "tiny.toml")
    name = planning.history_name(target, workshop.output)
    with open(workshop.stored("compile") / "files" / "config.json", "ab") as file:
        file.write(b" ")
    before = snapshot(workshop.folder)
    steps = {step.name: (step.cached, step.reason) for step in preview.preview(target, workshop.store, name).steps}
    assert steps.pop("compile") == (False, "its result in the store is damaged")
    assert all(cached for cached, _ in steps.values())
    assert snapshot(workshop.folder) == before


def test_a_plan_after_pruning_says_where_the_results_went(workshop):
    target = load(workshop.folder / "tiny.toml")
    shutil.rmtree(workshop.artifact)
    workshop.build()
    workshop.store.drop(workshop.stored("compile").name)
    made = preview.preview(target, workshop.store, planning.history_name(target, workshop.output))
    assert made.step("compile").reason == "its last result is no longer in the store"


@pytest.mark.parametrize("damage", ["lost", "added", "linked"])
def test_files_lost_from_the_store_or_added_to_it_are_noticed(workshop, damage):
    files = workshop.stored("reference") / "files"
    if damage == "added":
        (files / "more.bin").write_bytes(b"x")
    else:
        os.rename(files / "answers.json", workshop.folder / "elsewhere")
    if damage == "linked":
        (files / "answers.json").symlink_to(workshop.folder / "elsewhere")
    key = workshop.stored("reference").name
    assert workshop.store.find(key) is not None
    assert workshop.store.find_intact(key) is None
    assert not (workshop.store.keys() & {key})


def test_an_artifact_with_a_flipped_byte_is_replaced(workshop):
    flip_a_byte(workshop.artifact / "model.safetensors")
    assert not workshop.build().cached
    open_artifact(workshop.artifact)


def test_what_a_killed_process_was_making_in_the_store_is_removed_by_the_next(tmp_path):
    store = Store(tmp_path)
    key = planning.step_key({"a": 1})
    (tmp_path / "v1" / "staging" / key).mkdir(parents=True)
    (tmp_path / "v1" / "staging" / key / "half").write_text("x")

    def produce(folder: Path) -> dict[str, int]:
        assert list(folder.iterdir()) == []
        return {}

    store.make("compile", {"a": 1}, produce)
    assert list((tmp_path / "v1" / "staging").iterdir()) == []
    assert entries(tmp_path / "v1" / "results" / key) == {"entry.json", "files"}


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [(), ("verify.gates.min_f1_retention=0.5",)], ids=["nothing to do", "to do"])
def test_what_a_killed_build_left_is_removed(workshop, again):
    (workshop.output / ".tiny.partial" / "reference").mkdir(parents=True)
    (workshop.output / ".tiny.partial" / "model.safetensors").write_bytes(b"half")
    workshop.build(*again)
    assert entries(workshop.output) == {"tiny"}


def test_an_artifact_that_a_killed_build_had_put_aside_gets_its_name_back(workshop):
    os.rename(workshop.artifact, workshop.output / ".tiny.old")
    assert workshop.build().cached
    assert entries(workshop.output) == {"tiny"}


def test_without_an_exchange_in_one_step_names_are_given_in_two(workshop, monkeypatch):
    monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_, **__: object())
    workshop.build("verify.gates.min_f1_retention=0.5")
    assert open_artifact(workshop.artifact).manifest.verify["gates"]["min_f1_retention"] == 0.5
    assert entries(workshop.output) == {"tiny"}
    (workshop.output / ".tiny.old").mkdir()
    workshop.build()
    assert entries(workshop.output) == {"tiny"}


@pytest.mark.parametrize("name", ["tiny", "tiny.failed"])
def test_a_folder_that_is_no_artifact_is_not_replaced(workshop, name):
    shutil.rmtree(workshop.artifact)
    (workshop.output / name).mkdir()
    (workshop.output / name / "thesis.tex").write_text("years of work")
    with pytest.raises(BadTarget, match="is not an artifact") as caught:
        workshop.build()
    assert "--output" in str(caught.value)
    assert (workshop.output / name / "thesis.tex").read_text() == "years of work"
    assert entries(workshop.output) == {name}


def test_a_link_is_replaced_and_what_it_leads_to_is_not(workshop):
    os.rename(workshop.artifact, workshop.folder / "elsewhere")
    workshop.artifact.symlink_to(workshop.folder / "elsewhere")
    before = snapshot(workshop.folder / "elsewhere")
    workshop.build("verify.gates.min_f1_retention=0.5")
    assert not workshop.artifact.is_symlink()
    assert snapshot(workshop.folder / "elsewhere") == before
    assert entries(workshop.output) == {"tiny"}


def test_two_builds_of_one_artifact_do_not_meet(workshop):
    name = planning.history_name(load(workshop.folder / "tiny.toml"), workshop.output)
    with workshop.store.lock(name), pytest.raises(QABuildError, match=f"another build of {workshop.artifact} is"):
        workshop.build()
    assert workshop.build().cached


# --- compile only -----------------------------------------------------------------------------------------------------


def test_compiling_only_keeps_an_artifact_that_is_proved_and_one_that_is_not(workshop):
    assert workshop.build(compile_only=True).verification.passed, "what was proved stays proved"
    verify(workshop.artifact)  # now the evidence is not that of a build
    evidence = (workshop.artifact / "verification.json").read_bytes()
    assert workshop.build(compile_only=True).cached
    assert (workshop.artifact / "verification.json").read_bytes() == evidence

    shutil.rmtree(workshop.artifact)
    built = workshop.build(compile_only=True)
    assert (built.cached, built.verification) == (False, None)
    assert not (workshop.artifact / "verification.json").exists()
    assert workshop.build(compile_only=True).cached
    assert workshop.build().verification.passed, "a whole build proves it"


def test_what_is_missing_is_told_before_any_work(workshop, monkeypatch):
    def version(name: str) -> str:
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "version", version)
    before = snapshot(workshop.folder)
    for compile_only in (False, True):
        with pytest.raises(MissingEnvironment, match="torch is not installed: pip install torch"):
            workshop.build("runtime.dtype=bf16", compile_only=compile_only)
    assert snapshot(workshop.folder) == before


# --- the compiler's process -------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint() -> Checkpoint:
    return resolve("sample")


def compile_with(interpreter: str, checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compile in a process that is this shell script instead of Python."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{interpreter}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return compiler.compile_in_child(checkpoint, backend("eager").Options(), Runtime(), folder)


@pytest.mark.parametrize(
    ("interpreter", "message", "hint"),
    [
        ("kill -9 $$", "the compiler was killed by signal 9 (Killed)", "memory"),
        ("kill -11 $$", "the compiler was killed by signal 11 (Segmentation fault)", "-v shows"),
        (
            "printf 'Traceback\\nValueError: odd\\n' >&2; exit 1",
            "the compiler ended with status 1: ValueError: odd",
            "-v",
        ),
        ("exit 0", "the compiler ended with status 0: nothing said", "-v"),
    ],
)
def test_a_compiler_that_dies_is_one_line_and_what_it_printed_is_kept(
    checkpoint, tmp_path, monkeypatch, interpreter, message, hint
):
    with pytest.raises(QABuildError) as caught:
        compile_with(interpreter, checkpoint, tmp_path, monkeypatch)
    assert caught.value.message == message
    assert hint in str(caught.value.hint)
    assert caught.value.__notes__[0].startswith("What the compiler printed last:")


def test_a_compiler_that_dies_of_a_full_disk_is_told_from_one_that_dies_of_itself(checkpoint, tmp_path, monkeypatch):
    died = "printf 'terminate called\nwhat(): No space left on device\n' >&2; kill -6 $$"
    with pytest.raises(OSError, match="No space left on device") as caught:
        compile_with(died, checkpoint, tmp_path, monkeypatch)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=4096))
    with pytest.raises(OSError, match="No space left on device"):
        compile_with("kill -6 $$", checkpoint, tmp_path, monkeypatch)


def test_what_the_backend_raises_is_raised_here(checkpoint, tmp_path, monkeypatch):
    answer = json.dumps({"error": "MissingEnvironment", "message": "no kernels", "hint": "install some"})
    with pytest.raises(MissingEnvironment, match="no kernels") as caught:
        compile_with(f"echo '{answer}'", checkpoint, tmp_path, monkeypatch)
    assert caught.value.hint == "install some"


def test_the_compiler_imports_nothing_that_lies_in_the_current_folder(finished):
    assert (finished.folder / "torch.py").is_file()
    assert finished.artifact.is_dir()


def test_the_sample_itself_is_never_written_to(finished):
    assert not (finished.artifact / "model.safetensors").samefile(sample.CHECKPOINT / "model.safetensors")
