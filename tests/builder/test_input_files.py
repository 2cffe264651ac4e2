"""Inputs that are replaced while a build reads them: what was made of them counts for nothing."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import qabuild
from qabuild.builder.store.local import Store
from qabuild.errors import QABuildError
from qabuild.qa import sample
from qabuild.system.reporter import Silent

HEAD = """\
[checkpoint]
model = "./weights"
[backend]
name = "eager"
"""
TRAINING = """\
[train]
dataset = "./learnt.json"
samples = 64
epochs = 1
held_out = 0
"""
VERIFICATION = """\
[verify]
dataset = "./questions.json"
samples = 8
cross_check = 0
[verify.gates]
min_f1_retention = 0.0
"""


@dataclass
class Swap(Silent):
    """Replaces a file when a step begins, and puts it back when `back` does, if it ever does."""

    step: str
    path: Path
    content: bytes
    back: str = ""

    def __post_init__(self) -> None:
        self.before = self.path.read_bytes()

    def say(self, message: str) -> None:
        if self.content and message.startswith(f"{self.step}: "):
            self.path.write_bytes(self.content)
            self.content = b""
        elif self.back and self.back in message:
            self.path.write_bytes(self.before)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a checkpoint, questions and a target in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sample.CHECKPOINT, "weights")
    shutil.copyfile(sample.HELDOUT, "questions.json")
    shutil.copyfile(sample.TRAIN, "learnt.json")
    Path("t.toml").write_text(f"{HEAD}{TRAINING}{VERIFICATION}")
    Path("plain.toml").write_text(f"{HEAD}{VERIFICATION}")
    return tmp_path


def fewer(path: str) -> bytes:
    """The file's questions without those of its last paragraph."""
    document = json.loads(Path(path).read_bytes())
    document["data"][-1]["paragraphs"].pop()
    return json.dumps(document).encode()


def other_weights() -> bytes:
    """Weights of the same size, in which one value differs."""
    content = bytearray(Path("weights/model.safetensors").read_bytes())
    content[-2] ^= 1
    return bytes(content)


@pytest.mark.parametrize("back", ["", "epoch"])
def test_a_training_that_read_other_questions_counts_for_nothing(folder, back):
    swap = Swap("train", Path("learnt.json"), fewer("learnt.json"), back)
    with pytest.raises(QABuildError, match=r"train: .*learnt\.json was changed while this was made"):
        qabuild.build("t.toml", reporter=swap)
    swap.path.write_bytes(swap.before)
    assert not Store().unfinished(), "nothing is left to go on from"
    again = qabuild.build("t.toml", "again")
    clean = qabuild.build("t.toml", "clean", results=Store(folder / "empty"))
    assert again.manifest == clean.manifest


@pytest.mark.parametrize("step", ["compile", "reference"])
def test_a_checkpoint_that_was_replaced_meanwhile_is_not_sealed(folder, step):
    swap = Swap(step, Path("weights/model.safetensors"), other_weights())
    with pytest.raises(QABuildError, match=rf"{step}: .*model\.safetensors was changed while this was made"):
        qabuild.build("plain.toml", reporter=swap)
    assert not Path("artifacts/plain").exists()
    swap.path.write_bytes(swap.before)
    again = qabuild.build("plain.toml", "again")
    assert again.manifest == qabuild.build("plain.toml", "clean", results=Store(folder / "empty")).manifest


def test_questions_that_were_replaced_meanwhile_are_not_sealed(folder):
    swap = Swap("reference", Path("questions.json"), fewer("questions.json"))
    with pytest.raises(QABuildError, match=r"reference: .*questions\.json was changed while this was made"):
        qabuild.build("plain.toml", reporter=swap)
    swap.path.write_bytes(swap.before)
    again = qabuild.build("plain.toml", "again")
    assert again.manifest == qabuild.build("plain.toml", "clean", results=Store(folder / "empty")).manifest


def test_other_files_may_change_meanwhile(folder):
    """As a log of the build in the checkpoint's folder, or a link to the questions."""
    Path("weights/build.log").write_text("")
    os.link("questions.json", "link.json")
    swap = Swap("compile", Path("weights/build.log"), b"compile: not built before")
    assert qabuild.build("plain.toml", reporter=swap).verification.passed
    assert not swap.content, "it was changed"
