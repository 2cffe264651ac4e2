"""`qabuild.tune`, from a checkpoint to a verified artifact."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import qabuild
from qabuild.builder.store.local import Store
from qabuild.cli import cli
from qabuild.errors import BadTarget, QABuildError
from qabuild.models import measured_speed
from qabuild.models.forms import Form
from qabuild.models.runtime import Runtime
from qabuild.qa.sample import HELDOUT
from qabuild.tuning import candidates, rounds
from qabuild.tuning.arguments import Arguments, named, seconds
from qabuild.tuning.budget import Budget
from qabuild.tuning.candidates import Candidate
from qabuild.tuning.outputs import require_ours
from qabuild.tuning.table import Table
from qabuild.tuning.tune import _learn

SAMPLE_QUESTIONS = 135


class Lines:
    """A reporter that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def progress(self, label: str, total: int):
        from contextlib import nullcontext

        return nullcontext(lambda count: None)


def test_from_a_checkpoint_to_an_artifact_that_anyone_can_build(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = Lines()

    shutil.copy(HELDOUT, "questions.json")  # a file, which no artifact names
    given = {"dataset": "./questions.json", "max_f1_drop": 5, "backends": ["onnxruntime"]}
    tuned = qabuild.tune("sample", **given, reporter=lines)

    entries = {entry.name: entry for entry in tuned.entries}
    assert entries.keys() == {"onnxruntime-fp32", "onnxruntime-int8", "onnxruntime-fp16"}
    assert "slower than fp32" in entries["onnxruntime-fp16"].result, "what the backend refuses is left out, and why"
    assert tuned.finished
    assert tuned.winner is not None
    winner = entries[tuned.winner]
    assert (winner.verified, winner.questions) == (True, SAMPLE_QUESTIONS)
    assert winner.f1_drop_interval is not None
    assert winner.f1_drop_interval[1] <= 5
    fastest = max(entry.speedup or 0 for entry in tuned.entries if entry.verified)
    assert winner.speedup is not None
    assert winner.speedup > fastest / 3, "the winner is the fastest, or as good as it"
    assert sum(line.startswith("onnxruntime-") for line in lines.said) == 2, "the table grows"
    assert any(line == "building onnxruntime-int8 (1 of 2)" for line in lines.said)
    assert not any("verifying" in line for line in lines.said), "so few questions are all asked at once"
    assert not Path("tuned/screened").exists()
    assert all("left)" in line for line in lines.said if line.split()[0] in entries)

    target = tomllib.loads(Path("tuned/tuned.toml").read_text())
    assert target["checkpoint"] == {"model": "sample"}
    assert target["verify"]["gates"] == {"max_f1_drop": 5, "confidence": 0.95, "min_f1_retention": 0.0}
    assert Path("tuned/tuned.lock").exists()
    again = qabuild.build("tuned/tuned.toml", "tuned/artifacts", locked=True)
    assert again.cached, "the target builds the very artifact that won"
    assert again.verification is not None
    assert again.verification.passed
    assert str(tuned.winner) in Path("tuned/report.html").read_text()

    assert measured_speed.recall("cpu") == [], "the sample is too small to tell the speed of others"
    json.dumps(tuned.to_dict())

    before = Store().keys()
    resumed = qabuild.tune("sample", **given)
    assert Store().keys() == before, "nothing is built twice"
    one, other = (json.loads(json.dumps(each.to_dict())) for each in (tuned, resumed))
    same = ("winner", "why", "entries", "comparison")
    assert {name: other[name] for name in same} == {name: one[name] for name in same}, "nor measured twice"
    (remark,) = [remark for remark in resumed.remarks if remark not in tuned.remarks]
    assert "nothing changed since the finalists were compared" in remark
    assert "delete tuned/comparisons to measure anew" in remark
    shutil.rmtree("tuned/comparisons")
    anew = qabuild.tune("sample", **given).comparison
    assert anew is not None
    assert anew.compared_at > other["comparison"]["compared_at"]


def test_a_tuning_that_is_killed_goes_on_where_it_stopped(tmp_path, isolated_cache):
    command = [sys.executable, "-m", "qabuild", "tune", "sample", "-o", str(tmp_path / "tuned")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("eager-fp32"):
                break
        os.killpg(process.pid, signal.SIGKILL)
    made = {key: Store().folder(key).stat().st_mtime_ns for key in sorted(Store().keys())}
    assert made, "the first candidate was built"

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr
        began = time.monotonic()
        for line in process.stderr:
            if line.startswith("eager-fp32"):
                break
        os.killpg(process.pid, signal.SIGINT)
        _, last = process.communicate(timeout=60)
    assert process.returncode == 130
    assert last.endswith("interrupted; the same command goes on from there\n")
    assert time.monotonic() - began < 120
    assert all(Store().folder(key).stat().st_mtime_ns == changed for key, changed in made.items())


KILLED = """
import os, signal, sys
from qabuild import tune
from qabuild.builder import locking
from qabuild.evaluation import report
from qabuild.tuning import ranking, selection

def kill(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

place, output, questions = sys.argv[1:]
owner, name = {
    "comparison": (ranking, "run"),
    "choice": (selection, "choose"),
    "lock": (locking, "lock"),
    "page": (report, "write_page"),
}.get(place, (None, None))
if owner:
    setattr(owner, name, kill)
tuned = tune("sample", dataset=questions, max_f1_drop=5, backends=["onnxruntime"], output=output)
print(tuned.winner)
"""


def test_a_tuning_survives_a_kill_wherever_it_is(tmp_path, isolated_cache):
    questions = shutil.copy(HELDOUT, tmp_path / "questions.json")
    output = tmp_path / "tuned"

    def run(place):
        command = [sys.executable, "-c", KILLED, place, str(output), str(questions)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    for place, written in (("comparison", ()), ("choice", ()), ("lock", ()), ("page", ("tuned.lock",))):
        assert run(place).returncode == -signal.SIGKILL, place
        assert not [name for name in ("tuned.lock", "report.html") if name not in written and (output / name).exists()]
    before = {key: Store().folder(key).stat().st_mtime_ns for key in sorted(Store().keys())}
    whole = run("nowhere")
    assert whole.returncode == 0, whole.stderr
    assert {key: Store().folder(key).stat().st_mtime_ns for key in before} == before, "nothing is built again"
    assert whole.stdout.strip() in ("onnxruntime-fp32", "onnxruntime-int8")
    verification = qabuild.build(output / "tuned.toml", output / "artifacts", locked=True)
    assert verification.cached
    assert (output / "report.html").exists()


def test_the_smallest_may_be_a_pruned_one_whose_loss_counts_from_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(candidates, "PRUNED", {"ffn50-heads75": {"ffn": 0.5, "heads": 0.75}})
    given = {"objective": "size", "allow": ["prune"], "backends": ["onnxruntime"]}
    tuned = qabuild.tune("sample", train_dataset="sample", max_f1_drop=20, **given)
    entries = {entry.name: entry for entry in tuned.entries}
    assert "onnxruntime-int8-ffn50-heads75" in entries
    verified = [entry for entry in tuned.entries if entry.verified]
    assert tuned.winner == min(verified, key=lambda entry: entry.size).name
    assert tuned.winner.startswith("onnxruntime-int8-ffn")
    assert tuned.artifact is not None
    difference = json.loads((tuned.artifact / "verification.json").read_text())["measurement"]["original"]
    assert entries[tuned.winner].f1_drop == pytest.approx(-difference["f1_difference"])
    target = tomllib.loads(Path("tuned/tuned.toml").read_text())
    assert target["prune"]["dataset"] == "sample"
    assert target["verify"]["gates"]["max_f1_drop_from_original"] == 20


def test_latency_is_what_counts_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"objective": "latency", "backends": ["onnxruntime"], "max_f1_drop": 5}
    tuned = qabuild.tune("sample", **given)
    assert tuned.winner is not None
    heads, rows = tuned.table()
    latency = heads.index("latency")
    assert all(row[latency].endswith(" ms") for row in rows if "left out" not in row[-1])
    finalists = [entry for entry in tuned.entries if entry.verified]
    assert all(entry.latency for entry in finalists)
    winner = next(entry for entry in finalists if entry.name == tuned.winner)
    quicker = [entry.result for entry in finalists if entry.latency < winner.latency]
    assert all(result.startswith("equal to the winner, which is simpler") for result in quicker)


def test_where_no_candidate_passes_the_best_are_shown_and_the_status_is_1(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("strict.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n[verify]\ndataset = "sample"\nsamples = 64\n'
        "[verify.gates]\nmin_speedup = 1000\n"
    )
    result = CliRunner().invoke(cli, ["tune", "strict.toml", "--backend", "eager"])
    assert result.exit_code == 1
    assert "min_speedup" in result.stdout
    assert "eager-fp32" in result.stdout
    assert not Path("tuned/tuned.toml").exists()
    Path("tuned/tuned.toml").write_text("# Written by `qabuild tune`.\n")
    result = CliRunner().invoke(cli, ["tune", "strict.toml", "--backend", "eager"])
    assert "tuned/tuned.toml and its artifact are from an earlier tuning" in result.stdout


def test_a_budget_that_is_too_short_says_what_one_build_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "LEAST", 600.0)
    lines = Lines()
    with pytest.raises(
        BadTarget,
        match=r"budget of 1 s is too short to verify one candidate on all 135 questions: that takes about \d+ ",
    ) as refused:
        qabuild.tune("sample", train_dataset="sample", budget=1, backends="eager", reporter=lines)
    assert "sample is not used: no candidate is calibrated, and none is pruned" in lines.said
    assert not any("within" in line for line in lines.said)
    assert not list(Path("tuned").rglob(".*"))
    assert refused.value.hint == "give more (--budget)", "fewer questions than these would not take less time"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("objective", "speed", "'speed' is not known"),
        ("allow", ["distil"], "'distil' is not known"),
        ("backends", ["onnx"], "'onnx' is not known"),
        ("backends", "onnx", "'onnx' is not known"),
        ("backends", 3, "3 is no list of names"),
        ("device", "gpu", "'gpu' is not known"),
        ("budget", float("nan"), "nan is no number"),
        ("budget", -1, "-1 is no time that can pass"),
        ("budget", "5", "'5' is not a number with a unit of time"),
        ("budget", "soon", "'soon' is not a number with a unit of time"),
        ("budget", "0s", "'0s' is no time that can pass"),
        ("budget", None, "None is no number"),
        ("samples", 3, "3 is too few"),
        ("samples", 300.5, "300.5 is no whole number"),
        ("samples", "1024", "'1024' is no number"),
        ("max_f1_drop", float("nan"), "nan is no number"),
        ("max_f1_drop", -1, "-1 is not from 0 to 100"),
        ("dataset", 3, "3 is neither text nor a path"),
        ("train_dataset", "", "is empty"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(tmp_path, monkeypatch, name, value, problem):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadTarget, match=f"{name}: {problem}") as refused:
        qabuild.tune("sample", **{name: value})
    assert refused.value.hint, "an example"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--budget", "5", "budget: '5' is not a number with a unit of time (h, m, s)"),
        ("--max-f1-drop", "nan", "max_f1_drop: nan is no number"),
        ("--samples", "3", "samples: 3 is too few"),
        ("--backend", "onnx", "backends: 'onnx' is not known"),
    ],
)
def test_the_command_line_refuses_the_same(option, value, problem):
    refused = CliRunner().invoke(cli, ["tune", "sample", option, value]).exception
    assert isinstance(refused, BadTarget)
    assert refused.message == problem
    assert ("5m" in (refused.hint or "")) == (option == "--budget")


