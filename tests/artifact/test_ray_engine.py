"""`qabuild answer --engine ray`: the same answers as without it, whatever happens to workers and nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from bulk_files import FirstWord, rows, write_jsonl
from processes import SECONDS, assert_ended, wait_for
from pyarrow import parquet

from qabuild.artifact.artifact_ref import ArtifactRef
from qabuild.artifact.load import find
from qabuild.artifact.ray_engine import engine_for
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.qa import data
from qabuild.qa.bulk import answer_dataset
from qabuild.qa.bulk.part_writer import PartWriter
from qabuild.system import packages
from qabuild.system.ray_cluster import connected, resources

ROWS, PART_ROWS = 4000, 200


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    """A node as `ray.nodes()` describes it; resources that it has not are absent."""
    return {"Alive": alive, "Resources": {name: n for name, n in (("CPU", cpus), ("GPU", gpus)) if n}}


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "expected"),
    [
        ([node(8)], None, 0, (1, 8)),
        ([node(8)], 3, 0, (3, 2)),
        ([node(8)], 20, 0, (20, 1)),
        ([node(4), node(16)], None, 0, (2, 8)),
        ([node(0), node(4), node(64, alive=False)], None, 0, (1, 4)),
        ([node(32, 4), node(64)], None, 1, (4, 8)),
        ([node(32, 4), node(32, 4)], None, 2, (4, 16)),
        ([node(32, 4)], None, 0.5, (8, 4)),
        ([node(8)], 2, 1, (2, 1)),
    ],
)
def test_workers_share_the_cpus_of_the_nodes_that_fit(
    nodes: list[dict[str, Any]], workers: int | None, gpus: float, expected: tuple[int, int]
) -> None:
    count, options = resources(nodes, workers, gpus)
    assert (count, options["num_cpus"], options["num_gpus"]) == (*expected, gpus)


def test_a_cluster_without_what_workers_need_is_refused() -> None:
    with pytest.raises(MissingEnvironment, match=r"no node of the Ray cluster has 1 GPU and 1 CPU\n.*--workers"):
        resources([node(8)], None, 1)


def test_without_ray_the_command_that_installs_it_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "versions", lambda names: {})
    with pytest.raises(MissingEnvironment, match=r"ray is not installed: pip install 'qabuild\[ray\]'"):
        engine_for(find(artifact), ArtifactRef(source=str(artifact)), address=None, workers=None, gpus_per_worker=None)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_answers_is_refused_at_once(form: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(free.getsockname()[1])
        with (
            pytest.raises(QABuildError, match=rf"{address}: no Ray cluster answers there .*\n.*`ray start --head`"),
            connected(address),
        ):
            pass


def test_a_worker_that_sees_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its parts would be lost on its own disk."""
    write_jsonl(tmp_path / "q.jsonl", rows(3))
    writers = []

    class Recorder:
        def made(self, parts: Any, writer: PartWriter, advance: Any, reporter: Any) -> Iterator[Any]:
            writers.append(writer)
            yield from ((part, writer.write(FirstWord(), part, advance)) for part in parts)

    monkeypatch.chdir(tmp_path)
    assert answer_dataset(Recorder(), "q.jsonl", "out").answered == 3
    monkeypatch.chdir("/")
    writer = writers[0].elsewhere()
    writer.require_shared()
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(BadTarget, match=rf"{tmp_path}/out: a worker sees another folder there\n.*share"):
        writer.require_shared()


# --- with Ray -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> None:
    pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster(ray: None) -> Iterator[Any]:
    """Two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the sample over and over, with an id each; every thousandth has no context."""
    asked = data.load(data.DatasetRef("sample", split="train")).questions
    table = [
        {"id": n, "question": row.question, "context": row.context if n % 1000 else ""}
        for n, row in ((n, asked[n % len(asked)]) for n in range(ROWS))
    ]
    path = tmp_path_factory.mktemp("questions") / "q.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(table), path, row_group_size=500)
    return path


