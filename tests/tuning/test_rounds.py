"""Which candidates go on, and which budgets are refused."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from qabuild.errors import BadTarget
from qabuild.models.forms import Form
from qabuild.models.runtime import Runtime
from qabuild.tuning import child
from qabuild.tuning.budget import Budget
from qabuild.tuning.candidates import Candidate
from qabuild.tuning.ranking import Timings
from qabuild.tuning.rounds import Rounds
from qabuild.tuning.table import Table

FAST, SLOW = (
    Candidate(
        form=Form(backend=backend, variant={}, runtime=Runtime(dtype="fp32")), pruned={}, file=Path(f"{backend}.toml")
    )
    for backend in ("onnxruntime", "eager")
)


class Lines:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def progress(self, label: str, total: int):
        return nullcontext(lambda count: None)


def rounds(questions, seconds=1200.0, objective="throughput"):
    budget, lines = Budget(seconds), Lines()
    start = SimpleNamespace(questions=questions, drop_gate="max_f1_drop", max_f1_drop=0.5)
    job = SimpleNamespace(start=start, folder=Path("tuned"), objective=objective, offline=True, reporter=lines)
    table = Table(budget, objective, lines)
    return Rounds(job, budget, table), table, lines


def answers_first(file, overrides, output, *, seconds, reporter, **options):
    """A build whose checkpoint answers 64 of its questions, and that is then out of time."""
    with reporter.progress("compiling", 2) as advance:
        advance(1)
    with reporter.progress("checkpoint answers", 256) as advance:
        advance(32)
        time.sleep(0.01)
        advance(32)
    raise TimeoutError


def never_answers(*args, **options):
    raise TimeoutError


def test_a_short_budget_is_refused_as_soon_as_the_checkpoint_answers():
    slow, _, _ = rounds(questions=10_570)
    slow._answered(64, 256, rate=100.0)
    # 10,570 questions, 512 in turns, and the rest of a screening twice, at 0.4 a second
    with pytest.raises(BadTarget, match=r"a budget of 20 min is too short .* that takes about 481 min"):
        slow._answered(64, 256, rate=0.4)
    few, _, _ = rounds(questions=135)
    few._answered(64, 135, rate=0.4)
    with pytest.raises(BadTarget, match=r"on all 135 questions: that takes about 23 min"):
        few._answered(32, 135, rate=0.18)


def test_the_refusal_ends_the_build(monkeypatch):
    monkeypatch.setattr(child, "build", answers_first)
    screening, table, _ = rounds(questions=1_000_000_000)
    with pytest.raises(BadTarget, match=r"a budget of 20 min is too short .*: that takes about \d+ min"):
        screening.screen([FAST])
    assert table.entries["onnxruntime"].result == ""


def test_a_budget_that_ends_in_the_first_build_is_refused_with_the_time_if_the_checkpoint_answered(monkeypatch):
    monkeypatch.setattr(child, "build", answers_first)
    screening, table, lines = rounds(questions=300, seconds=100)
    monkeypatch.setattr(Budget, "left", 0)
    with pytest.raises(BadTarget, match=r"a budget of 100 s is too short .*: that takes about \d+ s"):
        screening.screen([FAST])
    assert table.entries["onnxruntime"].result == "not screened within 100 s"
    assert "building onnxruntime (1 of 1)" in lines.said


def test_a_budget_that_ends_before_the_checkpoint_answers_is_refused_with_what_it_ended_in(monkeypatch):
    monkeypatch.setattr(child, "build", never_answers)
    monkeypatch.setattr(Budget, "left", -1)
    screening, table, _ = rounds(questions=10_570, seconds=1)
    with pytest.raises(BadTarget, match="it ended before the checkpoint answered a question, with onnxruntime"):
        screening.screen([FAST, SLOW])
    assert table.entries["eager"].result == "not tried within 1 s"


def test_where_a_screening_would_ask_all_questions_it_is_the_verification(monkeypatch):
    asked = {}

    def build(file, overrides, output, **options):
        asked[output.name] = overrides
        raise TimeoutError

    monkeypatch.setattr(child, "build", build)
    for questions, result in {
        256: "not verified on all questions within 20 min",
        257: "not screened within 20 min",
    }.items():
        screening, table, _ = rounds(questions)
        with pytest.raises(BadTarget):
            screening.screen([FAST])
        assert table.entries["onnxruntime"].result == result
    assert asked["verified"] == []
    assert "verify.samples=256" in asked["screened"]


def test_what_is_behind_says_how_far(monkeypatch):
    verifying, table, _ = rounds(questions=10_570)
    for candidate in (FAST, SLOW):
        table.add(candidate)
    table.settle(FAST, "passed", verified=True)
    verifying.timings = {
        name: Timings(seconds=[pace] * 8, milliseconds=(), size=1)
        for name, pace in {"onnxruntime": 1.0, "eager": 2.0}.items()
    }
    assert verifying.verify([FAST, SLOW]) == [FAST]
    assert table.entries["eager"].result == "onnxruntime is 2.00 [2.00, 2.00] times as fast"


def test_a_build_that_is_stopped_leaves_no_staging_folder(tmp_path):
    partial = tmp_path / ".onnxruntime.partial"
    partial.mkdir()
    with pytest.raises(TimeoutError), child._cleaned_up(tmp_path / "onnxruntime"):
        raise TimeoutError
    assert list(tmp_path.iterdir()) == []