@pytest.mark.parametrize(
    ("budget", "expected"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5 H", 5400), ("1h 30s", 3630), (7, 7)]
)
def test_a_budget_is_seconds_or_text(budget, expected):
    assert seconds(budget) == expected


def test_a_single_name_will_do_and_a_path_object_is_a_path():
    given = {"objective": "size", "device": "cpu", "budget": 60, "samples": 256, "max_f1_drop": None}
    arguments = Arguments.checked(**given, backends="eager", allow="prune")
    assert (arguments.backends, arguments.allow) == (("eager",), ("prune",))
    assert named("dataset", Path("questions.json")) == "./questions.json"


def test_a_folder_is_tuned_into_by_one_at_a_time_and_only_what_tune_wrote_is_overwritten(tmp_path):
    (tmp_path / "tuned.toml").write_text('description = "mine"\n')
    with pytest.raises(BadTarget, match=r"tuned\.toml exists, and no tuning wrote it"):
        qabuild.tune("sample", output=tmp_path)
    name = f"tune-{hashlib.sha256(os.fsencode(tmp_path.resolve())).hexdigest()[:16]}"
    with Store().lock(name, wait=False), pytest.raises(QABuildError, match=r"another tuning into .* is running"):
        qabuild.tune("sample", output=tmp_path)


def test_a_folder_in_use_is_refused_before_anything_slow_is_imported(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nimport qabuild\nfrom qabuild.tuning import outputs\n"
        "def stop(folder): raise SystemExit(0)\noutputs.require_ours = stop\n"
        "try: qabuild.tune('sample', output='x')\n"
        "finally: print(sorted(name for name in sys.modules if name in "
        "('torch', 'transformers', 'qabuild.evaluation.compare', 'qabuild.builder.steps', 'qabuild.tuning.tune')))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tuned.toml", r"tuned\.toml exists, and no tuning wrote it"),
        ("tuned.lock", r"tuned\.lock exists"),
        ("report.html", r"report\.html exists"),
        ("tuned.toml/x", r"tuned\.toml exists"),
        ("artifacts", r"artifacts exists"),
        ("comparisons", r"comparisons exists"),
        ("candidates/eager-fp32.toml", r"candidates/eager-fp32\.toml exists"),
        ("artifacts/tuned/mine.txt", r"artifacts/tuned: is not an artifact"),
        ("artifacts/tuned.failed/mine.txt", r"artifacts/tuned\.failed: is not an artifact"),
        ("screened/eager-fp32/mine.txt", r"screened/eager-fp32: is not an artifact"),
        ("verified/mine.txt", r"verified/mine\.txt: is not an artifact"),
        ("manifest.json", r"lies in the artifact"),
    ],
)
def test_what_no_tuning_wrote_is_refused_at_the_start_and_stays(tmp_path, name, problem, monkeypatch):
    monkeypatch.setattr("qabuild.tuning.start.read", None)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(BadTarget, match=problem) as refused:
        qabuild.tune("sample", output=tmp_path)
    assert refused.value.hint
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_what_a_tuning_wrote_is_no_hindrance(tmp_path):
    for name, text in {
        "tuned.toml": "# Written by `qabuild tune`.\nx = 1\n",
        "tuned.lock": "# Written by `qabuild lock`; keep it\n",
        "report.html": "<!doctype html>\n<!-- qabuild tune -->\n<html>",
        "candidates/eager-fp32.toml": "# Written by `qabuild tune`.\n",
        "screened/eager-fp32/manifest.json": "{}",
        "screened/.eager-bf16.partial/x": "",
        "artifacts/tuned/manifest.json": "{}",
        "notes.txt": "mine",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    require_ours(tmp_path)


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("qabuild.tuning.start.read", None)
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "x", Path("/proc/nothing/x")):
        result = CliRunner().invoke(cli, ["tune", "sample", "-o", str(output)])
        refused = result.exception
        assert isinstance(refused, QABuildError)
        assert f"the output folder {output}: " in refused.message
        assert "name another with --output" in (refused.hint or "")


def test_speeds_are_remembered_and_a_cache_that_cannot_be_written_is_no_failure(monkeypatch):
    start = SimpleNamespace(checkpoint=SimpleNamespace(name="minilm"))
    lines = Lines()
    job = SimpleNamespace(start=start, reporter=lines)
    form = Form(backend="openvino", variant={}, runtime=Runtime(dtype="int8"))
    candidate = Candidate(form=form, pruned={}, file=Path("openvino-int8.toml"))
    book = Table(Budget(60), "throughput", lines)
    book.add(candidate)
    _learn([candidate], book, job)
    assert measured_speed.recall("cpu") == [], "nothing was measured"
    book.settle(candidate, "screened", speedup=4.2)
    _learn([candidate], book, job)
    assert [speed.speedup for speed in measured_speed.recall("cpu")] == [4.2]

    def fail(speeds):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(measured_speed, "remember", fail)
    _learn([candidate], book, job)
    assert "Read-only file system" in lines.said[-1]
