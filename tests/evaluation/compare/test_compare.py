"""Comparisons: baseline, rounds, scores, tables, refused artifacts and the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contests
import pytest
from contests import answers, contestant, questions, run, runs
from hypothesis import given
from hypothesis import strategies as st

import qabuild
from qabuild.artifact import handler
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.manifest import open_artifact, seal
from qabuild.builder.store.local import Store
from qabuild.cli import main
from qabuild.errors import INTERRUPTED, BadTarget, MissingEnvironment, QABuildError, UntrustedInput, VerificationFailed
from qabuild.evaluation import report
from qabuild.evaluation.compare import compare, rounds, tables
from qabuild.evaluation.compare.contestants import _differences, load_questions, open_contestants
from qabuild.evaluation.compare.score import score
from qabuild.evaluation.compare.worker import time_shares
from qabuild.evaluation.compare.worker_pool import Turn, Worker, start_workers
from qabuild.models.runtime import Runtime
from qabuild.qa import ask, squad_metric
from qabuild.system.reporter import SILENT, Silent

# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_and_speed_are_compared_with_the_eager_fp32_artifact():
    dataset = questions()
    predictions = answers(dataset, wrong=range(16))
    ort = contestant(
        "ort",
        dataset,
        predictions,
        backend={"name": "onnxruntime"},
        gates={"min_f1_retention": 0.5, "min_agreement": 0.5},
    )
    base = contestant("base", dataset, answers(dataset))
    comparison = score(
        runs(
            run(ort, dataset, predictions, seconds_per_question=0.01),
            run(base, dataset, answers(dataset), seconds_per_question=0.02),
        ),
        dataset,
        None,
    )
    first, second = comparison.measured
    assert (comparison.baseline, comparison.passed) == ("base", True)
    gold = {question.id: question.answers for question in dataset.questions}
    scores = squad_metric.score(
        {question.id: text for question, (text, _, _) in zip(dataset.questions, predictions, strict=True)}, gold
    )
    assert first.accuracy.f1 == pytest.approx(scores.f1)
    assert first.accuracy.f1_retention == pytest.approx(scores.f1 / 100)
    assert first.accuracy.f1_interval[0] < scores.f1 < first.accuracy.f1_interval[1] < 100
    assert first.throughput[0].speedup == pytest.approx(2)
    assert first.throughput[0].samples_per_second == pytest.approx(100 / 1.125)
    assert first.throughput[0].model_samples_per_second == pytest.approx(100 / 1.125 / 0.8)
    assert (second.accuracy.f1_interval, second.throughput[0].speedup_interval) == ((100, 100), (1, 1))
    assert first.size == 90_000_000, "the reference is for verification and is not deployed"


def test_identical_answers_have_an_f1_retention_of_exactly_1():
    dataset = questions(20)
    predictions = answers(dataset, wrong=range(0, 20, 2))
    one = contestant("one", dataset, predictions, gates={"min_f1_retention": 1.0})
    alike = replace(one, reference=replace(one.reference, answers=one.verified_answers))
    comparison = score(runs(run(alike, dataset, predictions)), dataset, None)
    assert comparison.passed


def test_the_baseline_is_the_named_one_or_else_the_first_if_none_is_eager_fp32():
    dataset = questions(40)
    predictions = answers(dataset)
    candidates = [
        run(contestant(name, dataset, predictions, backend={"name": "torchscript"}), dataset, predictions)
        for name in ("a", "b")
    ]
    assert score(runs(*candidates), dataset, None).baseline == "a"
    assert score(runs(*candidates), dataset, "b").baseline == "b"
    without_baseline = score(runs(*candidates), dataset, "gone")
    assert (without_baseline.baseline, without_baseline.measured[0].throughput[0].speedup, without_baseline.asked) == (
        None,
        None,
        {},
    )


def test_a_slowdown_of_5_percent_is_significant_and_equal_speeds_are_not():
    dataset = questions(512)
    predictions = answers(dataset)
    drift = [1 + 0.5 * (number % 4) for number in range(16)]
    paces = {"base": 0.01, "equal": 0.01, "slower": 0.0105}
    candidates = [
        run(
            contestant(name, dataset, predictions),
            dataset,
            predictions,
            seconds_per_question=pace,
            noise=0.02,
            drift=drift,
            seed=seed,
        )
        for seed, (name, pace) in enumerate(paces.items())
    ]
    _, equal, slower = (
        measured.throughput[0].speedup_interval for measured in score(runs(*candidates), dataset, None).measured
    )
    assert equal[0] <= 1 <= equal[1]
    assert slower[1] < 1


def test_every_changed_answer_is_listed_with_its_position():
    comparison = contests.comparison()
    *_, lossy = comparison.measured
    assert [change.f1_difference for change in lossy.changes] == sorted(
        change.f1_difference for change in lossy.changes
    )
    assert {change.id for change in lossy.changes if change.f1_difference > 0} == {"q3"}
    assert {change.id for change in lossy.changes if change.f1_difference < 0} == {"q5", "q6", "q7", "q90"}
    for change in lossy.changes:
        question = comparison.asked[change.id]
        assert question.context[change.begin : change.end] == change.answer
        assert question.context[question.begin : question.end] == question.answer
        assert all(question.context.startswith(text, at) for text, at in question.gold)


def test_answers_that_differ_from_the_verification_fail_the_audit():
    dataset = questions()
    one = contestant("one", dataset, answers(dataset))
    comparison = score(runs(run(one, dataset, answers(dataset, wrong=[0]))), dataset, None)
    assert [gate.name for gate in comparison.measured[0].failed_gates] == ["same_as_verified", "min_agreement"]
    assert not comparison.passed
    assert "FAILED: same_as_verified" in tables.rows(comparison)[0][-1]


def test_an_artifact_that_failed_its_verification_fails_the_audit():
    dataset = questions(40)
    one = contestant("one.failed", dataset, answers(dataset))
    failed = replace(one, verification=replace(one.verification, passed=False))
    comparison = score(runs(run(failed, dataset, answers(dataset))), dataset, None)
    assert tables.rows(comparison)[0][-1] == "FAILED: verified"


def test_on_another_machine_the_audit_requires_min_agreement_only():
    dataset = questions()
    gates = {"min_agreement": 0.98}
    one = contestant("one", dataset, answers(dataset), gates=gates, elsewhere=True)
    comparison = score(runs(run(one, dataset, answers(dataset, wrong=[0]))), dataset, None)
    assert comparison.passed
    same = next(gate for gate in comparison.measured[0].gates if gate.name == "same_as_verified")
    assert (same.value, same.limit) == (63 / 64, 0.98)


def test_the_time_of_concurrent_calls_is_divided_in_proportion_to_their_running_times():
    # Two slots: b ends first, so c takes its slot, and d that of a.
    a, b, c, d = (0, 30), (0, 20), (0, 36), (0, 43)
    assert time_shares([a, b, c, d], at_once=2) == pytest.approx([30 / 2, 20 / 2, 16 / 2, 13 / 2], rel=0.09)
    assert time_shares([a, d], at_once=1) == pytest.approx([30, 13])
    assert time_shares([(0, 2), (5, 6)], at_once=2) == pytest.approx([2, 1])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 4))
def test_time_shares_sum_up_to_the_time_in_which_any_call_ran(calls, at_once):
    free = [0] * at_once
    spans = []
    for start, length in sorted(calls):
        begin = max(start, min(free))
        free[free.index(min(free))] = begin + length
        spans.append((start, begin + length))
    shares = time_shares(spans, at_once)
    busy = {moment for start, end in spans for moment in range(start, end)}
    assert sum(shares) == pytest.approx(len(busy))
    lengths = [length for _, length in sorted(calls)]
    assert [share / sum(shares) for share in shares] == pytest.approx([length / sum(lengths) for length in lengths])


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tables_contain_the_figures_in_every_format():
    comparison = contests.comparison()
    assert [len(row) for row in tables.rows(comparison)] == [len(tables.columns(comparison))] * 4
    lines = tables.to_markdown(comparison).splitlines()
    assert len(lines) == 6
    assert len({line.count("|") for line in lines}) == 1
    records = list(csv.DictReader(io.StringIO(tables.to_csv(comparison))))
    assert [(row["approach"], row["batch_size"]) for row in records][:4] == [
        *(("baseline", size) for size in ("8", "1", "32")),
        ("ort-fp32", "8"),
    ]
    assert float(records[3]["speedup"]) == comparison.measured[1].throughput[0].speedup
    assert records[-1]["result"] == "error: no CUDA device here"
    document = json.loads(json.dumps(comparison.to_dict()))
    assert document["measured"][2]["latency"]["p99"] == comparison.measured[2].latency.p99
    assert document["passed"] is False


# --- real artifacts, each in its own process ------------------------------------------------------------------------

TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[verify]
dataset = "sample"
samples = {samples}
cross_check = 0
batch_size = 4
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Limit the workers to one thread: beside other tests, two would wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`build("eager")`: an artifact of the sample, verified on 40 questions."""
    folder = tmp_path_factory.mktemp("compared")

    def make(backend: str, samples: int = 40) -> Path:
        name = f"{backend}-{samples}"
        if not (folder / "artifacts" / name).exists():
            (folder / f"{name}.toml").write_text(TARGET.format(backend=backend, samples=samples), encoding="utf-8")
            built = qabuild.build(folder / f"{name}.toml", folder / "artifacts", results=Store(folder / "store"))
            assert built.verification.passed
        return folder / "artifacts" / name

    return make


