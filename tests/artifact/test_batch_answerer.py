"""A `qabuild.BatchAnswerer` answers as `qabuild answer` does, in whichever process it is called."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

import qabuild
from qabuild.artifact import artifact_ref
from qabuild.artifact.manifest import open_artifact
from qabuild.qa import data

Rows = list[dict[str, Any]]


@pytest.fixture
def questions() -> pyarrow.Table:
    """Questions of the sample, and two bad rows."""
    asked = data.load(data.DatasetRef("sample", split="validation")).questions[:6]
    rows: Rows = [{"id": n, "question": row.question, "context": row.context} for n, row in enumerate(asked)]
    bad: Rows = [{"id": 6, "question": "Who?", "context": ""}, {"id": 7, "question": None, "context": "Arvik"}]
    return pyarrow.Table.from_pylist([*rows[:3], *bad, *rows[3:]])


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the artifacts that this process loads from now on."""
    loaded = []

    def load_pipeline(artifact: Any, **named: Any) -> Any:
        loaded.append(artifact.directory)
        return original(artifact, **named)

    original = artifact_ref.load_pipeline
    monkeypatch.setattr(artifact_ref, "load_pipeline", load_pipeline)
    artifact_ref._load.cache_clear()
    return loaded


def test_a_batch_gets_the_answers_of_the_command(tmp_path: Path, artifact: Path, questions: pyarrow.Table) -> None:
    parameters = {"top_k": 2, "max_answer_len": 4}
    parquet.write_table(questions, tmp_path / "q.parquet")
    summary = qabuild.answer_dataset(
        qabuild.load(artifact), tmp_path / "q.parquet", tmp_path / "out", parameters=parameters
    )
    assert (summary.answered, summary.bad) == (6, 2)
    answerer = qabuild.BatchAnswerer(artifact, digest=open_artifact(artifact).digest, parameters=parameters)
    assert answerer(questions).equals(parquet.read_table(tmp_path / "out" / "part-00000.parquet"))


def test_columns_of_other_names_are_answered(artifact: Path) -> None:
    batch = {"frage": ["Who repaired it?"], "text": ["It was repaired by Alma Serin."]}
    answers = qabuild.BatchAnswerer(artifact, columns={"question": "frage", "context": "text"})(batch)
    assert answers["answer"][0] in batch["text"][0]
    with pytest.raises(qabuild.BadTarget, match=r"'kontext' is no part of a question\n.*id, question, context"):
        qabuild.BatchAnswerer(artifact, columns={"kontext": "text"})


def test_the_artifact_is_loaded_by_the_first_call_and_once(
    artifact: Path, questions: pyarrow.Table, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(artifact.parent)
    answerer = qabuild.BatchAnswerer(artifact.name)
    copies = [pickle.loads(pickle.dumps(answerer)) for _ in range(2)]
    monkeypatch.chdir("/")
    assert loads == []
    for copy in (answerer, *copies):
        copy(questions.slice(0, 1))
    assert loads == [artifact]
    qabuild.BatchAnswerer(artifact, parameters={"top_k": 2})(questions.slice(0, 1))
    assert loads == [artifact]


def test_a_fork_loads_the_artifact_for_itself(artifact: Path, questions: pyarrow.Table, loads: list[Path]) -> None:
    """The threads of a runtime do not survive a fork."""
    answerer = qabuild.BatchAnswerer(artifact)
    expected = answerer(questions)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=lambda: results.put((answerer(questions), len(loads))))
    process.start()
    answers, count = results.get(timeout=120)
    process.join()
    assert answers.equals(expected)
    assert (count, len(loads)) == (2, 1)


def test_another_artifact_than_the_required_one_is_refused(artifact: Path, questions: pyarrow.Table) -> None:
    answerer = qabuild.BatchAnswerer(artifact, digest="0" * 64)
    for _ in range(2):
        with pytest.raises(qabuild.UntrustedInput):
            answerer(questions)


def test_an_artifact_that_was_replaced_is_loaded_by_new_answerers_and_refused_by_old_ones(
    tmp_path: Path, artifact: Path, questions: pyarrow.Table, loads: list[Path]
) -> None:
    place = tmp_path / "live"
    shutil.copytree(artifact, place)
    used, unused = qabuild.BatchAnswerer(place), qabuild.BatchAnswerer(place, parameters={"top_k": 2})
    expected = used(questions)
    manifest = (place / "manifest.json").read_text()
    (place / "manifest.json").write_text(f"{manifest} ")
    (place / "verification.json").unlink()
    assert used(questions).equals(expected)
    assert qabuild.BatchAnswerer(place, allow_unverified=True)(questions).equals(expected)
    assert loads == [place, place]
    artifact_ref._load.cache_clear()  # as in another worker
    with pytest.raises(qabuild.UntrustedInput, match="its digest is"):
        unused(questions)


def test_a_folder_that_is_no_artifact_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(qabuild.BadTarget, match="not an artifact"):
        qabuild.BatchAnswerer(tmp_path)


def test_a_damaged_artifact_is_refused(tmp_path: Path, artifact: Path, questions: pyarrow.Table) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(artifact, damaged)
    (damaged / "config.json").write_text("{}")
    with pytest.raises(qabuild.UntrustedInput, match=r"config\.json"):
        qabuild.BatchAnswerer(damaged)(questions)


def test_parameters_that_the_model_does_not_take_are_refused(artifact: Path, questions: pyarrow.Table) -> None:
    with pytest.raises(qabuild.BadTarget, match="doc_stride"):
        qabuild.BatchAnswerer(artifact, parameters={"max_seq_len": 64, "doc_stride": 64})(questions)


def test_a_data_set_is_answered_by_map(artifact: Path, questions: pyarrow.Table) -> None:
    from datasets import Dataset

    dataset = Dataset.from_list(questions.to_pylist()).with_format("arrow")
    answerer = qabuild.BatchAnswerer(artifact)
    answers = dataset.map(answerer, batched=True, batch_size=3, remove_columns=dataset.column_names).with_format(None)
    assert [row["error"] for row in answers][2:5] == [None, "row 0.context is blank", "row 1.question is blank"]
    assert [row["answer"] for row in answers] == answerer(questions)["answer"].to_pylist()
    assert [row["id"] for row in answers] == questions["id"].to_pylist()
