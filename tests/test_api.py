"""Every command has a function of its own in the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

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


def answered(**arguments: object) -> object:
    return qabuild.answer_file(**{"pipeline": dict, "questions": "q.jsonl", "answers": "a.jsonl", **arguments})


def answered_in_parts(**arguments: object) -> object:
    return qabuild.answer_dataset(**{"pipeline": dict, "questions": "q.jsonl", "answers": "out", **arguments})


BUILT = SimpleNamespace(directory="artifacts/x")
MISTAKES = {
    "load(built)": (lambda: qabuild.load(BUILT), "artifact: .* is neither text nor a path\n.*its `directory`"),
    "load(None)": (lambda: qabuild.load(None), "artifact: None is neither text nor a path"),
    "load(digest=12)": (lambda: qabuild.load("me/x", digest=12), "digest '12': not a SHA-256"),
    "verify(built)": (lambda: qabuild.verify(BUILT), "path: .* is neither text nor a path"),
    "compare([built])": (lambda: qabuild.compare([BUILT]), "artifacts: .* is neither text nor a path"),
    "compare(None)": (lambda: qabuild.compare(None), "artifacts: None is neither text nor a path"),
    "compare(samples=0)": (lambda: qabuild.compare("x", samples=0), "samples: 0 is too few"),
    "compare(samples='10')": (lambda: qabuild.compare("x", samples="10"), "samples: '10' is no number"),
    "compare(samples=10.5)": (lambda: qabuild.compare("x", samples=10.5), "samples: 10.5 is no whole number"),
    "compare(batch_sizes=4)": (lambda: qabuild.compare("x", batch_sizes=4), "batch_sizes: 4 is no list of numbers"),
    "compare(batch_sizes='1,32')": (lambda: qabuild.compare("x", batch_sizes="1,32"), "batch_sizes: '1,32' is no list"),
    "compare(batch_sizes=[0])": (lambda: qabuild.compare("x", batch_sizes=[0]), "batch_sizes: 0 is too few"),
    "export(built)": (lambda: qabuild.export(BUILT, "docker", "out"), "artifacts: .* is neither text nor a path"),
    "sbom(built)": (lambda: qabuild.sbom(BUILT), "path: .* is neither text nor a path"),
    "publish(built)": (lambda: qabuild.publish(BUILT), "path: .* is neither text nor a path"),
    "build({})": (lambda: qabuild.build({}), "target: {} is neither text nor a path"),
    "plan(None)": (lambda: qabuild.plan(None), "target: None is neither text nor a path"),
    "lock(None)": (lambda: qabuild.lock(None), "target: None is neither text nor a path"),
    "BatchAnswerer(built)": (lambda: qabuild.BatchAnswerer(BUILT), "artifact: .* is neither text nor a path"),
    "BatchAnswerer(parameters=[])": (lambda: qabuild.BatchAnswerer("x", parameters=["top_k"]), "parameters: .*top_k"),
    "answer_file(path)": (lambda: answered(pipeline="artifacts/x"), "pipeline: 'artifacts/x' cannot be called"),
    "answer_file(None)": (lambda: answered(pipeline=None), "pipeline: None cannot be called"),
    "answer_file(questions=7)": (lambda: answered(questions=7), "questions: 7 is neither text nor a path"),
    "answer_file(answers_format)": (lambda: answered(answers_format="JSONL"), "answers_format: 'JSONL' is not known"),
    "answer_file(questions_format)": (lambda: answered(questions_format="xml"), "questions_format: 'xml' is not known"),
    "answer_file(columns=text)": (lambda: answered(columns="question=frage"), "columns: .* is no dictionary"),
    "answer_file(columns=list)": (lambda: answered(columns=["question"]), "columns: .* is no dictionary"),
    "answer_file(columns=number)": (lambda: answered(columns={"id": 7}), "columns: id: Input should be a valid string"),
    "answer_file(columns=lists)": (lambda: answered(columns={"x": ["id"]}), "columns: 'x' is no part of a question"),
    "answer_file(parameters)": (lambda: answered(parameters=["top_k"]), "parameters: .* is no dictionary"),
    "answer_dataset(path)": (lambda: answered_in_parts(pipeline="artifacts/x"), "pipeline: .* cannot be called"),
    "answer_dataset(several)": (
        lambda: answered_in_parts(questions=["q.jsonl"]),
        "questions: .* neither text nor a path",
    ),
    "answer_dataset(shard=text)": (lambda: answered_in_parts(shard="0/3"), "shard: '0/3' is no pair of whole numbers"),
    "answer_dataset(shard=1)": (lambda: answered_in_parts(shard=1), "shard: 1 is no pair of whole numbers"),
    "answer_dataset(part_rows)": (lambda: answered_in_parts(part_rows="10"), "part_rows: '10' is no number"),
}


@pytest.mark.parametrize(("call", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistaken_argument_is_named(working_directory, call, problem):
    Path("q.jsonl").write_text(json.dumps({"id": 1, "question": "Who?", "context": "Ann."}))
    with pytest.raises(qabuild.BadTarget, match=problem) as caught:
        call()
    assert caught.value.hint
    assert [path.name for path in Path().iterdir()] == ["q.jsonl"]
