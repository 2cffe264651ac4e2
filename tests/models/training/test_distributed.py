"""Distributed training: several processes train one checkpoint, and rank 0 builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qabuild.artifact.manifest import open_artifact
from qabuild.builder.store.local import Store
from qabuild.models.training import curves
from qabuild.models.training.distributed import Ranks

TARGET = """\
[checkpoint]
model = "sample"
[train]
dataset = "sample"
samples = 120
held_out = 40
layers = [0, 2]
epochs = 2
batch_size = 16
learning_rate = 1e-3
dropout = 0.0
dtype = "fp32"
[prune]
dataset = "sample"
samples = 32
ffn = 0.5
round_to = 8
[prune.recover]
dataset = "sample"
samples = 48
batch_size = 16
dropout = 0.0
dtype = "fp32"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 4
"""


NAMES = ("loss", "f1")


def build(folder: Path, *launcher: str) -> tuple[Any, list[dict[str, Any]]]:
    """Build the target into `folder`; return the artifact and the training curves."""
    folder.mkdir()
    (folder / "x.toml").write_text(TARGET)
    done = subprocess.run(
        [*launcher, "-m", "qabuild", "x.toml", "--compile-only", "--json"],
        cwd=folder,
        env={**os.environ, "QABUILD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 1  # the other process prints nothing
    store = Store(folder / "cache")
    [trained] = [entry for entry in map(store.find, store.keys()) if entry and entry.step == "train"]
    return open_artifact(folder / "artifacts" / "x"), curves.read(trained.directory / curves.FILE)


@pytest.mark.timeout(900)
def test_two_processes_train_like_one(tmp_path):
    one, alone = build(tmp_path / "one", sys.executable)
    two, together = build(tmp_path / "two", sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    assert two.manifest.training["steps"] == one.manifest.training["steps"]
    assert [stage["stage"] for stage in two.manifest.stages] == ["prune", "recover"]
    assert two.manifest.stages[1]["steps"] == one.manifest.stages[1]["steps"]
    losses, scores = ([[line[name] for line in lines if name in line] for lines in (alone, together)] for name in NAMES)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert scores[1] == pytest.approx(scores[0], abs=6)  # points; one answer of some forty is 2.5


def test_without_a_launcher_there_is_one_rank():
    ranks = Ranks({})
    assert (ranks.rank, ranks.count) == (0, 1)
    assert ranks.announce({"step": "train"}) == {}
