"""Housekeeping of the store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from qabuild.builder.store import gc
from qabuild.builder.store.local import Store, step_key
from qabuild.errors import QABuildError

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three results of 10, 20 and 30 bytes, last used one, two and three hours ago."""
    store = Store(tmp_path / "store")
    for number in (1, 2, 3):
        store.make("compile", {"backend.name": f"b{number}"}, lambda folder, n=number: write(folder, 10 * n))
        age(store, number, number * HOUR)
    return store


def write(folder: Path, size: int) -> dict[str, int]:
    (folder / "file").write_bytes(b"x" * size)
    return {}


def key(number: int) -> str:
    return step_key({"backend.name": f"b{number}"})


def age(store: Store, number: int, seconds: float) -> None:
    """As if the result had last been used so many seconds ago."""
    folder = store.folder(key(number))
    used = time.time() - seconds
    for path in (folder, folder / "entry.json"):
        os.utime(path, (used, used))


def entry_size(store: Store, number: int) -> int:
    return (store.folder(key(number)) / "entry.json").stat().st_size


def test_the_longest_unused_comes_first_with_its_size_and_what_it_is(store):
    found = gc.contents(store)
    assert [result.what for result in found] == ["b3", "b2", "b1"]
    assert [result.size for result in found] == [10 * n + entry_size(store, n) for n in (3, 2, 1)]
    assert [round(result.age / HOUR, 1) for result in found] == [3.0, 2.0, 1.0]


def test_an_empty_store_holds_nothing(tmp_path):
    store = Store(tmp_path / "none")
    assert gc.contents(store) == gc.prune(store) == []
    assert gc.verify(store) == ([], [])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"prune.ffn": 0.65, "prune.heads": 0.75, "prune.flops": None}, "ffn 0.65 heads 0.75"),
        ({"prune.flops": 0.5}, "flops 0.5"),
        ({"prune.speedup": 1.5}, "speedup 1.5"),
    ],
)
def test_a_pruned_checkpoint_is_listed_with_the_size_that_was_asked_for(tmp_path, inputs, what):
    store = Store(tmp_path / "store")
    store.make("prune", inputs, lambda folder: write(folder, 1))
    assert [result.what for result in gc.contents(store)] == [what]


def test_pruning_by_age_leaves_what_was_used_since(store):
    assert [result.what for result in gc.prune(store, older_than=1.5 * HOUR)] == ["b3", "b2"]
    assert [result.what for result in gc.contents(store)] == ["b1"]


def test_pruning_by_size_lets_the_longest_unused_go_first(store):
    newest = gc.contents(store)[-1].size
    assert [result.what for result in gc.prune(store, max_size=newest)] == ["b3", "b2"]
    assert sum(result.size for result in gc.contents(store)) <= newest


def test_a_dry_run_drops_nothing(store):
    assert len(gc.prune(store, max_size=0, dry_run=True)) == 3
    assert len(gc.contents(store)) == 3


def test_taking_a_result_makes_it_young(store):
    assert store.find_intact(key(3))
    assert [result.what for result in gc.contents(store)] == ["b2", "b1", "b3"]


def test_a_clock_that_jumped_back_makes_nothing_old(store):
    age(store, 1, -5 * HOUR)
    assert gc.contents(store)[-1].age == 0
    assert gc.prune(store, older_than=0.5 * HOUR)[-1].what == "b2"
    assert [result.what for result in gc.contents(store)] == ["b1"]


def test_verifying_finds_a_flipped_byte_and_drops_the_result(store):
    path = store.folder(key(2)) / "files" / "file"
    path.write_bytes(b"y" + path.read_bytes()[1:])
    intact, damaged = gc.verify(store)
    assert [result.what for result in damaged] == ["b2"]
    assert [result.what for result in intact] == ["b3", "b1"]
    assert store.find(key(2)) is None


def test_pruning_clears_away_damaged_entries_and_what_killed_builds_left(store):
    (store.folder(key(1)) / "entry.json").write_text("{")
    left = store.root / "v1" / "staging" / "left"
    (left / "files").mkdir(parents=True)
    assert [result.step for result in gc.prune(store)] == ["damaged"]
    assert not left.exists()
    assert len(gc.contents(store)) == 2


def test_pruning_leaves_what_a_running_build_is_making(store):
    busy = store.root / "v1" / "staging" / "busy"
    busy.mkdir(parents=True)
    with store.lock("busy"):
        gc.prune(store, older_than=0)
        assert busy.exists()


def test_a_store_that_is_not_there_is_empty_and_one_that_is_a_file_is_none(tmp_path):
    assert gc.contents(Store(tmp_path / "gone")) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(QABuildError, match=r"the store .*file: Not a directory"):
        gc.contents(Store(tmp_path / "file"))
