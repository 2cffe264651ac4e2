"""Searches whose trials several workers share."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest

pytest.importorskip("optuna")

from qabuild.errors import MissingEnvironment, QABuildError, UntrustedInput
from qabuild.models.training import study
from qabuild.models.training.options import Search

WORKER = """
import sys, time
from pathlib import Path
from qabuild.models.training import study
from qabuild.models.training.options import Search

folder, storage, trials, seconds, dead = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:])
study.ALIVE_SECONDS, study.DEAD_SECONDS, study.POLL_SECONDS = 0.1, dead, 0.1
with study.opened(folder / "search", Search(trials=trials, storage=storage)) as shared:
    print("opened", flush=True)
    sys.stdin.readline()
    while trial := shared.claim():
        print("begins", trial.params["alpha"], flush=True)
        with shared.alive(trial):
            time.sleep(seconds)
        shared.finish(trial, trial.params["alpha"])
        print("ends", trial.params["alpha"], flush=True)
    print("table", [(each.params["alpha"], each.value) for each in shared.trials()], flush=True)
"""


def begin(folder: Path, storage: str, trials: int = 6, seconds: float = 0.3, dead: float = 60) -> subprocess.Popen[str]:
    (folder / "search").mkdir(parents=True)
    command = [sys.executable, "-c", WORKER, str(folder), storage, str(trials), str(seconds), str(dead)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, **pipes, text=True)


def go(*workers: subprocess.Popen[str]) -> None:
    """Lets workers claim trials once all have opened the study."""
    for worker in workers:
        assert worker.stdout.readline() == "opened\n", worker.stderr.read()
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()


def values(lines: list[str], word: str) -> list[str]:
    return [line.split(" ", 1)[1] for line in lines if line.startswith(word)]


@pytest.fixture(params=["journal", "sqlite", pytest.param("postgresql", marks=pytest.mark.scale)])
def storage(request, tmp_path) -> Iterator[str]:
    """The address of a study that has not begun."""
    if request.param == "postgresql":
        with postgres.database() as address:
            yield address
    else:
        yield f"journal://{tmp_path}/study" if request.param == "journal" else f"sqlite:///{tmp_path}/study"


def test_workers_share_the_trials_and_agree_on_the_outcome(tmp_path, storage):
    workers = [begin(tmp_path / name, storage) for name in ("one", "two")]
    go(*workers)
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    lines = [output.splitlines() for output, _ in outputs]
    assert len(values(lines[0], "ends")) + len(values(lines[1], "ends")) == 6
    assert all(values(each, "ends") for each in lines), "each did some"
    assert values(lines[0], "table") == values(lines[1], "table")
    assert set(Counter(values(lines[0], "ends") + values(lines[1], "ends")).values()) == {1}, "no trial ran twice"


def test_the_trial_of_a_worker_that_was_killed_is_run_by_another(tmp_path, storage):
    killed = begin(tmp_path / "killed", storage, trials=2, seconds=600)
    go(killed)
    parameter = killed.stdout.readline().split()[1]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    other = begin(tmp_path / "other", storage, trials=2, seconds=0.05, dead=2)
    go(other)
    output, errors = other.communicate(timeout=120)
    assert other.returncode == 0, errors
    done = values(output.splitlines(), "ends")
    assert len(done) == 2
    assert parameter in done


def test_a_worker_that_was_interrupted_goes_on_with_its_own_trial(tmp_path):
    options = Search(trials=2, storage=f"journal://{tmp_path}/study")
    with study.opened(tmp_path, options) as first:
        trial = first.claim()
    with study.opened(tmp_path, options) as again:
        resumed = again.claim()
    assert trial is not None
    assert resumed is not None
    assert (resumed.number, resumed.params) == (trial.number, trial.params)


def test_a_result_that_comes_after_its_trial_was_given_up_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "DEAD_SECONDS", 0.2)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.05)
    options = Search(trials=1, storage=f"journal://{tmp_path}/study")
    for name in ("slow", "quick"):
        (tmp_path / name / "search").mkdir(parents=True)
    with study.opened(tmp_path / "slow" / "search", options) as slow:
        late = slow.claim()  # and shows no sign of life
        assert late is not None
        with study.opened(tmp_path / "quick" / "search", options) as quick:
            began = time.monotonic()
            taken = quick.claim()
            assert time.monotonic() - began > 0.2
            assert taken is not None
            assert taken.params == late.params
            quick.finish(taken, 80.0)
        slow.finish(late, 10.0)
        assert slow.claim() is None
        assert [trial.value for trial in slow.trials()] == [80.0]


@pytest.mark.parametrize(
    ("storage", "error", "problem"),
    [
        ("journal:///nowhere/at/all/study", QABuildError, "/nowhere/at/all/study: No such file or directory"),
        ("sqlite:////nowhere/at/all.db", QABuildError, "unable to open database file"),
        ("mysql+nodriver://me:secret@host/db", QABuildError, "nodriver"),
        ("oracle+cx_oracle://me:secret@host/db", MissingEnvironment, r"cx_oracle://me:\*\*\*@host/db: .*import"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(tmp_path, monkeypatch, storage, error, problem):
    monkeypatch.setattr(study, "POLL_SECONDS", 0.01)
    options = Search(storage=storage)
    with pytest.raises(error, match=problem) as refused, study.opened(tmp_path, options):
        pass
    assert "secret" not in str(refused.value)
    assert "distill.search.storage" in str(refused.value)
    with pytest.raises(error, match=problem):
        study.require_usable(storage)


@pytest.mark.parametrize(
    "content", ['{"question": "Who?"}\n', "x\ny\n", "no line", '{"op_code": 99, "worker_id": "x"}\n']
)
def test_a_file_that_is_no_study_is_named_and_left_as_it_is(tmp_path, content):
    (tmp_path / "q.jsonl").write_text(content)
    with (
        pytest.raises(UntrustedInput, match=r"q\.jsonl: is damaged, or no study of Optuna"),
        study.opened(tmp_path, Search(storage=f"journal://{tmp_path}/q.jsonl")),
    ):
        pass
    with pytest.raises(UntrustedInput, match="is damaged"):
        study.require_usable(f"journal://{tmp_path}/q.jsonl")
    assert (tmp_path / "q.jsonl").read_text() == content


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("lost", [1, 40])
def test_the_half_line_of_a_killed_worker_is_dropped_before_the_next(tmp_path, shared, lost):
    journal = tmp_path / (study.LOCAL if not shared else "study.log")
    options = Search(trials=2, storage=f"journal://{journal}" if shared else None)
    with study.opened(tmp_path, options) as before:
        before.finish(before.claim(), 1.0)
    content = journal.read_bytes()
    journal.write_bytes(content[:-lost])
    with study.opened(tmp_path, options) as after:
        while trial := after.claim():
            after.finish(trial, 2.0)
    with study.opened(tmp_path, options) as last:  # it reads all that was written after the half line
        assert [trial.value for trial in last.trials()] == [2.0, 2.0]


def test_a_full_disk_leaves_a_journal_that_others_go_on_with(tmp_path):
    """A live worker meets the half line, too."""
    options = Search(trials=2, storage=f"journal://{tmp_path}/study.log")
    with study.opened(tmp_path, options) as one:
        one.finish(one.claim(), 1.0)
        with open(tmp_path / "study.log", "ab") as file:
            file.write(b'{"op_code":6,"wor')
        one.finish(one.claim(), 2.0)
        assert one.claim() is None
    with study.opened(tmp_path, options) as again:
        assert [trial.value for trial in again.trials()] == [1.0, 2.0]


def test_a_damaged_journal_of_one_host_is_named(tmp_path):
    with study.opened(tmp_path, Search()) as trials:
        trials.finish(trials.claim(), 1.0)
    lines = (tmp_path / study.LOCAL).read_bytes().splitlines(keepends=True)
    (tmp_path / study.LOCAL).write_bytes(b"".join([lines[0], b"{\n", *lines[1:]]))
    with (
        pytest.raises(UntrustedInput, match=r"trials\.log: is damaged") as refused,
        study.opened(tmp_path, Search()),
    ):
        pass
    assert refused.value.hint == "remove it: the search begins anew"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_trial_without_a_finite_score_has_failed(tmp_path, value):
    with study.opened(tmp_path, Search(trials=1)) as trials:
        trials.finish(trials.claim(), value)
        assert trials.claim() is None
        assert [trial.state.name for trial in trials.trials()] == ["FAIL"]


def test_a_journal_is_the_same_file_on_all_hosts():
    with pytest.raises(ValueError, match="begins at the root, as in journal:///shared"):
        Search(storage="journal://study.log")


def test_what_is_no_address_is_refused_when_the_target_is_read():
    with pytest.raises(ValueError, match="storage"):
        Search(storage="/shared/study.log")
