"""Which of the artifacts that keep the answers wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import contests
import pytest

from qabuild.artifact.evidence import Gate
from qabuild.evaluation.compare.score import score
from qabuild.models.forms import Form
from qabuild.models.runtime import Runtime
from qabuild.system.reporter import SILENT
from qabuild.tuning import selection
from qabuild.tuning.budget import Budget
from qabuild.tuning.candidates import Candidate
from qabuild.tuning.table import Table

FORMS = {
    "eager-fp32": ("eager", "fp32", {}),
    "onnxruntime-int8": ("onnxruntime", "int8", {}),
    "openvino-bf16": ("openvino", "bf16", {}),
    "torch-export-fp32-aot": ("torch_export", "fp32", {"aot": True}),
}


def table(names, seconds=1800.0):
    made = Table(Budget(seconds), "throughput", SILENT)
    for name in names:
        backend, dtype, variant = FORMS[name]
        form = Form(backend=backend, variant=variant, runtime=Runtime(dtype=dtype))
        made.add(Candidate(form=form, pruned={}, file=Path(f"{name}.toml")))
    return made


def comparison(paces, noise=0.01):
    """Artifacts that take so many seconds a question, and a lognormal noise in each round."""
    asked = contests.questions(320)
    said = contests.answers(asked)
    made = [
        contests.run(
            contests.contestant(name, asked, said), asked, said, seconds_per_question=pace, noise=noise, seed=seed
        )
        for seed, (name, pace) in enumerate(paces.items())
    ]
    return score(contests.runs(*made), asked, None)


def test_the_fastest_wins_and_the_others_are_told_how_far_they_are_behind():
    paces = {"eager-fp32": 0.02, "openvino-bf16": 0.01, "onnxruntime-int8": 0.005}
    book = table(paces)
    winner, remarks = selection.choose(comparison(paces), "throughput", book)
    assert winner is not None
    assert winner.name == "onnxruntime-int8"
    assert book.entries["onnxruntime-int8"].result == "winner"
    assert book.entries["openvino-bf16"].result.startswith(("the winner is 2.0", "the winner is 1.9"))
    assert remarks == []


@pytest.mark.parametrize(
    ("one", "simpler"),
    [
        ("onnxruntime-int8", "openvino-bf16"),  # wider numbers
        ("torch-export-fp32-aot", "openvino-bf16"),  # no native code
        ("openvino-bf16", "eager-fp32"),
    ],
)
def test_of_two_that_cannot_be_told_apart_the_simpler_wins(one, simpler):
    paces = {one: 0.0100, simpler: 0.0101}
    book = table(paces)
    book.settle(book.candidates[simpler], "passed", questions=2000)
    winner, remarks = selection.choose(comparison(paces, noise=0.1), "throughput", book)
    assert winner is not None
    assert winner.name == simpler
    assert "equal to the winner, which is simpler" in book.entries[one].result
    assert len(remarks) == 1
    assert "too noisy to tell" in remarks[0]
    assert "--samples 1280" in remarks[0]
    book.settle(book.candidates[simpler], "passed", questions=320)
    _, (remark,) = selection.choose(comparison(paces, noise=0.1), "throughput", book)
    assert "--samples" not in remark, "there are no more questions"


def test_a_narrow_interval_is_no_noise():
    paces = {"onnxruntime-int8": 0.01, "openvino-bf16": 0.01}
    winner, remarks = selection.choose(comparison(paces, noise=0.01), "throughput", table(paces))
    assert winner is not None
    assert (winner.name, remarks) == ("openvino-bf16", [])


def test_what_was_expected_to_be_slow_and_is_not_is_said():
    book = table(["eager-fp32", "openvino-bf16", "onnxruntime-int8"])
    tried = list(book.candidates.values())
    known = {"eager-fp32": (1.0, 0.99), "openvino-bf16": (0.6, 2.5), "onnxruntime-int8": (4.0, 2.0)}
    for name, (expected, speedup) in known.items():
        book.entries[name] = replace(book.entries[name], expected=expected, speedup=speedup)
    first, second = selection.surprises(tried, book)
    assert first == "int8 was expected to be the fastest dtype on this processor, and openvino-bf16 is faster"
    assert second.startswith("openvino-bf16 was expected to be 0.6 times as fast as eager fp32 here, and is 2.5")
    for name, interval in {"openvino-bf16": (1.9, 3.1), "onnxruntime-int8": (1.5, 2.6)}.items():
        book.entries[name] = replace(book.entries[name], speedup_interval=interval)
    assert selection.surprises(tried, book) == [second], "it may be chance that it was faster"


def test_what_does_not_answer_as_it_was_verified_cannot_win():
    paces = {"eager-fp32": 0.02, "onnxruntime-int8": 0.005}
    compared, book = comparison(paces), table(paces)
    gate = Gate(name="same_as_verified", limit=1.0, value=0.5, passed=False, bound="at least")
    slow, fast = compared.measured
    winner, _ = selection.choose(replace(compared, measured=[slow, replace(fast, gates=[gate])]), "throughput", book)
    assert winner is not None
    assert winner.name == "eager-fp32"
    assert "same_as_verified: 0.5, must be at least 1" in book.entries["onnxruntime-int8"].result
    failed = [replace(each, gates=[gate]) for each in compared.measured]
    assert selection.choose(replace(compared, measured=failed), "throughput", table(paces)) == (None, [])


def test_what_the_budget_did_not_suffice_for_is_named():
    book = table(["eager-fp32", "openvino-bf16"], seconds=90)
    assert selection.late(book, Budget(90)) == []
    book.too_late(book.candidates["openvino-bf16"], "tried")
    assert book.entries["openvino-bf16"].result == "not tried within 90 s"
    assert "openvino-bf16" in selection.late(book, Budget(90))[0]