@pytest.fixture(scope="module")
def plain(ray: None, artifact: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers without Ray."""
    out = tmp_path_factory.mktemp("plain") / "answers"
    done = command(artifact, questions, out)
    assert (done.wait(SECONDS), done.communicate()[1].splitlines()[-1]) == (4, summary())
    return out


def summary(resumed: int = 0) -> str:
    return f"{ROWS - ROWS // 1000} answered, {ROWS // 1000} without an answer, {resumed} from an earlier run"


def command(artifact: Path, questions: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """The command, started; its output is short enough for a pipe."""
    arguments = [str(artifact), str(questions), "-o", f"{out}/", "--part-rows", str(PART_ROWS), *options]
    return subprocess.Popen(
        [sys.executable, "-m", "qabuild", "answer", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def complete(out: Path) -> int:
    return len(list(out.glob("_parts/*.json")))


def makers(out: Path) -> list[int]:
    """The processes that have an incomplete part open."""
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            targets = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:  # it ended, or is another user's
            continue
        if any(target.startswith(f"{out}/.part-") for target in targets):
            holders.append(int(process.name))
    return holders


def contents(out: Path) -> dict[str, bytes]:
    """What all files but the records hold: these name the questions by an absolute path."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def assert_same(out: Path, plain: Path) -> None:
    assert contents(out) == contents(plain)
    assert sorted(parquet.read_table(out)["id"].to_pylist()) == list(range(ROWS))


@pytest.mark.scale
def test_another_worker_makes_the_part_of_one_that_is_killed(
    tmp_path: Path, cluster: Any, artifact: Path, questions: Path, plain: Path
) -> None:
    out, engine = tmp_path / "answers", ("--engine", "ray", "--address", cluster.address)
    running = command(artifact, questions, out, *engine)
    wait_for(lambda: complete(out) >= 3, running)
    for _ in range(2):
        os.kill(wait_for(lambda: makers(out), running)[0], signal.SIGKILL)
        time.sleep(0.2)
    err = running.communicate(timeout=SECONDS)[1]
    assert running.returncode == 4, err
    *others, last = err.splitlines()
    assert last == summary()
    assert others[-1].startswith(f"{ROWS // 1000} of {ROWS} rows are bad: {questions}: row 0.context is blank; ")
    deaths = [line for line in others if "its worker died, and another one starts" in line]
    assert len(deaths) == 2
    assert [line for line in others[:-1] if line not in deaths and "answering: " not in line] == []
    assert_same(out, plain)

    for again in (command(artifact, questions, out, *engine), command(artifact, questions, out)):
        assert again.communicate(timeout=SECONDS)[1].splitlines()[-1] == summary(ROWS)


@pytest.mark.scale
def test_the_parts_of_a_node_that_is_lost_are_made_elsewhere(
    tmp_path: Path, cluster: Any, artifact: Path, questions: Path, plain: Path
) -> None:
    """Where no worker can take the place of the lost one, the others make all parts."""
    out, lost = tmp_path / "answers", cluster.add_node(num_cpus=1)
    options = ("--engine", "ray", "--address", cluster.address, "--workers", "3", "--json")
    running = command(artifact, questions, out, *options)
    wait_for(lambda: len(makers(out)) == 3, running)
    cluster.remove_node(lost, allow_graceful=False)
    stdout, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 4, err
    assert json.loads(stdout)["answered"] == ROWS - ROWS // 1000
    assert_same(out, plain)


@pytest.mark.scale
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_workers(
    tmp_path: Path, cluster: Any, artifact: Path, questions: Path, plain: Path, number: signal.Signals
) -> None:
    out = tmp_path / "answers"
    running = command(artifact, questions, out, "--engine", "ray", "--address", cluster.address)
    workers = wait_for(lambda: complete(out) and makers(out), running)
    running.send_signal(number)
    err = running.communicate(timeout=SECONDS)[1]
    assert running.returncode == 128 + number, err
    assert "Traceback" not in err
    assert f"of {ROWS // PART_ROWS} parts are complete; the same command makes the others" in err
    assert_ended(workers)
    resumed = complete(out)
    assert resumed < ROWS // PART_ROWS
    again = command(artifact, questions, out)
    assert again.communicate(timeout=SECONDS)[1].splitlines()[-1] == summary(resumed * PART_ROWS)
    assert_same(out, plain)


@pytest.mark.scale
def test_a_shard_is_made_by_a_ray_that_is_started_for_it(
    tmp_path: Path, artifact: Path, questions: Path, plain: Path
) -> None:
    out = tmp_path / "answers"
    running = command(artifact, questions, out, "--engine", "ray", "--workers", "2", "--shard", "3/4", "-q")
    assert (running.communicate(timeout=SECONDS), running.returncode) == (("", ""), 4)
    parts = {f"part-{part:05d}.parquet" for part in range(3, ROWS // PART_ROWS, 4)}
    assert {name for name in contents(out) if name.startswith("part-")} == parts
    assert contents(out) == {name: content for name, content in contents(plain).items() if name in contents(out)}


@pytest.mark.scale
def test_an_error_on_a_worker_is_the_one_of_the_plain_command(
    tmp_path: Path, cluster: Any, artifact: Path, questions: Path
) -> None:
    wrong = ("--max-seq-len", "64", "--doc-stride", "64")
    plain = command(artifact, questions, tmp_path / "plain", *wrong)
    remote = command(
        artifact, questions, tmp_path / "remote", *wrong, "--engine", "ray", "--address", cluster.address, "-q"
    )
    expected = plain.communicate(timeout=SECONDS)[1]
    assert "doc_stride" in expected
    assert expected in remote.communicate(timeout=SECONDS)[1]
    assert (plain.returncode, remote.returncode) == (2, 2)


@pytest.mark.scale
def test_a_damaged_file_keeps_no_other_from_being_answered(
    tmp_path: Path, cluster: Any, artifact: Path, questions: Path
) -> None:
    asked = parquet.read_table(questions).slice(1, 5).to_pylist()
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        write_jsonl(folder / f"{number}.jsonl", asked)
    (folder / "1.jsonl").write_bytes(b"\xff")
    out, engine = tmp_path / "answers", ("--engine", "ray", "--address", cluster.address)
    err = command(artifact, folder, out, *engine).communicate(timeout=SECONDS)[1]
    assert f"error: {folder}/1.jsonl: not UTF-8 text" in err
    assert sorted(path.name for path in out.glob("part-*")) == ["part-00000.jsonl", "part-00002.jsonl"]
    write_jsonl(folder / "1.jsonl", asked)
    again = command(artifact, folder, out, *engine)
    last = again.communicate(timeout=SECONDS)[1].splitlines()[-1]
    assert (again.returncode, last) == (0, "15 answered, 0 without an answer, 10 from an earlier run")