def resealed(original: Path, copy: Path, evidence: Callable[[Any], object] = lambda _: None, **changed: Any) -> Path:
    """A copy with a changed manifest and changed evidence, sealed again."""
    shutil.copytree(original, copy)
    manifest = open_artifact(original).manifest
    facts = {**{name: value for name, value in manifest.__dict__.items() if name != "files"}, **changed}
    handler.write(manifest.options, facts["runtime"], manifest.versions, copy)
    digest = seal(copy, **facts).digest
    document = {**json.loads((copy / artifacts.EVIDENCE).read_text(encoding="utf-8")), "manifest": digest}
    evidence(document)
    (copy / artifacts.EVIDENCE).unlink()
    (copy / artifacts.EVIDENCE).write_text(json.dumps(document), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def compared(build: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A comparison of two artifacts with equal answers, and of one whose device is missing on this machine."""
    absent = resealed(
        build("eager"), tmp_path_factory.mktemp("absent") / "absent", runtime=Runtime(device="cuda", dtype="fp32")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return compare([build("torchscript"), absent, build("eager")], batch_sizes=[1], latency=True)


def test_an_artifact_that_cannot_be_loaded_is_a_failure_and_the_others_are_measured(compared):
    assert [measured.name for measured in compared.measured] == ["torchscript-40", "eager-40"]
    (failure,) = compared.failures
    assert (failure.name, failure.status) == ("absent", MissingEnvironment.exit_status)
    assert "no CUDA device here" in failure.error


def test_skipped_artifacts_are_reported_before_the_others_are_measured(build, monkeypatch):
    eager, messages = build("eager"), []
    monkeypatch.setattr(Silent, "say", lambda _, message: messages.append(message))
    monkeypatch.setattr(rounds, "measure", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare([eager, "nowhere"])
    assert messages == ["nowhere is skipped: nowhere: no such folder"]


def test_the_timed_answers_agree_with_the_verification(compared, build):
    assert compared.baseline == "eager-40"
    for measured in compared.measured:
        evidence = open_artifact(build(measured.name.removesuffix("-40"))).evidence["measurement"]
        assert measured.accuracy.f1 == pytest.approx(evidence["f1"])
        assert measured.accuracy.exact_match == pytest.approx(evidence["exact_match"])
        assert [(gate.name, gate.value, gate.passed) for gate in measured.gates] == [
            ("verified", True, True),
            ("same_as_verified", 1.0, True),
            ("min_f1_retention", 1.0, True),
            ("min_agreement", 1.0, True),
        ]


def test_every_requested_batch_size_and_latency_is_measured(compared):
    for measured in compared.measured:
        assert [(speed.batch_size, speed.questions, speed.rounds) for speed in measured.throughput] == [
            (4, 40, 2),
            (1, 40, 2),
        ]
        assert all(speed.model_samples_per_second > speed.samples_per_second for speed in measured.throughput)
        assert all(speed.by_length for speed in measured.throughput)
        assert len(measured.latency.milliseconds) == 40
        assert 0 < measured.latency.median <= measured.latency.p99
        assert measured.peak_memory > 50_000_000
        assert measured.load_seconds > 0
    assert compared.time.answering < compared.time.measuring


def test_an_idle_worker_uses_no_cpu_time_and_a_dead_one_is_dropped(build):
    contestants, _ = open_contestants([build("eager"), build("torchscript")], Path("artifacts"))
    dataset = load_questions(contestants, None, offline=True)
    with start_workers(contestants) as workers:
        scheduler = rounds._Scheduler(workers, [], SILENT)
        scheduler.load(dataset, squad_v2=False)
        scheduler.run(rounds.Series(questions=4, batch_size=4), workers)
        idle = [cpu_seconds(worker) for worker in workers]
        time.sleep(1)
        assert [cpu_seconds(worker) - before for worker, before in zip(workers, idle, strict=True)] == pytest.approx(
            [0, 0], abs=0.05
        )
        workers[0]._child._process.kill()
        scheduler.run(rounds.Series(questions=4, batch_size=4), workers)
        (turns,) = scheduler.turns.values()
        assert [(failure.name, "killed by signal 9" in failure.error) for failure in scheduler.failures] == [
            ("eager-40", True)
        ]
        assert len(turns[workers[1]]) == 1
        workers[1]._child._process.kill()
        with pytest.raises(QABuildError, match="was killed by signal 9"):
            scheduler.run(rounds.Series(questions=4, batch_size=4), workers)


def cpu_seconds(worker: Any) -> float:
    """CPU seconds that the process has used so far: utime and stime of proc(5)."""
    stat = Path(f"/proc/{worker._child._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def test_an_artifact_can_be_compared_with_itself(build):
    contestants, _ = open_contestants([build("eager"), build("eager")], Path("artifacts"))
    assert len({contestant.name for contestant in contestants}) == 2


# --- refused artifacts ----------------------------------------------------------------------------------------------


def test_artifacts_verified_on_different_data_are_refused_and_the_message_lists_the_differences(build):
    with pytest.raises(BadTarget, match="different data") as refused:
        compare([build("eager"), build("eager", 4)])
    assert "samples: 40 and 4" in refused.value.message
    assert "fingerprint: " in refused.value.message


def test_a_fact_that_one_verification_lacks_is_shown_as_none():
    facts = {"revision": None, "split": "validation", "samples": None, "fingerprint": "ab"}
    one, other = (SimpleNamespace(reference=SimpleNamespace(data=data)) for data in (facts, {"fingerprint": "cd"}))
    other.reference.data |= {"revision": "main", "split": None, "samples": 9}
    assert _differences(one, other) == [
        "revision: none and main",
        "split: validation and none",
        "samples: all and 9",
        "fingerprint: ab and cd",
    ]


def test_other_questions_are_refused(build, tmp_path):
    document = json.loads(Path(qabuild.qa.sample.HELDOUT).read_text(encoding="utf-8"))
    for paragraph in (p for article in document["data"] for p in article["paragraphs"]):
        for qa in paragraph["qas"]:
            qa["question"] += "?"
    (tmp_path / "other.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UntrustedInput, match="not the questions"):
        compare([build("eager")], dataset=str(tmp_path / "other.json"))


def test_nothing_to_compare(build, tmp_path):
    with pytest.raises(BadTarget, match="nothing to compare"):
        compare([])
    with pytest.raises(BadTarget, match="no such folder"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(BadTarget, match="not among the compared artifacts"):
        compare([build("eager")], baseline="other")


def test_a_target_selects_its_artifact(build, tmp_path):
    folder = build("eager").parents[1]
    contestants, _ = open_contestants([folder / "eager-40.toml"], folder / "artifacts")
    assert (contestants[0].name, contestants[0].artifact.directory) == ("eager-40", build("eager"))
    with pytest.raises(BadTarget, match="is not built"):
        open_contestants([folder / "eager-40.toml"], tmp_path)


def test_an_artifact_that_was_not_verified_is_refused(build, tmp_path):
    copy = shutil.copytree(build("eager"), tmp_path / "unverified")
    (copy / artifacts.EVIDENCE).unlink()
    with pytest.raises(VerificationFailed, match="not verified"):
        compare([copy])


def test_a_damaged_artifact_is_a_failure_and_an_error_if_it_is_the_only_one(build, tmp_path):
    copy = shutil.copytree(build("eager"), tmp_path / "changed")
    (copy / "extra").write_text("x")
    contestants, failures = open_contestants([copy, build("eager")], Path("artifacts"))
    assert [contestant.name for contestant in contestants] == ["eager-40"]
    assert (failures[0].name, failures[0].status) == ("changed", UntrustedInput.exit_status)
    with pytest.raises(UntrustedInput, match="not as it was sealed"):
        open_contestants([copy], Path("artifacts"))


def test_artifacts_that_cannot_be_opened_are_failures_and_the_others_are_opened(build, tmp_path):
    folder = build("eager").parents[1]
    (tmp_path / "unbuilt.toml").write_text((folder / "eager-40.toml").read_text(encoding="utf-8"), encoding="utf-8")
    copies = {name: shutil.copytree(build("eager"), tmp_path / name) for name in ("unverified", "truncated")}
    (copies["unverified"] / artifacts.EVIDENCE).unlink()
    (copies["truncated"] / artifacts.EVIDENCE).write_text('{"manifest": ', encoding="utf-8")
    contestants, failures = open_contestants(
        [tmp_path / "gone", tmp_path / "unbuilt.toml", *copies.values(), build("eager")], tmp_path / "artifacts"
    )
    assert [contestant.name for contestant in contestants] == ["eager-40"]
    assert [(failure.name, failure.status) for failure in failures] == [
        ("gone", 2),
        ("unbuilt", 2),
        ("unverified", 1),
        ("truncated", 4),
    ]
    problems = ("no such folder", "is not built", ": not verified", "verification.json: damaged")
    assert all(problem in failure.error for problem, failure in zip(problems, failures, strict=True))


def test_damaged_evidence_is_refused(build, tmp_path):
    copy = resealed(build("eager"), tmp_path / "damaged", lambda evidence: evidence.pop("measurement"))
    with pytest.raises(UntrustedInput, match="damaged"):
        open_contestants([copy], Path("artifacts"))


def test_verified_answers_are_the_reference_answers_with_the_flips_applied(build):
    contestants, _ = open_contestants([build("torchscript")], Path("artifacts"))
    one = contestants[0]
    flip = contests.Flip(
        id=next(iter(one.reference.answers)), question="", checkpoint="", artifact="else", gold=[], f1_difference=0
    )
    measurement = replace(one.verification.measurement, flips=[flip])
    flipped = replace(one, verification=replace(one.verification, measurement=measurement))
    assert flipped.verified_answers == {**one.reference.answers, flip.id: "else"}


def test_the_artifact_of_a_failed_build_is_named(build, tmp_path):
    folder = build("eager").parents[1]
    failed = shutil.copytree(build("eager"), tmp_path / "eager-40.failed")
    for named in (folder / "eager-40.toml", tmp_path / "eager-40"):
        with pytest.raises(BadTarget, match=f"its build failed: {failed} lies there") as refused:
            open_contestants([named], tmp_path)
        assert refused.value.hint == f"`qabuild show {failed}` says why"


def test_an_earlier_build_of_a_target_that_failed_since_is_named(build, tmp_path, monkeypatch):
    for name in ("tiny", "tiny.failed"):
        shutil.copytree(build("eager"), tmp_path / name)
    messages: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda _, message: messages.append(message))
    monkeypatch.setattr(rounds, "measure", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare([tmp_path / "tiny"])
    failed = tmp_path / "tiny.failed"
    assert messages == [f"tiny is an earlier build; the last one failed its verification: {failed}"]


# --- samples, and interruptions -------------------------------------------------------------------------------------


class FakeWorker:
    """Answers as it was verified, and counts a second a question. The user interrupts at answer `stop`."""

    asked = 0
    stop = 10**9

    def __init__(self, one: Any, said: Any) -> None:
        self.contestant, self.said = one, said

    def load(self, _: Any, *, squad_v2: bool) -> float:
        return 1.0

    def answer(self, start: int, stop: int, *, batch_size: int | None, one_by_one: bool = False) -> Turn:
        FakeWorker.asked += 1
        if FakeWorker.asked > FakeWorker.stop:
            raise KeyboardInterrupt
        calls = [(batch_size or 8, 64, 0.5)]
        return Turn(answers=self.said[start:stop], seconds=[float(stop - start)], calls=calls, peak_memory=1)

    def close(self) -> None:
        pass


def measured_until(stop: int, dataset: Any, contestants: Any, said: Any) -> Any:
    FakeWorker.asked, FakeWorker.stop = 0, stop
    with pytest.MonkeyPatch.context() as patch:
        workers = [FakeWorker(one, said) for one in contestants]
        patch.setattr(rounds, "start_workers", lambda *_, **__: nullcontext(workers))
        return rounds.measure(contestants, [], dataset, [1], squad_v2=False, latency=True, reporter=SILENT)


@pytest.mark.parametrize("stop", range(32))
def test_what_was_measured_before_an_interruption_is_complete_rounds(stop):
    dataset = questions(90)
    said = answers(dataset, wrong=[1, 40])
    contestants = [contestant(name, dataset, said) for name in ("a", "b")]
    whole = measured_until(10**9, dataset, contestants, said)
    warm_up_and_audit, warm_up, all_rounds = 2 * (1 + 2), 2, 2 * 3
    try:
        runs = measured_until(stop, dataset, contestants, said)
    except KeyboardInterrupt:
        assert stop < warm_up_and_audit + warm_up + 2 * rounds.LEAST_ROUNDS
        return
    assert runs.interrupted is (stop < FakeWorker.asked)
    complete = min((stop - warm_up_and_audit - warm_up) // 2, 3)
    assert complete >= rounds.LEAST_ROUNDS
    assert runs.questions == min(32 * complete, 90)
    for run_, run_to_the_end in zip(runs.runs, whole.runs, strict=True):
        assert run_.throughput[8] == run_to_the_end.throughput[8][:complete]
        assert set(run_.throughput) == ({8} if stop < warm_up_and_audit + warm_up + all_rounds + 2 + 6 else {8, 1})
        assert run_.latency in ([], run_to_the_end.latency)
    comparison = score(runs, replace(dataset, questions=dataset.questions[: runs.questions]), None)
    assert comparison.interrupted is runs.interrupted
    assert comparison.measured[0].throughput[0].speedup_interval is not None
    assert ("interrupted after" in tables.conditions(comparison)) is runs.interrupted


@given(count=st.integers(1, 400), samples=st.integers(1, 500))
def test_a_sample_is_whole_rounds_spread_over_all_questions(count, samples):
    dataset = questions(count)
    some = rounds.sampled(dataset, samples)
    assert min(samples, count) - ask.CHUNK < len(some) < samples + ask.CHUNK
    ours, theirs = ask.chunks(some.questions), ask.chunks(dataset.questions)
    places = [theirs.index(each) for each in ours]
    assert places == sorted(set(places)), "every round is one of the verification"
    gaps = [after - before for before, after in pairwise([*places, len(theirs)])]
    assert max(gaps) - min(gaps) <= 1
    assert rounds.sampled(dataset, None) == dataset


def test_a_part_of_the_questions_is_not_judged_by_gates_for_all_of_them():
    dataset = questions(160)
    said = answers(dataset, wrong=range(8))
    one = contestant("a", dataset, said, gates={"min_f1_retention": 0.98, "min_agreement": 0.95})
    some = rounds.sampled(dataset, 32)
    whole = score(runs(run(one, dataset, said)), dataset, None).measured[0]
    part = score(runs(run(one, some, answers(some, wrong=range(8)))), some, None).measured[0]
    assert {gate.name for gate in whole.failed_gates} == {"min_f1_retention"}
    assert [(gate.name, gate.passed) for gate in part.gates] == [("verified", True), ("same_as_verified", True)]


# --- on the command line --------------------------------------------------------------------------------------------


def test_an_artifact_that_fails_the_audit_is_marked_and_the_exit_status_is_1(build, tmp_path, capfd):
    original = open_artifact(build("eager"))
    verify = original.manifest.verify

    def claim(evidence: Any) -> None:
        id, text = next(iter(original.reference.answers.items()))
        flip = {"id": id, "question": "", "checkpoint": text, "artifact": "else", "gold": [], "f1_difference": 0.0}
        evidence["measurement"] |= {"flips": [flip], "agreement": 39 / 40}
        for gate in evidence["gates"]:
            if gate["name"] == "min_agreement":
                gate |= {"limit": 0.9, "value": 39 / 40}

    gates = {"verify": {**verify, "gates": {**verify["gates"], "min_agreement": 0.9}}}
    tampered = resealed(original.directory, tmp_path / "tampered", claim, **gates)
    status, out, err = command(capfd, "compare", tampered, "--format", "csv")
    assert status == 1
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["approach"], row["result"]) == ("tampered", "FAILED: same_as_verified")
    assert "tampered does not answer as it was verified\n  same_as_verified: 0.975, must be at least 1" in err


def test_an_artifact_that_failed_its_verification_is_said_to_have(build, tmp_path, capfd):
    original = open_artifact(build("eager"))

    def fail(evidence: Any) -> None:
        evidence["passed"] = evidence["measurement"]["same_tokens"] = False
        (gate,) = (gate for gate in evidence["gates"] if gate["name"] == "same_tokens")
        gate |= {"value": False, "passed": False}

    failed = resealed(original.directory, tmp_path / "x.failed", fail)
    status, _, err = command(capfd, "compare", failed)
    assert status == 1
    assert "x.failed failed its verification\n  `qabuild show` says why" in err


def test_report_measures_and_writes_a_page(build, tmp_path, capfd):
    pytest.importorskip("vl_convert", reason="the page's plots are made with vl-convert-python")
    page = tmp_path / "report.html"
    page.symlink_to("elsewhere.html")
    status, out, err = command(capfd, "report", build("eager"), "-o", page, "--batch-sizes", "2", "--json")
    assert page.is_symlink(), "the target of the symbolic link was written, and the link is still one"
    assert (status, f"written: {page}" in err) == (0, True)
    document = json.loads(out)
    assert [speed["batch_size"] for speed in document["measured"][0]["throughput"]] == [4, 2]
    assert document["measured"][0]["latency"]["median"] > 0
    assert "No artifact answers any question differently from eager-40" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["compare"], 2, "Missing argument"),
        (["compare", "nowhere"], 2, "no such folder"),
        (["compare", "nowhere", "--batch-sizes", "8,0"], 2, "not a list of numbers from 1"),
        (["compare", "nowhere", "--format", "xml"], 2, "is not one of"),
        (
            ["report", "nowhere", "-o", "no/folder/page.html"],
            2,
            "page.html: there is no folder ",
        ),
        (["report", "nowhere", "-o", f"{__file__}/x.html"], 2, "x.html: there is no folder "),
        (["report", "nowhere", "-o", "page.md"], 2, "page.md: the page is written as HTML only"),
        (["report", "nowhere", "--png", "picture.jpg"], 2, "picture.jpg: the picture is written as PNG only"),
    ],
)
def test_bad_usage_is_reported_before_any_work(capfd, arguments, status, message):
    left, out, err = command(capfd, *arguments)
    assert (left, out) == (status, "")
    assert message in err


@pytest.mark.parametrize("layout", ["csv", "markdown"])
def test_json_and_another_format_contradict_each_other(capfd, layout):
    status, out, _ = command(capfd, "compare", "nowhere", "--json", "--format", layout)
    expected = f"--json and --format {layout} contradict each other: name one of them"
    assert (status, json.loads(out)["error"]) == (2, expected)


def test_a_report_does_not_replace_a_pipe_or_device(capfd, tmp_path):
    for option, name in (("-o", "pipe.html"), ("--png", "pipe.png")):
        os.mkfifo(tmp_path / name)
        status, _, err = command(capfd, "report", "nowhere", option, str(tmp_path / name))
        assert (status, "is no file, and would be replaced" in err) == (2, True)


def test_a_report_is_not_written_into_an_artifact(build, capfd):
    for option, name in (("-o", "page.html"), ("--png", "picture.png")):
        status, _, err = command(capfd, "report", build("eager"), option, build("eager") / name)
        assert (status, "lies in the artifact" in err, "which is sealed" in err) == (2, True, True)


def test_report_names_a_missing_package(capfd, monkeypatch):
    monkeypatch.setattr(report, "PACKAGES", ("vl-convert-python-of-another-world",))
    status, _, err = command(capfd, "report", "nowhere")
    assert status == 3
    assert "vl-convert-python-of-another-world is not installed" in err


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command line."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    streams = capfd.readouterr()
    return int(left.value.code or 0), streams.out, streams.err


def test_an_interrupted_comparison_prints_what_is_complete_and_is_status_130(build, capfd, monkeypatch):
    answer = Worker.answer

    def interrupted_one_by_one(worker: Worker, start: int, stop: int, **how: Any) -> Turn:
        if how.get("one_by_one"):
            raise KeyboardInterrupt
        return answer(worker, start, stop, **how)

    monkeypatch.setattr(Worker, "answer", interrupted_one_by_one)
    status, out, err = command(capfd, "compare", build("eager"), "--latency", "--json")
    document = json.loads(out)
    assert (status, document["interrupted"], document["passed"]) == (INTERRUPTED, True, False)
    (measured,) = document["measured"]
    assert (measured["throughput"][0]["questions"], measured["latency"]) == (40, None)
    assert "interrupted after 40 questions in 2 rounds" in err


def test_compare_asks_about_a_part_of_the_questions(build, capfd):
    status, out, err = command(capfd, "compare", build("eager"), "--samples", "5", "--json")
    assert (status, json.loads(out)["measured"][0]["throughput"][0]["questions"]) == (0, 32)
    assert "32 questions in 1 round" in err
