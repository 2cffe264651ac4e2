"""A pinned fingerprint holds whatever the store has: a step that is cached reads no questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import qabuild
from qabuild.builder import data_pins
from qabuild.builder.closure import ImportGraph
from qabuild.builder.facts import gather
from qabuild.builder.plan import make
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa import data, sample
from qabuild.qa.data import DatasetRef
from qabuild.target import lock
from qabuild.target.read import load

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[runtime]
dtype = "{dtype}"
[verify]
dataset = "./questions.json"
samples = 4
cross_check = 0
"""
TABLES = {
    "verify": ("verify", ""),
    "training": ("train", '[train]\ndataset = "./learnt.json"\n'),
    "pruning": ("prune", '[prune]\ndataset = "./learnt.json"\nffn = 0.5\n'),
    "recovery": (
        "prune.recover",
        '[prune]\ndataset = "./learnt.json"\nffn = 0.5\n[prune.recover]\ndataset = "./learnt.json"\n',
    ),
}
OTHER = "0" * 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with questions in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(sample.HELDOUT, "questions.json")
    shutil.copyfile(sample.TRAIN, "learnt.json")
    return tmp_path


def write(name: str, tables: str = "", *, backend: str = "eager", dtype: str = "fp32") -> str:
    Path(name).write_text(TARGET.format(backend=backend, dtype=dtype) + tables)
    return name


def shorten(path: str) -> None:
    """Leave the first of its paragraphs."""
    document = json.loads(Path(path).read_text())
    document["data"] = document["data"][:1]
    document["data"][0]["paragraphs"] = document["data"][0]["paragraphs"][:1]
    Path(path).write_text(json.dumps(document))


def test_a_lock_holds_where_another_build_made_all_steps(folder):
    write("locked.toml")
    before = qabuild.build("locked.toml")
    qabuild.lock("locked.toml")
    assert qabuild.build("locked.toml", locked=True).cached
    shorten("questions.json")
    qabuild.build(write("open.toml"))
    for command in (qabuild.build, qabuild.plan):
        with pytest.raises(UntrustedInput, match=r"verify\.dataset: .*questions' fingerprint is .* pinned is"):
            command("locked.toml", locked=True)
    assert qabuild.load(before.directory), "the artifact of the pinned questions is as it was"
    shutil.copyfile(sample.HELDOUT, "questions.json")
    assert qabuild.build("locked.toml", locked=True).cached


@pytest.mark.parametrize(("table", "tables"), TABLES.values(), ids=TABLES)
def test_every_table_that_names_questions_pins_them(folder, table, tables):
    key = f"{table}.fingerprint={OTHER}"
    assert qabuild.plan(write("one.toml", tables)).steps
    for command in (qabuild.plan, qabuild.build):
        with pytest.raises(UntrustedInput, match=rf"{table}\.dataset: .*pinned is {OTHER}"):
            command(load("one.toml", [key]))
    assert not Path("artifacts").exists()


def test_calibration_questions_are_pinned(folder):
    pytest.importorskip("openvino")
    write("int8.toml", backend="openvino", dtype="int8")
    Path("int8.toml").write_text(
        Path("int8.toml").read_text().replace("[runtime]", 'calibration = "sample"\n[runtime]')
    )
    assert qabuild.plan("int8.toml").steps
    with pytest.raises(UntrustedInput, match=rf"backend\.calibration: .*pinned is {OTHER}"):
        qabuild.plan(load("int8.toml", [f"backend.calibration_fingerprint={OTHER}"]))


def test_a_fingerprint_is_computed_once_for_its_bytes(folder, monkeypatch):
    store, code = Store(), ImportGraph()
    fingerprint = data.load(DatasetRef(folder / "questions.json")).fingerprint
    ref = DatasetRef(folder / "questions.json", fingerprint=fingerprint, samples=3)
    identity = data_pins.identity(ref, offline=True)
    data_pins.require(ref, identity, store, code, keep=False, offline=True)
    assert not store.keys(), "a plan keeps nothing"
    data_pins.require(ref, identity, store, code, keep=True, offline=True)
    assert len(store.keys()) == 1
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("read again"))
    data_pins.require(ref, identity, store, code, keep=True, offline=True)
    with pytest.raises(UntrustedInput, match=OTHER):
        data_pins.require(ref.pinned(None, OTHER), identity, store, code, keep=True, offline=True)


def test_a_plan_where_the_questions_are_not_knows_its_steps(folder, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise QABuildError("not in the cache")

    write("one.toml")
    monkeypatch.setattr(data_pins, "require", refuse)
    pinned = load("one.toml", [f"verify.fingerprint={OTHER}"])
    plans = [make(target, gather(target, Store(), "one", fetch=False)) for target in (load("one.toml"), pinned)]
    assert plans[0].step("reference").key == plans[1].step("reference").key is not None
    with pytest.raises(QABuildError, match=r"^verify\.dataset: not in the cache"):
        qabuild.build(pinned)


def test_questions_that_change_while_they_are_read_keep_no_fingerprint(folder):
    ref = DatasetRef(folder / "questions.json", fingerprint=OTHER)
    identity = data_pins.identity(ref, offline=True)
    shorten("questions.json")
    store = Store()
    with pytest.raises(QABuildError, match="was changed while it was read"):
        data_pins.require(ref, identity, store, ImportGraph(), keep=True, offline=True)
    assert not store.keys()


def test_a_lock_does_not_replace_the_pins_of_the_target(folder):
    write("own.toml")
    qabuild.lock("own.toml")
    pinned = Path("own.lock").read_text()
    Path("own.toml").write_text(
        Path("own.toml").read_text().replace("samples = 4", f'samples = 4\nfingerprint = "{OTHER}"')
    )
    assert lock.load("own.toml").verify.fingerprint == OTHER
    with pytest.raises(BadTarget, match=rf"fingerprint [0-9a-f]+ became {OTHER}"):
        lock.load("own.toml", locked=True)
    with pytest.raises(UntrustedInput, match=f"pinned is {OTHER}"):
        qabuild.lock("own.toml")
    assert Path("own.lock").read_text() == pinned
    write("own.toml")
    Path("own.toml").write_text(Path("own.toml").read_text().replace("[backend]", f'digest = "{OTHER}"\n[backend]'))
    with pytest.raises(BadTarget, match=rf"digest [0-9a-f]+ became {OTHER}"):
        lock.load("own.toml", locked=True)
    with pytest.raises(UntrustedInput, match=f"pinned is {OTHER}"):
        qabuild.lock("own.toml")
