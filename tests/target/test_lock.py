"""Locks: a locked target reads the same bytes, or reports that they changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub import Hub

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models import calibration
from qabuild.models.checkpoint.resolve import resolve
from qabuild.qa import data, sample
from qabuild.target import lock
from qabuild.target.lineage import Derived
from qabuild.target.read import load as load_target

TARGET = """\
[checkpoint]
model = "./weights"

[backend]
name = "eager"

[verify]
dataset = "./questions.json"
samples = 8
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A locked target whose checkpoint and questions are copies of the sample."""
    shutil.copytree(sample.CHECKPOINT, tmp_path / "weights")
    shutil.copyfile(sample.HELDOUT, tmp_path / "questions.json")
    path = tmp_path / "x.toml"
    path.write_text(TARGET, encoding="utf-8")
    assert lock.write(lock.make(load_target(path)), lock.path_of(path))
    return path


def test_a_locked_target_is_read_with_its_pins(target):
    locked = lock.load(target, locked=True)
    assert locked.checkpoint.digest == resolve(sample.CHECKPOINT).digest
    assert locked.verify.fingerprint == data.load(data.DatasetRef("sample")).fingerprint, (
        "the fingerprint covers the entire split, not the 8 samples"
    )
    assert lock.load(target) == locked, "a lock applies without --locked as well"


def test_locking_again_changes_nothing_and_reports_that(target):
    before = lock.path_of(target).read_bytes()
    assert not lock.write(lock.make(load_target(target)), lock.path_of(target))
    assert lock.path_of(target).read_bytes() == before


def test_a_lock_holds_no_path_of_this_machine(target):
    assert str(target.parent) not in lock.path_of(target).read_text(encoding="utf-8")


def test_a_lock_moves_with_its_target(target, tmp_path_factory):
    moved = shutil.copytree(target.parent, tmp_path_factory.mktemp("moved") / "copy")
    assert lock.load(moved / "x.toml", locked=True).checkpoint.digest


def test_changed_weights_are_refused(target):
    locked = lock.load(target)
    config = json.loads((target.parent / "weights" / "config.json").read_text())
    (target.parent / "weights" / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    with pytest.raises(UntrustedInput, match="lock the target again"):
        resolve(locked.checkpoint.model, digest=locked.checkpoint.digest)


def test_changed_questions_are_refused_even_if_the_samples_are_the_same(target):
    locked = lock.load(target)
    questions = json.loads((target.parent / "questions.json").read_text())
    questions["data"].append({"title": "x", "paragraphs": [{"context": "It is red.", "qas": []}]})
    questions["data"][-1]["paragraphs"][0]["qas"] = [
        {"id": "new", "question": "What is it?", "answers": [{"text": "red", "answer_start": 6}]}
    ]
    (target.parent / "questions.json").write_text(json.dumps(questions))
    with pytest.raises(UntrustedInput, match="lock the target again"):
        data.load(data.DatasetRef(locked.verify.dataset, samples=8, fingerprint=locked.verify.fingerprint))


def test_a_pin_that_no_longer_matches_the_target_is_ignored(target):
    target.write_text(TARGET.replace("./weights", "sample"), encoding="utf-8")
    locked = lock.load(target)
    assert (locked.checkpoint.model, locked.checkpoint.digest) == ("sample", None)
    assert locked.verify.fingerprint
    with pytest.raises(BadTarget, match="model weights became sample"):
        lock.load(target, locked=True)


def test_locked_requires_a_lock(target):
    lock.path_of(target).unlink()
    assert lock.load(target).checkpoint.digest is None
    with pytest.raises(BadTarget, match="qabuild lock"):
        lock.load(target, locked=True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "checkpoint: Field required"),
        (b"\xff", "'utf-8' codec"),
        (b"checkpoint = 3", "checkpoint: Input should be"),
        (b"[checkpoint", "Expected ']'"),
        (b"[checkpoint]\nmodel = 'sample'\n", "checkpoint.digest: Field required"),
    ],
)
def test_a_damaged_lock_is_refused(target, content, problem):
    lock.path_of(target).write_bytes(content)
    with pytest.raises(BadTarget, match=rf"x\.lock: damaged: {problem}"):
        lock.load(target)


def test_a_folder_at_the_path_of_a_lock_is_reported(target):
    pins = lock.read(lock.path_of(target))
    lock.path_of(target).unlink()
    lock.path_of(target).mkdir()
    for use in (lambda: lock.load(target), lambda: lock.write(pins, lock.path_of(target))):
        with pytest.raises(BadTarget, match=r"x\.lock: a folder, but the lock file of .*x\.toml is expected there"):
            use()


def test_a_lock_is_written_through_a_symbolic_link(target):
    pins = lock.read(lock.path_of(target))
    lock.path_of(target).unlink()
    lock.path_of(target).symlink_to("elsewhere.lock")
    assert lock.write(pins, lock.path_of(target))
    assert lock.path_of(target).is_symlink()
    assert lock.read(target.parent / "elsewhere.lock") == pins


def test_every_input_of_a_trained_checkpoint_is_pinned(target):
    (target.parent / "teacher.toml").write_text(TARGET + '[train]\ndataset = "./questions.json"\n', encoding="utf-8")
    student = TARGET.replace("./weights", "sample") + '[train]\ndataset = "sample"\n[distill.teacher]\n'
    target.write_text(f'{student}target = "teacher"\n', encoding="utf-8")
    with pytest.raises(BadTarget, match=r"questions\.json is not pinned"):
        lock.load(target, locked=True)
    assert lock.write(lock.make(load_target(target)), lock.path_of(target))
    origin = lock.load(target, locked=True).origin
    assert isinstance(origin, Derived)
    assert isinstance(origin.teacher, Derived)
    assert origin.start.digest == origin.teacher.start.digest == resolve("sample").digest
    assert origin.target.training.fingerprint == data.load(data.DatasetRef("sample", split="train")).fingerprint
    assert origin.teacher.target.training.fingerprint == data.load(data.DatasetRef("sample")).fingerprint


def test_calibration_questions_are_pinned_where_calibration_reads_them(target):
    content = TARGET.replace('name = "eager"', 'name = "openvino"\ncalibration = "./calibration.json"')
    shutil.copyfile(sample.TRAIN, target.parent / "calibration.json")
    target.write_text(content, encoding="utf-8")
    assert lock.load(target, locked=True).backend.calibration_fingerprint is None, "fp32 is not calibrated"
    target.write_text(f'{content}[runtime]\ndtype = "int8"\n', encoding="utf-8")
    with pytest.raises(BadTarget, match=r"calibration\.json is not pinned"):
        lock.load(target, locked=True)
    assert lock.write(lock.make(load_target(target)), lock.path_of(target))
    options = lock.load(target, locked=True).backend
    assert options.calibration_fingerprint == calibration.questions(options).fingerprint
    assert calibration.options_record(options) == calibration.options_record(load_target(target).backend), (
        "locking rebuilds nothing"
    )
    shutil.copyfile(sample.HELDOUT, target.parent / "calibration.json")
    with pytest.raises(UntrustedInput, match="lock the target again"):
        calibration.questions(options)


@pytest.mark.hub
def test_a_hub_id_stays_pinned_to_its_commit_after_the_branch_moves(tmp_path):
    """With the real client, in subprocesses: it reads HF_ENDPOINT when it is imported."""
    files = {path.name: path.read_bytes() for path in sample.CHECKPOINT.iterdir()}
    path = tmp_path / "x.toml"
    path.write_text(TARGET.replace("./weights", "qa/tiny"), encoding="utf-8")
    shutil.copyfile(sample.HELDOUT, tmp_path / "questions.json")
    with Hub() as hub:
        first = hub.commit("model", "qa/tiny", files)

        def run(code: str) -> str:
            environment = {**os.environ, **hub.environment(tmp_path)}
            setup = (
                "from pathlib import Path\nfrom qabuild.models.checkpoint import resolve\n"
                f"from qabuild.target import lock, read\npath = Path({str(path)!r})\n"
            )
            command = [sys.executable, "-c", setup + code]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

        make = "pins = lock.make(read.load(path)); print(pins.checkpoint.commit)"
        assert run(f"{make}; lock.write(pins, lock.path_of(path))") == first
        second = hub.commit("model", "qa/tiny", {**files, "config.json": files["config.json"] + b"\n"})
        assert run(make) == second
        source = "source = lock.load(path, locked=True).checkpoint\n"
        resolve = "resolve.resolve(source.model, source.revision, digest=source.digest).revision"
        assert run(f"{source}print({resolve})") == first
