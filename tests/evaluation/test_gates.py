"""Gates in points of F1 and with a confidence level, against the checkpoint and against the original."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qabuild
from qabuild.artifact.evidence import Measurement, Verification
from qabuild.artifact.judge import explain_failure, judge, questions_to_tell
from qabuild.artifact.manifest import open_artifact
from qabuild.artifact.validation import judged_evidence
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.evaluation.bootstrap import mean_interval
from qabuild.evaluation.verify import verify
from qabuild.target.gates import Gates
from qabuild.target.read import load

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 48
cross_check = 0
"""
TRAINED = TARGET + '[train]\ndataset = "sample"\nsamples = 16\nepochs = 1\nlearning_rate = 1e-2\ndtype = "fp32"\n'

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """`build(TARGET, "key=value")`: what `qabuild.build` returns; results are shared."""
    folder = tmp_path_factory.mktemp("gates")

    def make(text: str, *overrides: str) -> Any:
        (folder / "x.toml").write_text(text)
        return qabuild.build(load(folder / "x.toml", overrides), folder / "artifacts", results=Store(folder / "store"))

    return make


def lost(measurement: Measurement, *drops: float) -> Measurement:
    """The measurement, as if these questions had lost so much of their F1, in points, and the others nothing."""
    differences = [-drop for drop in drops] + [0.0] * (measurement.questions - len(drops))
    difference = sum(differences) / len(differences)
    return replace(
        measurement,
        checkpoint_f1=80.0,
        f1=80.0 + difference,
        f1_difference=difference,
        f1_difference_interval=mean_interval(differences),
        f1_difference_bounds=mean_interval(differences, 0.9),
        agreement=1.0,
    )


def failed(verification: Verification) -> set[str]:
    return {gate.name for gate in verification.failed_gates}


def test_a_drop_in_points_is_held_to_its_limit(build):
    artifact = open_artifact(build(TARGET).directory)
    measured = lost(Verification.from_dict(artifact.evidence or {}).measurement, 24.0)  # 0.5 of 48 questions
    assert not failed(judge(artifact, measured, Gates(max_f1_drop=0.51)))
    assert failed(judge(artifact, measured, Gates(max_f1_drop=0.49))) == {"max_f1_drop"}


def test_with_a_confidence_the_end_of_the_interval_counts_and_the_questions_that_it_takes_are_told(build):
    artifact = open_artifact(build(TARGET).directory)
    measured = lost(Verification.from_dict(artifact.evidence or {}).measurement, 12.0, 12.0)
    worst = -measured.f1_difference_bounds[0]
    sure, unsure = (
        judge(artifact, measured, Gates(max_f1_drop=limit, min_f1_retention=0.9, confidence=0.9))
        for limit in (worst + 0.01, worst - 0.01)
    )
    assert not failed(sure)
    assert questions_to_tell(sure) is None
    assert failed(unsure) == {"max_f1_drop"}
    assert questions_to_tell(unsure) > 48
    message, hint = explain_failure(unsure, artifact.directory)
    assert re.search(r"max_f1_drop: [\d.]+ with 90 % confidence, must be at most ", message)
    assert "48 questions are too few to tell" in hint
    lost_for_sure = judge(artifact, measured, Gates(max_f1_drop=0.4, min_f1_retention=0.9, confidence=0.9))
    assert questions_to_tell(lost_for_sure) is None, "it fails by what was measured, however many questions there are"
    kept = judge(artifact, measured, Gates(min_f1_retention=1 - (worst - 0.01) / 80, confidence=0.9))
    assert failed(kept) == {"min_f1_retention"}
    assert questions_to_tell(kept) == questions_to_tell(unsure)


def test_a_build_measures_at_the_confidence_of_its_gates(build):
    built = build(TARGET, "verify.gates.confidence=0.8")
    m = built.verification.measurement
    assert m.f1_difference_bounds == (0, 0), "eager in fp32 answers as its checkpoint does"
    assert [gate.confidence for gate in built.verification.gates if gate.name == "min_f1_retention"] == [0.8]
    assert build(TARGET, "verify.gates.confidence=0.8").cached
    assert verify(built.directory).measurement.f1_difference_bounds == (0, 0)
    assert build(TARGET).verification.measurement.f1_difference_bounds is None


# --- the original ---------------------------------------------------------------------------------------------------


def test_what_was_trained_is_compared_with_the_checkpoint_before_it(build):
    plain = build(TARGET).verification.measurement
    passed = build(TRAINED, "verify.gates.max_f1_drop_from_original=100")
    original = passed.verification.measurement.original
    assert (original.exact_match, original.f1) == (plain.checkpoint_exact_match, plain.checkpoint_f1)
    assert original.f1_difference == passed.verification.measurement.f1 - original.f1 < 0
    assert passed.plan.has("original")
    again = verify(passed.directory).measurement.original
    assert again == original, "the artifact holds the original's answers"

    refused = build(TRAINED, "verify.gates.max_f1_drop_from_original=0.01")
    assert refused.directory.name == "x.failed"
    assert failed(refused.verification) == {"max_f1_drop_from_original"}
    assert "train on more questions" in explain_failure(refused.verification, refused.directory)[1]


def test_without_such_a_gate_or_a_teacher_nothing_compares(build):
    assert not build(TRAINED).plan.has("original")
    with pytest.raises(BadTarget, match=r"max_f1_drop_from_original: .*nothing trains it"):
        build(TARGET, "verify.gates.max_f1_drop_from_original=1")


def forged(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        document = json.loads((folder / "verification.json").read_text())
        change(document["measurement"])
        (folder / "verification.json").write_text(json.dumps(document))

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (forged(lambda m: m.update(original=None)), "original is missing"),
        (forged(lambda m: m["original"].update(f1=m["f1"])), "original.f1_difference"),
        (forged(lambda m: m["original"].update(f1=m["f1"], f1_difference=0.0)), "f1_difference_interval"),
        (forged(lambda m: m["original"].update(exact_match=101.0)), "exact_match"),
        (forged(lambda m: m["original"].update(f1_difference_bounds=None)), "f1_difference_bounds is None"),
        (forged(lambda m: m.update(f1_difference_bounds=[0.5, 0.6])), "f1_difference_bounds is out of order"),
    ],
)
def test_edited_evidence_of_the_original_does_not_hold(build, tmp_path, edit, expected):
    gates = ("verify.gates.max_f1_drop_from_original=100", "verify.gates.confidence=0.8")
    copy = shutil.copytree(build(TRAINED, *gates, "verify.gates.min_f1_retention=0").directory, tmp_path / "copy")
    assert judged_evidence(open_artifact(copy)) is not None
    edit(copy)
    with pytest.raises(UntrustedInput, match=expected):
        judged_evidence(open_artifact(copy))
