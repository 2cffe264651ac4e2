"""Where answers depend on the batch, as in ONNX Runtime's dynamic int8, the worst of two batch sizes is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import contests
import proven
import pytest
import torch
from click.testing import CliRunner

import qabuild
from qabuild.artifact import readme
from qabuild.artifact.evidence import BatchAccuracy, evidence_of
from qabuild.artifact.manifest import open_artifact
from qabuild.builder.store.local import Store
from qabuild.cli import cli, results
from qabuild.evaluation.compare import compare, tables
from qabuild.evaluation.compare.score import score
from qabuild.models.backends import backend, eager
from qabuild.publishing import card

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[runtime]
dtype = "{dtype}"
[verify]
dataset = "sample"
samples = 40
cross_check = {cross_check}
batch_size = 4
[verify.gates]
min_f1_retention = 0.5
"""


def build(folder: Path, backend: str, dtype: str, cross_check: float = 0) -> Any:
    path = folder / f"{backend}.toml"
    path.write_text(TARGET.format(backend=backend, dtype=dtype, cross_check=cross_check), encoding="utf-8")
    return qabuild.build(path, folder / "artifacts", results=Store(folder / "store"))


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dynamically quantised artifact of the sample."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    return build(tmp_path_factory.mktemp("int8"), "onnxruntime", "int8", cross_check=1).directory


def test_dynamic_int8_is_measured_at_two_batch_sizes(int8):
    measurement = qabuild.verify(int8).measurement
    assert [accuracy.batch_size for accuracy in measurement.by_batch] == [4, 1]
    worst = min(measurement.by_batch, key=lambda accuracy: accuracy.f1)
    assert (measurement.batch_size, measurement.f1) == (worst.batch_size, worst.f1)
    assert measurement.agreement == pytest.approx(worst.agreement)


def test_loaded_it_answers_in_batches_that_were_verified(int8, monkeypatch):
    sizes = []
    pipeline = qabuild.load(int8)
    compute = pipeline.model.forward
    monkeypatch.setattr(
        pipeline.model, "forward", lambda **inputs: sizes.append(len(inputs["input_ids"])) or compute(**inputs)
    )
    pipeline([{"question": f"Who came {number}?", "context": "Ann came."} for number in range(10)])
    assert sizes == [4, 4, 2]


def test_the_command_answers_in_batches_that_were_verified(int8, tmp_path, monkeypatch):
    sizes = []
    module = backend("onnxruntime")
    load = module.load

    def watched(*arguments: Any) -> Any:
        model = load(*arguments)
        compute = model.forward
        model.forward = lambda **inputs: sizes.append(len(inputs["input_ids"])) or compute(**inputs)
        return model

    monkeypatch.setattr(module, "load", watched)
    rows = [{"id": str(number), "question": f"Who came {number}?", "context": "Ann came."} for number in range(10)]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    arguments = ["answer", str(int8), str(tmp_path / "questions.jsonl"), "-o", str(tmp_path / "answers.jsonl")]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    assert sizes == [4, 4, 2]


def test_compare_judges_the_same_answers_as_the_verification(int8):
    evidence = open_artifact(int8).evidence["measurement"]
    (measured,) = compare(int8).measured
    assert measured.accuracy.batch_size == evidence["batch_size"]
    assert measured.accuracy.f1 == pytest.approx(evidence["f1"])
    assert measured.failed_gates == []
    gates = {gate.name: gate.value for gate in measured.gates}
    assert gates["min_f1_retention"] == pytest.approx(evidence["f1_retention"])
    assert gates["same_as_verified"] == 1


@pytest.fixture(params=["alone", "together"])
def worse(request, monkeypatch):
    """Where eager PyTorch is made to answer wrongly: to windows alone in their batch, or that share one."""
    load = eager.load

    def spoilt(*arguments: Any) -> Any:
        model = load(*arguments)
        compute = model._modules.pop("compute")

        def reversed_logits(input_ids: torch.Tensor, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            start, end = compute(input_ids=input_ids, **inputs)[:2]
            return (-start, -end) if (len(input_ids) == 1) == (request.param == "alone") else (start, end)

        model.compute = reversed_logits
        return model

    monkeypatch.setattr(eager, "load", spoilt)
    return request.param


def test_answers_that_are_wrong_at_one_batch_size_fail(worse, tmp_path, monkeypatch):
    monkeypatch.setattr(eager, "BATCH_DEPENDENT", ("fp32",))
    verification = build(tmp_path, "eager", "fp32").verification
    failed = {gate.name for gate in verification.failed_gates}
    assert {"min_f1_retention", "min_agreement"} <= failed
    assert verification.measurement.batch_size == (1 if worse == "alone" else 4)


def test_the_answers_of_a_comparison_are_the_worst_of_a_run():
    asked = contests.questions()
    right, wrong = contests.answers(asked), contests.answers(asked, wrong=[1, 2, 3])
    one = contests.contestant("int8", asked, wrong, dtype="int8", gates={"min_f1_retention": 0.99})
    run = contests.run(one, asked, right, judged=(8, 1))
    assert "min_f1_retention" not in {
        gate.name for gate in score(contests.runs(run), asked, None).measured[0].failed_gates
    }
    alone = contests.run(one, asked, wrong).throughput[8]
    compared = score(contests.runs(replace(run, audit=alone[:2], judged={**run.judged, 1: alone})), asked, None)
    (measured,) = compared.measured
    assert [gate.name for gate in measured.failed_gates] == ["min_f1_retention"]
    assert measured.accuracy.batch_size == 1
    assert "at batch 1" in tables.rows(compared)[0][3]


def test_card_and_table_name_the_batch_size(tmp_path):
    artifact = open_artifact(proven.make(tmp_path / "tiny"))
    scores = {"exact_match": 50.0, "agreement": 0.5}
    by_batch = [BatchAccuracy(batch_size=8, f1=51.25, **scores), BatchAccuracy(batch_size=1, f1=50.0, **scores)]
    proven.verify(artifact, batch_size=1, by_batch=by_batch)
    verification = evidence_of(artifact)
    user = readme.UserContent()
    text = card.make(artifact, verification, user, repo="me/tiny", revision="main", base_license=None)
    assert "F1 is 51.25 at batch size 8, 50.00 at batch size 1. The table shows the worst, at 1." in text
    row = results._row(results.Outcome(label="tiny", document={}, error=None, verification=verification), [])
    assert row[3] == "50.00 % (>= 40) at batch 1"
