"""`qabuild build --engine ray`: the nodes of a cluster make the steps of several targets, each step once."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from processes import SECONDS, assert_ended, wait_for

from qabuild.artifact.manifest import measure_files
from qabuild.builder.build import Built, build
from qabuild.builder.farm.farm import differences, make_steps, ready, shares
from qabuild.builder.farm.planner import Planner
from qabuild.builder.farm.worker import StepWork, View, inputs_from_scratch, make, packed, receive, view
from qabuild.builder.preview import preview
from qabuild.builder.steps.reference import Reference
from qabuild.builder.store.local import Store, document_of
from qabuild.builder.store.remote import EVIDENCE, Remote
from qabuild.cli import cli
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.system.reporter import SILENT
from qabuild.system.version import VERSION
from qabuild.target.read import load

TARGET = '[checkpoint]\nmodel = "sample"\n[backend]\nname = "{}"\n[verify]\ndataset = "sample"\nsamples = {}\n'
PRUNE = '[prune]\ndataset = "sample"\nffn = 0.65\nround_to = 8\nsamples = 32\n'


def target(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


# --- which steps begin, and where -----------------------------------------------------------------------------------


@pytest.fixture
def plans(tmp_path: Path) -> list[Any]:
    """Of three targets of one checkpoint: two share its reference, the third compiles it pruned."""
    texts = {"one": TARGET.format("eager", 4), "two": TARGET.format("torchscript", 4)}
    texts["pruned"] = texts["one"] + PRUNE
    store = Store(tmp_path / "store")
    return [preview(load(target(tmp_path, name, text)), store, name) for name, text in texts.items()]


def begin(plans: list[Any], done: set[str] | None = None, begun: set[str] | None = None) -> list[tuple[str, str]]:
    return [(plan.target.name, step.name) for plan, step in ready(plans, done or set(), begun or set())]


def keys(plan: Any, *names: str) -> set[str]:
    return {plan.step(name).key for name in names}


def test_each_step_begins_once_when_those_that_it_follows_are_done(plans):
    one, two, pruned = plans
    first = [("one", "compile"), ("one", "reference"), ("two", "compile"), ("pruned", "prune"), ("pruned", "original")]
    first.remove(("pruned", "original"))  # the reference of the others: they ask the unpruned checkpoint the same
    assert pruned.step("original").key == one.step("reference").key
    assert begin(plans) == first
    assert begin(plans, begun=keys(one, "compile", "reference")) == [("two", "compile"), ("pruned", "prune")]
    done = keys(one, "compile", "reference")
    assert begin(plans, done) == [("one", "verify"), ("two", "compile"), ("pruned", "prune")]
    assert begin([two], done) == [("two", "compile")]
    assert begin([two], done | keys(two, "compile")) == [("two", "verify")]


def test_a_cached_step_does_not_begin_and_holds_up_none(plans):
    one = plans[0]
    steps = tuple(replace(step, cached=step.name != "verify") for step in one.steps)
    assert begin([replace(one, steps=steps)]) == [("one", "verify")]


@pytest.mark.parametrize(
    ("node", "gpus", "expected"),
    [
        ({"CPU": 8}, 0, (1, 8)),
        ({"CPU": 8, "GPU": 2}, 0, (1, 8)),
        ({"CPU": 64, "GPU": 4}, 1, (4, 16)),
        ({"CPU": 30, "GPU": 4}, 2, (2, 15)),
        ({"CPU": 2, "GPU": 4}, 1, (2, 1)),
        ({"CPU": 8}, 1, (0, 0)),
        ({}, 0, (0, 0)),
    ],
)
def test_a_step_has_its_node_or_its_share_of_it_for_itself(node, gpus, expected):
    assert shares(node, gpus) == expected


def test_what_a_node_has_else_is_said_in_words():
    ours = {"compile": "k1", "package torch": "2.13.0", "machine.cores": 8, "code": "a", "verify.dataset": "d"}
    theirs = {"compile": "k2", "package torch": "2.12.0", "machine.cores": 4, "code": "b", "verify.dataset": "e"}
    expected = ["torch 2.12.0, not 2.13.0", "machine.cores 4, not 8", "other code of qabuild", "another data set"]
    assert differences({**ours, "same": 1}, {**theirs, "same": 1}, {"k1"}) == expected


def test_a_node_of_like_kind_has_the_same_inputs(tmp_path):
    one = load(target(tmp_path, "one", TARGET.format("eager", 4)))
    gone = load(target(tmp_path, "gone", TARGET.format("eager", 4).replace('"sample"\ns', '"./gone.json"\ns')))
    views = view(VERSION, pickle.dumps(View(targets=(one, gone), compile_only=False)))
    assert views["one"] == inputs_from_scratch(one)
    assert f"{tmp_path}/gone.json" in views["gone"]
    with pytest.raises(QABuildError, match=rf"has qabuild {VERSION}, not 9\n.*pip install qabuild==9"):
        view("9", b"that is not read")


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Built, Store]:
    """A build with the driver's store, after which nobody may make a reference; and a node's empty store."""
    driver = Store(tmp_path / "driver")
    built = build(target(tmp_path, "one", TARGET.format("eager", 4)), tmp_path / "artifacts", results=driver)
    monkeypatch.setenv("QABUILD_CACHE", str(tmp_path / "node"))
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", str(tmp_path / "remote"))
    monkeypatch.setattr(Reference, "run", lambda *arguments: pytest.fail("made again"))
    return built, driver


def test_a_node_is_sent_the_evidence_that_its_step_follows(reference, tmp_path):
    built, driver = reference
    shared = Remote(str(tmp_path / "remote"))
    planner = Planner(output=tmp_path, results=driver, remote=shared, compile_only=False, reporter=SILENT)
    step = built.plan.step("verify")
    sent = planner.unshared(built.plan, step)
    assert sent.keys() == keys(built.plan, "reference")
    work = StepWork(target=built.plan.target, name="verify", key=step.key, owner="0" * 32, environment={}, results=sent)
    made = make(VERSION, pickle.dumps(work))
    assert not made.cached
    assert made.content
    driver.drop(step.key)
    receive(driver, step.key, made.content)
    assert driver.find_intact(step.key)


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[Path, Store, str]:
    """A target that was compiled with the driver's store, and the key of its pruning."""
    driver = Store(tmp_path / "driver", Remote(str(tmp_path / "remote")))
    path = target(tmp_path, "pruned", TARGET.format("eager", 4) + PRUNE)
    built = build(path, tmp_path / "artifacts", results=Store(tmp_path / "driver"), compile_only=True)
    return path, driver, str(built.plan.step("prune").key)


