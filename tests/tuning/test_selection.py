"""Which of the artifacts that keep the answers wins."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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


def test_headline_and_rows_give_the_ratio_that_decided():
    paces = {"openvino-bf16": 0.01, "onnxruntime-int8": 0.005}
    book = table(paces)
    # each verification was at another time: by them, the slower one is faster
    for name, speedup in {"openvino-bf16": 6.0, "onnxruntime-int8": 5.0}.items():
        book.settle(
            book.candidates[name],
            "passed",
            speedup=speedup,
            speedup_interval=(4.9, 6.1),
            f1_drop=0.1,
            f1_drop_interval=(0.0, 0.2),
            questions=320,
            size=17_200_000,
        )
    compared = comparison(paces)
    job = SimpleNamespace(start=SimpleNamespace(max_f1_drop=0.5), objective="throughput")
    winner, _ = selection.choose(compared, "throughput", book)
    assert winner is not None
    selection.level(winner, compared, {}, book)
    fast, slow = book.entries["onnxruntime-int8"], book.entries["openvino-bf16"]
    assert (fast.speedup, slow.speedup) == (5.0, pytest.approx(2.5, rel=0.05))
    assert slow.speedup_interval is not None
    assert 2.3 < slow.speedup_interval[0] < slow.speedup < slow.speedup_interval[1] < 2.7
    why = selection.why(winner, compared, job, book)
    assert why.startswith("of 2 candidates the fastest that loses at most 0.5 points of F1 on ")
    assert ": 5.00 [4.90, 6.10] times as fast as the checkpoint in eager fp32, " in why
    assert re.search(r", (1\.9|2\.0)\d \[.*\] times as fast as openvino-bf16, 0\.10 \[", why)

    job.objective = "size"
    assert "the simplest of 2 that are equally small and lose" in selection.why(winner, compared, job, book)
    assert ": 17.2 MB, 5.00 [4.90, 6.10] times as fast in batches as the checkpoint" in selection.why(
        winner, compared, job, book
    )


def test_of_equals_the_headline_says_that_the_simplest_won():
    paces = {"openvino-bf16": 0.0101, "onnxruntime-int8": 0.01}
    book = table(paces)
    compared = comparison(paces, noise=0.1)
    winner, _ = selection.choose(compared, "throughput", book)
    assert winner is not None
    book.settle(winner, f1_drop=0.1, f1_drop_interval=(0.0, 0.2), speedup=5.0)
    job = SimpleNamespace(start=SimpleNamespace(max_f1_drop=0.5), objective="throughput")
    why = selection.why(winner, compared, job, book)
    assert why.startswith("of 2 candidates the simplest of 2 that are equally fast and lose at most 0.5 points of F1")
    assert "times as fast as onnxruntime-int8" in why


def test_the_speed_of_a_pruned_one_counts_from_the_whole_checkpoint():
    paces = {"openvino-bf16": 0.01, "onnxruntime-int8": 0.005}
    book = table(paces)
    winner = book.candidates["onnxruntime-int8"] = replace(book.candidates["onnxruntime-int8"], pruned={"ffn": 0.5})
    book.settle(book.candidates["openvino-bf16"], speedup=3.0)
    book.settle(winner, speedup=4.0)
    selection.level(winner, comparison(paces), {}, book)
    assert book.entries["openvino-bf16"].speedup == 3.0
    assert book.entries["onnxruntime-int8"].speedup == pytest.approx(6.0, rel=0.05)


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
