"""Every command has a function of its own in the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qabuild
from qabuild.qa import sample

TARGET = """\
[checkpoint]
model = "sample"

[backend]
name = "eager"

[verify]
dataset = "./questions.json"
samples = 8
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The file of a target that needs nothing but what the package holds, and its questions."""
    shutil.copyfile(sample.HELDOUT, tmp_path / "questions.json")
    path = tmp_path / "tiny.toml"
    path.write_text(TARGET)
    return path


def test_all_names_are_there_and_listed():
    assert {name for name in qabuild.__all__ if not hasattr(qabuild, name)} == set()
    assert set(qabuild.__all__) <= set(dir(qabuild))
    with pytest.raises(AttributeError, match="no attribute 'pln'"):
        _ = qabuild.pln  # type: ignore[attr-defined]


def test_a_plan_says_what_a_build_would_do(target, tmp_path):
    plan = qabuild.plan(target, tmp_path / "artifacts")
    assert isinstance(plan, qabuild.Plan)
    assert {step.name: step.cached for step in plan.steps if step.name != "checkpoint"} == {
        "compile": False,
        "reference": False,
        "verify": False,
    }
    assert not (tmp_path / "artifacts").exists()


def test_a_target_is_locked_built_and_asked(target, tmp_path):
    lock = qabuild.lock(target)
    assert isinstance(lock, qabuild.Lock)
    assert lock.checkpoint.digest in target.with_suffix(".lock").read_text()
    built = qabuild.build(target, tmp_path / "artifacts", locked=True)
    assert qabuild.plan(target, tmp_path / "artifacts", locked=True).step("verify").cached
    questions = tmp_path / "asked.jsonl"
    asked = {"id": "1", "question": "Who built it?", "context": "Ann Vole built the mill in 1871."}
    questions.write_text(json.dumps(asked) + "\n")
    summary = qabuild.answer_file(qabuild.load(built.directory), questions, tmp_path / "answers.jsonl")
    assert (summary.answered, summary.bad) == (1, 0)
    (answer,) = map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    assert answer["answer"] in asked["context"]


def test_a_lock_that_no_longer_fits_is_refused(target, tmp_path):
    with pytest.raises(qabuild.BadTarget, match="no such lock file"):
        qabuild.plan(target, locked=True)
    qabuild.lock(target)
    target.write_text(TARGET.replace("questions.json", "other.json"))
    with pytest.raises(qabuild.BadTarget, match=r"dataset questions\.json became other\.json"):
        qabuild.plan(target, locked=True)