def plan(path: Path, driver: Store, output: str = "other") -> Planner:
    """The planner of a farm that is to build the target."""
    planner = Planner(
        output=path.parent / output, results=driver, remote=driver.remote, compile_only=True, reporter=SILENT
    )
    planner.begin([load(path)])
    return planner


def test_for_what_is_built_already_the_remote_cache_is_not_asked(pruned, tmp_path):
    path, driver, _ = pruned
    planner = plan(path, driver, "artifacts")
    assert not planner.errors
    assert not planner.plans
    assert not (tmp_path / "remote").exists()


def test_what_is_damaged_here_is_planned_to_be_made(pruned):
    path, driver, key = pruned
    with open(driver.folder(key) / "files" / "model.safetensors", "r+b") as file:
        file.seek(1000)
        file.write(b"XXXX")
    planner = plan(path, driver)
    assert not planner.errors
    assert begin(list(planner.plans.values())) == [("pruned", "prune")]


def test_what_is_incomplete_here_ends_no_use_of_the_remote_cache(pruned):
    path, driver, key = pruned
    reference = preview(load(path), driver, "pruned").step("reference").key
    (driver.folder(reference) / "files" / "answers.json").unlink()
    planner = plan(path, driver)
    assert begin(list(planner.plans.values())) == [("pruned", "reference")]
    assert driver.remote.holds(key)


@pytest.mark.parametrize("who", ["node", "driver"])
def test_all_go_on_from_the_checkpoint_of_the_remote_cache(pruned, tmp_path, monkeypatch, who):
    """A training need not give the same bytes on two machines, under the same key."""
    path, driver, key = pruned
    monkeypatch.setenv("QABUILD_CACHE", str(tmp_path / "node"))
    monkeypatch.setenv("QABUILD_REMOTE_CACHE", str(tmp_path / "remote"))
    node = Store(tmp_path / "node")
    shutil.copytree(driver.folder(key), node.folder(key))
    put_other_weights(node if who == "node" else driver, key)
    if who == "driver":
        Store(node.root, driver.remote).share("prune", key)
    planner = plan(path, driver)
    (planned,) = planner.plans.values()
    step = planned.step("compile")
    work = StepWork(target=planned.target, name="compile", key=step.key, owner="0" * 32, environment={}, results={})
    make(VERSION, pickle.dumps(work))
    assert driver.remote.holds(step.key)
    assert node.find_intact(key).files == driver.find_intact(key).files


def put_other_weights(store: Store, key: str) -> None:
    """Change the weights of a result, and what its entry says of them."""
    path = store.folder(key) / "files" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # it may be a hard link
    path.write_bytes(content)
    entry = replace(store.find(key), files=measure_files(path.parent))
    (path.parents[1] / "entry.json").write_text(document_of(entry))


