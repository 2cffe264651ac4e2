"""Artifacts side by side: what is compared with what, the turns they take, the scores, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contests
import pytest
from contests import answers, contestant, questions, run, runs
from hypothesis import given
from hypothesis import strategies as st

import qabuild
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.manifest import open_artifact, seal
from qabuild.builder.store.local import Store
from qabuild.cli import main
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput
from qabuild.evaluation import report
from qabuild.evaluation.compare import compare, rounds, tables
from qabuild.evaluation.compare.contestants import _differences, find, load_questions
from qabuild.evaluation.compare.score import score
from qabuild.evaluation.compare.worker import shares
from qabuild.evaluation.compare.worker_pool import hired
from qabuild.models.runtime import Runtime
from qabuild.qa import squad_metric
from qabuild.system.reporter import SILENT, Silent

# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_and_speed_are_held_against_the_eager_fp32_one():
    asked = questions()
    said = answers(asked, wrong=range(16))
    ort = contestant(
        "ort", asked, said, backend={"name": "onnxruntime"}, gates={"min_f1_retention": 0.5, "min_agreement": 0.5}
    )
    base = contestant("base", asked, answers(asked))
    found = score(
        runs(
            run(ort, asked, said, seconds_per_question=0.01),
            run(base, asked, answers(asked), seconds_per_question=0.02),
        ),
        asked,
        None,
    )
    first, second = found.measured
    assert (found.baseline, found.passed) == ("base", True)
    gold = {each.id: each.answers for each in asked.questions}
    scores = squad_metric.score({each.id: text for each, (text, _, _) in zip(asked.questions, said, strict=True)}, gold)
    assert first.accuracy.f1 == pytest.approx(scores.f1)
    assert first.accuracy.f1_retention == pytest.approx(scores.f1 / 100)
    assert first.accuracy.f1_interval[0] < scores.f1 < first.accuracy.f1_interval[1] < 100
    assert first.throughput[0].speedup == pytest.approx(2)
    assert first.throughput[0].samples_per_second == pytest.approx(100 / 1.125)
    assert first.throughput[0].model_samples_per_second == pytest.approx(100 / 1.125 / 0.8)
    assert (second.accuracy.f1_interval, second.throughput[0].speedup_interval) == ((100, 100), (1, 1))
    assert first.size == 90_000_000, "the reference is proof, not part of what is deployed"


def test_an_artifact_that_answers_alike_keeps_all_of_f1_to_the_last_bit():
    asked = questions(20)
    said = answers(asked, wrong=range(0, 20, 2))
    one = contestant("one", asked, said, gates={"min_f1_retention": 1.0})
    alike = replace(one, reference=replace(one.reference, answers=one.verified_answers))
    found = score(runs(run(alike, asked, said)), asked, None)
    assert found.passed


def test_the_baseline_can_be_named_and_is_else_the_first_where_none_is_eager_fp32():
    asked = questions(40)
    said = answers(asked)
    made = [run(contestant(name, asked, said, backend={"name": "torchscript"}), asked, said) for name in ("a", "b")]
    assert score(runs(*made), asked, None).baseline == "a"
    assert score(runs(*made), asked, "b").baseline == "b"
    lost = score(runs(*made), asked, "gone")
    assert (lost.baseline, lost.measured[0].throughput[0].speedup, lost.asked) == (None, None, {})


def test_a_planted_slowdown_is_found_and_equal_artifacts_are_not_told_apart():
    asked = questions(512)
    said = answers(asked)
    drift = [1 + 0.5 * (number % 4) for number in range(16)]
    paces = {"base": 0.01, "equal": 0.01, "slower": 0.0105}
    made = [
        run(contestant(name, asked, said), asked, said, seconds_per_question=pace, noise=0.02, drift=drift, seed=seed)
        for seed, (name, pace) in enumerate(paces.items())
    ]
    _, equal, slower = (each.throughput[0].speedup_interval for each in score(runs(*made), asked, None).measured)
    assert equal[0] <= 1 <= equal[1]
    assert slower[1] < 1


def test_every_changed_answer_is_listed_with_where_it_stands():
    found = contests.comparison()
    *_, lossy = found.measured
    assert [change.f1_difference for change in lossy.changes] == sorted(
        change.f1_difference for change in lossy.changes
    )
    assert {change.id for change in lossy.changes if change.f1_difference > 0} == {"q3"}
    assert {change.id for change in lossy.changes if change.f1_difference < 0} == {"q5", "q6", "q7", "q90"}
    for change in lossy.changes:
        asked = found.asked[change.id]
        assert asked.context[change.begin : change.end] == change.answer
        assert asked.context[asked.begin : asked.end] == asked.answer
        assert all(asked.context.startswith(text, at) for text, at in asked.gold)


def test_answers_that_are_not_those_of_the_verification_fail_the_audit():
    asked = questions()
    one = contestant("one", asked, answers(asked))
    found = score(runs(run(one, asked, answers(asked, wrong=[0]))), asked, None)
    assert [gate.name for gate in found.measured[0].failed_gates] == ["same_as_verified", "min_agreement"]
    assert not found.passed
    assert "FAILED: same_as_verified" in tables.rows(found)[0][-1]


def test_what_failed_its_verification_stays_marked():
    asked = questions(40)
    one = contestant("one.failed", asked, answers(asked))
    failed = replace(one, verification=replace(one.verification, passed=False))
    found = score(runs(run(failed, asked, answers(asked))), asked, None)
    assert tables.rows(found)[0][-1] == "FAILED: verified"


def test_on_another_machine_the_gate_on_agreement_is_enough():
    asked = questions()
    gates = {"min_agreement": 0.98}
    one = contestant("one", asked, answers(asked), gates=gates, elsewhere=True)
    found = score(runs(run(one, asked, answers(asked, wrong=[0]))), asked, None)
    assert found.passed
    same = next(gate for gate in found.measured[0].gates if gate.name == "same_as_verified")
    assert (same.value, same.limit) == (63 / 64, 0.98)


def test_the_time_of_calls_that_overlap_is_shared_by_what_each_took():
    # Two places: b ends first and makes room for c, a makes room for d.
    a, b, c, d = (0, 30), (0, 20), (0, 36), (0, 43)
    assert shares([a, b, c, d], at_once=2) == pytest.approx([30 / 2, 20 / 2, 16 / 2, 13 / 2], rel=0.09)
    assert shares([a, d], at_once=1) == pytest.approx([30, 13])
    assert shares([(0, 2), (5, 6)], at_once=2) == pytest.approx([2, 1])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 4))
def test_shares_sum_up_to_the_time_in_which_any_was_under_way(calls, at_once):
    free = [0] * at_once
    spans = []
    for start, length in sorted(calls):
        begin = max(start, min(free))
        free[free.index(min(free))] = begin + length
        spans.append((start, begin + length))
    found = shares(spans, at_once)
    busy = {moment for start, end in spans for moment in range(start, end)}
    assert sum(found) == pytest.approx(len(busy))
    lengths = [length for _, length in sorted(calls)]
    assert [each / sum(found) for each in found] == pytest.approx([each / sum(lengths) for each in lengths])


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tables_hold_the_figures_in_every_format():
    found = contests.comparison()
    assert [len(row) for row in tables.rows(found)] == [len(tables.columns(found))] * 4
    lines = tables.markdown(found).splitlines()
    assert len(lines) == 6
    assert len({line.count("|") for line in lines}) == 1
    records = list(csv.DictReader(io.StringIO(tables.comma_separated(found))))
    assert [(row["approach"], row["batch_size"]) for row in records][:4] == [
        *(("baseline", size) for size in ("8", "1", "32")),
        ("ort-fp32", "8"),
    ]
    assert float(records[3]["speedup"]) == found.measured[1].throughput[0].speedup
    assert records[-1]["result"] == "error: no CUDA device here"
    document = json.loads(json.dumps(found.to_dict()))
    assert document["measured"][2]["latency"]["p99"] == found.measured[2].latency.p99
    assert document["passed"] is False


# --- real artifacts, each in a process of its own -------------------------------------------------------------------

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
    """For the workers: beside other tests, two threads would wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`made("eager")`: an artifact of the sample, verified on 40 questions."""
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
    """A copy with another manifest and other evidence, as if it had been built and verified so."""
    shutil.copytree(original, copy)
    facts = {name: value for name, value in open_artifact(original).manifest.__dict__.items() if name != "files"}
    digest = seal(copy, **{**facts, **changed}).digest
    document = {**json.loads((copy / artifacts.EVIDENCE).read_text(encoding="utf-8")), "manifest": digest}
    evidence(document)
    (copy / artifacts.EVIDENCE).unlink()
    (copy / artifacts.EVIDENCE).write_text(json.dumps(document), encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def compared(made: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two that answer alike, and one whose device is not here."""
    absent = resealed(
        made("eager"), tmp_path_factory.mktemp("absent") / "absent", runtime=Runtime(device="cuda", dtype="fp32")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return compare([made("torchscript"), absent, made("eager")], batch_sizes=[1], latency=True)


def test_the_others_are_measured_where_one_cannot_be_loaded(compared):
    assert [each.name for each in compared.measured] == ["torchscript-40", "eager-40"]
    (failure,) = compared.failures
    assert (failure.name, failure.status) == ("absent", MissingEnvironment.exit_status)
    assert "no CUDA device here" in failure.error


def test_who_is_left_out_is_told_before_the_others_are_measured(made, monkeypatch):
    eager, said = made("eager"), []
    monkeypatch.setattr(Silent, "say", lambda _, message: said.append(message))
    monkeypatch.setattr(rounds, "measure", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compare([eager, "nowhere"])
    assert said == ["nowhere is left out: nowhere: no such folder"]


def test_the_timed_answers_are_those_of_the_verification(compared, made):
    assert compared.baseline == "eager-40"
    for each in compared.measured:
        evidence = open_artifact(made(each.name.removesuffix("-40"))).evidence["measurement"]
        assert each.accuracy.f1 == pytest.approx(evidence["f1"])
        assert each.accuracy.exact_match == pytest.approx(evidence["exact_match"])
        assert [(gate.name, gate.value, gate.passed) for gate in each.gates] == [
            ("verified", True, True),
            ("same_as_verified", 1.0, True),
            ("min_f1_retention", 1.0, True),
            ("min_agreement", 1.0, True),
        ]


def test_all_that_was_asked_for_is_measured(compared):
    for each in compared.measured:
        assert [(speed.batch_size, speed.questions, speed.rounds) for speed in each.throughput] == [
            (4, 40, 2),
            (1, 40, 2),
        ]
        assert all(speed.model_samples_per_second > speed.samples_per_second for speed in each.throughput)
        assert all(speed.by_length for speed in each.throughput)
        assert len(each.latency.milliseconds) == 40
        assert 0 < each.latency.median <= each.latency.p99
        assert each.peak_memory > 50_000_000
        assert each.load_seconds > 0
    assert compared.time.answering < compared.time.measuring


def test_a_worker_that_waits_uses_no_processor_and_one_that_dies_drops_out(made):
    found, _ = find([made("eager"), made("torchscript")], Path("artifacts"))
    asked = load_questions(found, None, offline=True)
    with hired(found) as workers:
        team = rounds._Team(workers, [], SILENT)
        team.load(asked)
        team.run(rounds.Series(questions=4, batch_size=4))
        idle = [cpu_seconds(worker) for worker in workers]
        time.sleep(1)
        assert [cpu_seconds(worker) - before for worker, before in zip(workers, idle, strict=True)] == pytest.approx(
            [0, 0], abs=0.05
        )
        workers[0]._child._process.kill()
        turns = team.run(rounds.Series(questions=4, batch_size=4))
        assert [(failure.name, "killed by signal 9" in failure.error) for failure in team.failures] == [
            ("eager-40", True)
        ]
        assert len(turns[workers[1]]) == 1
        workers[1]._child._process.kill()
        with pytest.raises(QABuildError, match="was killed by signal 9"):
            team.run(rounds.Series(questions=4, batch_size=4))


def cpu_seconds(worker: Any) -> float:
    """What the process has used of processors so far: utime and stime of proc(5)."""
    stat = Path(f"/proc/{worker._child._process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def test_the_same_artifact_may_be_compared_with_itself(made):
    found, _ = find([made("eager"), made("eager")], Path("artifacts"))
    assert len({each.name for each in found}) == 2


# --- what is refused ------------------------------------------------------------------------------------------------


def test_artifacts_verified_on_different_data_are_refused_with_what_differs(made):
    with pytest.raises(BadTarget, match="different data") as refused:
        compare([made("eager"), made("eager", 4)])
    assert "samples: 40 and 4" in refused.value.message
    assert "fingerprint: " in refused.value.message


def test_what_only_one_of_two_verifications_names_is_none_of_the_other():
    facts = {"revision": None, "split": "validation", "samples": None, "fingerprint": "ab"}
    one, other = (SimpleNamespace(reference=SimpleNamespace(data=data)) for data in (facts, {"fingerprint": "cd"}))
    other.reference.data |= {"revision": "main", "split": None, "samples": 9}
    assert _differences(one, other) == [
        "revision: none and main",
        "split: validation and none",
        "samples: all and 9",
        "fingerprint: ab and cd",
    ]


def test_other_questions_are_refused(made, tmp_path):
    document = json.loads(Path(qabuild.qa.sample.HELDOUT).read_text(encoding="utf-8"))
    for paragraph in (p for article in document["data"] for p in article["paragraphs"]):
        for each in paragraph["qas"]:
            each["question"] = each["question"] + "?"
    (tmp_path / "other.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UntrustedInput, match="not the questions"):
        compare([made("eager")], dataset=str(tmp_path / "other.json"))


def test_nothing_to_compare(made, tmp_path):
    with pytest.raises(BadTarget, match="nothing to compare"):
        compare([])
    with pytest.raises(BadTarget, match="no such folder"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(BadTarget, match="not among what is compared"):
        compare([made("eager")], baseline="other")


def test_a_target_stands_for_its_artifact(made, tmp_path):
    folder = made("eager").parents[1]
    found, _ = find([folder / "eager-40.toml"], folder / "artifacts")
    assert (found[0].name, found[0].artifact.directory) == ("eager-40", made("eager"))
    with pytest.raises(BadTarget, match="was not built yet"):
        find([folder / "eager-40.toml"], tmp_path)


def test_an_artifact_that_was_not_verified_is_refused(made, tmp_path):
    copy = shutil.copytree(made("eager"), tmp_path / "unverified")
    (copy / artifacts.EVIDENCE).unlink()
    with pytest.raises(BadTarget, match="was not verified"):
        compare([copy])


def test_a_changed_byte_is_that_artifacts_failure_and_everyones_where_there_is_no_other(made, tmp_path):
    copy = shutil.copytree(made("eager"), tmp_path / "changed")
    (copy / "extra").write_text("x")
    found, failures = find([copy, made("eager")], Path("artifacts"))
    assert [each.name for each in found] == ["eager-40"]
    assert (failures[0].name, failures[0].status) == ("changed", UntrustedInput.exit_status)
    with pytest.raises(UntrustedInput, match="not as it was sealed"):
        find([copy], Path("artifacts"))


def test_what_cannot_be_compared_is_a_failure_and_the_others_are_found(made, tmp_path):
    folder = made("eager").parents[1]
    (tmp_path / "unbuilt.toml").write_text((folder / "eager-40.toml").read_text(encoding="utf-8"), encoding="utf-8")
    copies = {name: shutil.copytree(made("eager"), tmp_path / name) for name in ("unverified", "truncated")}
    (copies["unverified"] / artifacts.EVIDENCE).unlink()
    (copies["truncated"] / artifacts.EVIDENCE).write_text('{"manifest": ', encoding="utf-8")
    found, failures = find(
        [tmp_path / "gone", tmp_path / "unbuilt.toml", *copies.values(), made("eager")], tmp_path / "artifacts"
    )
    assert [each.name for each in found] == ["eager-40"]
    assert [(each.name, each.status) for each in failures] == [
        ("gone", 2),
        ("unbuilt", 2),
        ("unverified", 2),
        ("truncated", 4),
    ]
    problems = ("no such folder", "was not built yet", "was not verified", "verification.json: damaged")
    assert all(problem in each.error for problem, each in zip(problems, failures, strict=True))


def test_damaged_evidence_is_refused(made, tmp_path):
    copy = resealed(made("eager"), tmp_path / "damaged", lambda evidence: evidence.pop("measurement"))
    with pytest.raises(UntrustedInput, match="damaged"):
        find([copy], Path("artifacts"))


def test_what_was_verified_is_known_without_asking(made):
    found, _ = find([made("torchscript")], Path("artifacts"))
    one = found[0]
    flip = contests.Flip(
        id=next(iter(one.reference.answers)), question="", checkpoint="", artifact="else", gold=[], f1_difference=0
    )
    measurement = replace(one.verification.measurement, flips=[flip])
    flipped = replace(one, verification=replace(one.verification, measurement=measurement))
    assert flipped.verified_answers == {**one.reference.answers, flip.id: "else"}


# --- on the command line --------------------------------------------------------------------------------------------


def test_what_was_not_verified_so_is_marked_and_the_status_says_it(made, tmp_path, capfd):
    def claim(evidence: Any) -> None:
        first = next(iter(find([made("eager")], Path())[0][0].reference.answers))
        flip = {"id": first, "question": "", "checkpoint": "", "artifact": "else", "gold": [], "f1_difference": 0.0}
        evidence["measurement"]["flips"] = [flip]

    liar = resealed(made("eager"), tmp_path / "liar", claim)
    status, out, err = command(capfd, "compare", liar, "--format", "csv")
    assert status == 1
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["approach"], row["result"]) == ("liar", "FAILED: same_as_verified")
    assert "liar does not answer as it was verified\n  same_as_verified: 0.975, must be 1" in err


def test_report_measures_and_leaves_a_page(made, tmp_path, capfd):
    pytest.importorskip("vl_convert", reason="the page's plots are made with vl-convert-python")
    page = tmp_path / "report.html"
    page.symlink_to("elsewhere.html")
    status, out, err = command(capfd, "report", made("eager"), "-o", page, "--batch-sizes", "2", "--json")
    assert page.is_symlink(), "what a link leads to was written, and the link left as it was"
    assert (status, f"written: {page}" in err) == (0, True)
    document = json.loads(out)
    assert [speed["batch_size"] for speed in document["measured"][0]["throughput"]] == [4, 2]
    assert document["measured"][0]["latency"]["median"] > 0
    assert "No artifact answers any question otherwise than eager-40" in page.read_text(encoding="utf-8")


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
        (["report", "nowhere", "-o", f"{__file__}/x.html"], 2, "x.html: cannot be written: Not a directory"),
        (["report", "nowhere", "--png", "/proc/x.png"], 2, "/proc/x.png: cannot be written"),
        (["report", "nowhere", "-o", "page.md"], 2, "page.md: the page is written as HTML only"),
        (["report", "nowhere", "--png", "picture.jpg"], 2, "picture.jpg: the picture is written as PNG only"),
    ],
)
def test_bad_usage_is_told_before_any_work(capfd, arguments, status, message):
    left, out, err = command(capfd, *arguments)
    assert (left, out) == (status, "")
    assert message in err


def test_a_report_is_put_in_the_place_of_no_pipe_or_device(capfd, tmp_path):
    for option, name in (("-o", "pipe.html"), ("--png", "pipe.png")):
        os.mkfifo(tmp_path / name)
        status, _, err = command(capfd, "report", "nowhere", option, str(tmp_path / name))
        assert (status, "is no file, and would be replaced" in err) == (2, True)


def test_a_report_is_put_into_no_artifact(made, capfd):
    for option, name in (("-o", "page.html"), ("--png", "picture.png")):
        status, _, err = command(capfd, "report", made("eager"), option, made("eager") / name)
        assert (status, "lies in the artifact" in err, "which is sealed" in err) == (2, True, True)


def test_report_says_what_is_not_installed(capfd, monkeypatch):
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
