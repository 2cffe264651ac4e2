"""The store: a key has all of its files or does not exist."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from qabuild.builder.keys import step_key
from qabuild.builder.store.local import Store, link_or_copy
from qabuild.errors import QABuildError


@pytest.fixture
def results(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(text: str):
    def produce(folder: Path) -> dict[str, int]:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
        return {"length": len(text)}

    return produce


def never(folder: Path) -> dict[str, int]:
    raise AssertionError("made a second time")


def test_a_result_is_made_once_and_found_again(results):
    made = results.make("compile", {"a": 1}, write("hello"))
    again = Store(results.root).make("compile", {"a": 1}, never)
    assert again == made
    assert again.record == {"length": 5}
    assert results.keys() == {step_key({"a": 1})}


def test_the_order_of_inputs_is_no_input_but_every_value_is():
    assert step_key({"a": 1, "b": None}) == step_key({"b": None, "a": 1})
    assert len({step_key({"a": 1}), step_key({"a": "1"}), step_key({"a": 1.5}), step_key({"b": 1}), step_key({})}) == 5


def test_what_fails_half_way_leaves_nothing(results):
    def fail(folder: Path) -> dict[str, int]:
        (folder / "half").write_text("x")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        results.make("compile", {"a": 1}, fail)
    assert results.keys() == frozenset()
    assert [p for p in results.root.rglob("*") if p.name == "half"] == []
    results.make("compile", {"a": 1}, write("now"))


def test_placed_files_are_hard_links_or_copies(results, tmp_path, monkeypatch):
    entry = results.make("compile", {"a": 1}, write("hello"))
    link_or_copy(entry, tmp_path / "linked")
    assert (tmp_path / "linked/sub/a.txt").samefile(entry.directory / "sub/a.txt")

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(entry, tmp_path / "copied")
    assert (tmp_path / "copied/sub/a.txt").read_text() == "hello"
    assert not (tmp_path / "copied/sub/a.txt").samefile(entry.directory / "sub/a.txt")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"files": {}}'])
def test_an_entry_that_cannot_be_read_is_made_anew(results, damage):
    entry = results.make("compile", {"a": 1}, write("hello"))
    (entry.directory.parent / "entry.json").write_text(damage)
    assert results.find(entry.key) is None
    assert results.make("compile", {"a": 1}, write("again")).record == {"length": 5}


def _slow(root: str, log: str) -> None:
    def produce(folder: Path) -> dict[str, int]:
        with open(log, "a") as file:
            file.write("made\n")
        time.sleep(0.5)
        return {}

    Store(Path(root)).make("compile", {"a": 1}, produce)


def test_two_processes_that_want_one_result_make_it_once(results, tmp_path):
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "log"
    both = [context.Process(target=_slow, args=(str(results.root), str(log))) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert log.read_text() == "made\n"


def test_a_held_lock_is_an_error_for_who_does_not_wait(results):
    with (
        results.lock("x"),
        pytest.raises(QABuildError, match="another build"),
        Store(results.root).lock("x", wait=False),
    ):
        pass


def test_what_a_target_was_built_from_is_remembered(results):
    entry = results.make("compile", {"a": 1}, write("hello"))
    results.remember("t", {"compile": entry.key, "verify": "gone"})
    assert results.recall("t") == {"compile": entry, "verify": None}
    assert results.recall("never built") == {}


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "store").write_text("a file where the folder should be")
    with pytest.raises(QABuildError, match="QABUILD_CACHE"):
        Store(tmp_path / "store").make("compile", {}, write("x"))