def test_a_result_that_arrives_damaged_is_an_error(reference, tmp_path):
    built, driver = reference
    (key,) = keys(built.plan, "reference")
    content = bytearray(packed(driver, key))
    content[len(content) // 2] ^= 1
    with pytest.raises(QABuildError, match=f"the result {key[:16]} arrived damaged"):
        receive(Store(tmp_path / "node"), key, bytes(content))
    assert not Store(tmp_path / "node").find(key)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_without_a_remote_cache_that_can_be_written_it_is_said_what_to_do(tmp_path):
    targets = [load(target(tmp_path, "one", TARGET.format("eager", 4)))]
    with pytest.raises(BadTarget, match=r"there is none\n.*let QABUILD_REMOTE_CACHE name one that all nodes see"):
        make_steps(targets, tmp_path, Store())
    with pytest.raises(BadTarget, match=r"it is read-only\n.*leave out \?mode=ro"):
        make_steps(targets, tmp_path, Store(remote=Remote(f"{tmp_path}/remote?mode=ro")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "127.0.0.1:1"], "--address needs --engine ray"),
        (["--engine", "ray", "--offline"], "cannot be combined with --offline"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    result = CliRunner().invoke(cli, ["build", "x.toml", *options])
    assert result.exit_code == 2
    assert message in result.output


# --- with Ray -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """Two nodes, each with a cache of its own, and this process, the driver, with another one."""

    address: str
    nodes: Mapping[str, Path]
    """The caches, by the names of the nodes."""
    folder: Path

    def run(
        self, *targets: Path, options: tuple[str, ...] = (), is_plain: bool = False, **variables: str
    ) -> subprocess.Popen[str]:
        """The command, started; with `is_plain`, without the cluster."""
        engine = () if is_plain else ("--engine", "ray", "--address", self.address)
        output = ("--output", str(self.folder / "artifacts"))
        return subprocess.Popen(
            [sys.executable, "-m", "qabuild", "build", *map(str, targets), *engine, *output, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "QABUILD_CACHE": str(self.folder / "cache"),
                "QABUILD_REMOTE_CACHE": str(self.folder / "remote"),
                **variables,
            },
        )

    def leases(self) -> list[Path]:
        """Of the steps at work."""
        return list(self.folder.glob("remote/v1/leases/*"))

    def workers(self) -> list[tuple[str, int]]:
        """Node and process of each worker that makes a step."""
        caches = {f"QABUILD_CACHE={path}".encode(): name for name, path in self.nodes.items()}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                variables = (process / "environ").read_bytes().split(b"\0")
            except OSError:  # it ended, or is another user's
                continue
            if title.startswith(b"ray::make"):
                found += [(name, int(process.name)) for line, name in caches.items() if line in variables]
        entries = {name: list((path / "v1" / "staging").glob("*/files")) for name, path in self.nodes.items()}
        return [(name, process) for name, process in found if entries[name]]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, Path]]]:
    """A cluster's address, and the caches of its two nodes."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as RayCluster

    caches = {name: tmp_path_factory.mktemp(name) for name in ("left", "right")}
    cluster = RayCluster()
    for name, cache in caches.items():
        variables = {"QABUILD_CACHE": str(cache), "RAY_worker_niceness": "0"}  # else all other tests come first
        cluster.add_node(num_cpus=1, node_name=name, include_dashboard=False, env_vars=variables)
    yield cluster.address, caches
    cluster.shutdown()


@pytest.fixture
def cluster(nodes: tuple[str, dict[str, Path]], tmp_path: Path) -> Cluster:
    return Cluster(nodes[0], nodes[1], tmp_path)


def finish(running: subprocess.Popen[str], status: int = 0) -> tuple[Any, str]:
    out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == status, err
    return json.loads(out) if out else None, err


def plain(folder: Path, *targets: Path) -> dict[str, Any]:
    """The same builds without a cluster and from nothing."""
    store = Store(folder / "plain-cache")
    return {path.stem: build(path, folder / "plain", results=store) for path in targets}


@pytest.mark.scale
def test_targets_share_their_steps_and_are_those_of_plain_builds(cluster, tmp_path):
    texts = {"one": TARGET.format("eager", 4), "two": TARGET.format("torchscript", 4)}
    texts["pruned"] = texts["one"] + PRUNE
    paths = [target(tmp_path, name, text) for name, text in texts.items()]
    documents, err = finish(cluster.run(*paths, options=("--json",)))
    steps = [step for document in documents for step in document["steps"]]
    made = [step["key"] for step in steps if step["state"] == "made"]
    assert len(made) == len(set(made)) == len({step["key"] for step in steps})
    assert {step["node"] for step in steps} == {"left", "right"}
    stored = {path.stem for path in (tmp_path / "remote" / "v1" / "results").iterdir()}
    assert stored == {step["key"] for step in steps if step["step"] not in EVIDENCE}
    assert not cluster.leases()
    assert err.count("; left makes it for") + err.count("; right makes it for") == len(made)

    builds = plain(tmp_path, *paths)
    assert {document["target"]: document["manifest"] for document in documents} == {
        name: built.manifest for name, built in builds.items()
    }
    assert {step["key"] for step in steps} == {
        step.key for built in builds.values() for step in built.plan.steps if step.inputs
    }
    documents, err = finish(cluster.run(*paths, options=("--json",), is_plain=True))
    assert err.count("nothing to do") == len(paths)
    assert [document["verification"]["passed"] for document in documents] == [True] * 3


@pytest.mark.scale
def test_a_damaged_result_of_the_remote_cache_is_made_anew_by_a_node(cluster, tmp_path):
    path = target(tmp_path, "one", TARGET.format("eager", 6))
    first, _ = finish(cluster.run(path, options=("--json",)))
    (compiled,) = (step["key"] for step in first[0]["steps"] if step["step"] == "compile")
    stored = tmp_path / "remote" / "v1" / "results" / f"{compiled}.tar"
    good = stored.read_bytes()
    middle = len(good) // 2
    stored.write_bytes(good[:middle] + bytes(1000) + good[middle + 1000 :])
    for folder in (tmp_path / "cache", tmp_path / "artifacts", *cluster.nodes.values()):
        shutil.rmtree(folder)

    again, err = finish(cluster.run(path, options=("--json",)))
    assert f"the result {compiled[:16]} of compile is ignored: " in err
    states = {step["step"]: step["state"] for step in again[0]["steps"]}
    assert states == {"compile": "made", "reference": "made", "verify": "made"}
    assert again[0]["manifest"] == first[0]["manifest"]
    names = [step["node"] for step in again[0]["steps"] if step["state"] == "made"]
    assert set(names) <= set(cluster.nodes)


@pytest.mark.scale
def test_another_worker_makes_the_step_of_one_that_is_killed(cluster, tmp_path):
    text = TARGET.format("eager", 4) + PRUNE.replace("0.65", "0.7")  # that no test before made
    running = cluster.run(target(tmp_path, "one", text), options=("--json",))
    _, process = wait_for(lambda: cluster.leases() and cluster.workers(), running)[0]
    os.kill(process, signal.SIGKILL)
    documents, err = finish(running)
    assert documents[0]["verification"]["passed"]
    assert err.count("died, and another one makes it") == 1
    assert not cluster.leases()


@pytest.mark.scale
def test_a_failed_target_leaves_the_others_alone(cluster, tmp_path):
    text = TARGET.format("eager", 5)
    good = target(tmp_path, "good", text)
    slow = target(tmp_path, "slow", text + "[verify.gates]\nmin_speedup = 1000\n")
    (tmp_path / "wrong.json").write_text("{")
    wrong = target(tmp_path, "wrong", TARGET.format("eager", 5).replace('dataset = "sample"', 'dataset = "wrong.json"'))
    narrow = target(tmp_path, "narrow", text + PRUNE.replace("ffn = 0.65", "speedup = 1000"))
    running = cluster.run(good, slow, wrong, narrow)
    out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 1, err
    folder = tmp_path / "artifacts"
    assert {path.name for path in folder.iterdir()} == {"good", "slow.failed"}
    assert "wrong.json" in err
    assert re.search(r"error: prune on (left|right): prune\.speedup: 1000 is asked, and .* is the best", err)
    assert re.findall(r"^ *(\w+) +verify .*?(not made|made|cached) *$", out, re.MULTILINE) == [
        ("good", "made"),
        ("slow", "cached"),
        ("narrow", "not made"),
    ]


@pytest.mark.scale
def test_without_a_node_of_like_kind_nothing_is_made(cluster, tmp_path):
    folder = tmp_path / "packages" / "tokenizers-9.9.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenizers\nVersion: 9.9\n")
    path = os.pathsep.join([str(folder.parent), *filter(None, sys.path)])
    running = cluster.run(target(tmp_path, "one", TARGET.format("eager", 4)), options=("--json",), PYTHONPATH=path)
    _, err = finish(running, MissingEnvironment.exit_status)
    assert "one: no node can make the step compile: left has tokenizers " in err
    assert ", not 9.9; right has tokenizers " in err
    assert not (tmp_path / "remote").exists()


@pytest.mark.scale
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_workers_and_keeps_what_is_done(cluster, tmp_path, number):
    share = "0.75" if number == signal.SIGINT else "0.8"  # that no test before made
    running = cluster.run(target(tmp_path, "one", TARGET.format("eager", 4) + PRUNE.replace("0.65", share)))
    workers = wait_for(lambda: cluster.leases() and cluster.workers(), running)
    running.send_signal(number)
    err = running.communicate(timeout=SECONDS)[1]
    assert running.returncode == 128 + number, err
    assert "Traceback" not in err
    assert_ended([process for _, process in workers])
    assert not cluster.leases()
