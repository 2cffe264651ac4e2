"""`prune.speedup`: widths by times of this machine. No test expects a time."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainings import PRUNED, changed, planned

from qabuild.builder import locking
from qabuild.builder import plan as planning
from qabuild.builder.build import build, train
from qabuild.builder.facts import TargetFacts, gather
from qabuild.builder.plan import Plan
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget
from qabuild.models.backends import backend
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.pruning import latency, structure, widths
from qabuild.models.pruning.latency_table import Latency
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.prune import prune
from qabuild.models.runtime import Runtime
from qabuild.qa.answer_options import Answer
from qabuild.system import machine
from qabuild.system.reporter import SILENT
from qabuild.target import lock
from qabuild.target.model import Target
from qabuild.target.read import load

NEURONS, HEADS, LAYERS = 64, 4, 3
LINEAR = Latency({"ffn": [(4, 0.6), (NEURONS, 1.0)], "heads": [(1, 0.7), (HEADS, 1.0)]})
"""Without most of its FFN a model takes 60 % of the time, with one head 70 %."""


@functools.cache
def layers() -> list[structure.Layer]:
    from transformers import BertConfig, BertForQuestionAnswering

    shape = {"hidden_size": 16, "num_attention_heads": HEADS, "intermediate_size": NEURONS}
    return structure.layers(BertForQuestionAnswering(BertConfig(num_hidden_layers=LAYERS, vocab_size=8, **shape)))


def some_scores(seed: int) -> list[dict[structure.Part, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    counts: dict[structure.Part, int] = {"ffn": NEURONS, "heads": HEADS}
    return [{part: torch.rand(count, generator=drawn).double() for part, count in counts.items()} for _ in layers()]


def some_times(count: int) -> st.SearchStrategy[dict[int, float]]:
    """What was measured: of some widths, in any order of times, noise included."""
    several = st.dictionaries(st.integers(1, count - 1), st.floats(0.3, 1.1), min_size=1, max_size=5)
    return several.map(lambda times: {**times, count: 1.0})


tables = st.fixed_dictionaries({"ffn": some_times(NEURONS), "heads": some_times(HEADS)}).map(Latency.measured)
steps = st.sampled_from([1, 7, 16, 64])


def options(speedup: float, round_to: int = 16) -> Prune:
    return Prune(speedup=speedup, round_to=round_to)


@given(tables, st.floats(1.001, 4), steps, st.integers(0, 99))
def test_the_chosen_widths_are_as_fast_as_asked_and_no_layer_could_keep_more(table, speedup, round_to, seed):
    try:
        chosen = widths.choose(options(speedup, round_to), layers(), some_scores(seed), table)
    except BadTarget as error:
        best = float(error.message.split(", and ")[1].split()[0])
        assert best < speedup
        if best > 1:
            widths.choose(options(best, round_to), layers(), some_scores(seed), table)
        return
    assert table.of(chosen) <= 1 / speedup + 1e-9
    for layer in chosen:
        assert 1 <= layer["ffn"] <= NEURONS
        assert 1 <= layer["heads"] <= HEADS
        for part, size, count in (("ffn", round_to, NEURONS), ("heads", 1, HEADS)):
            wider = {**layer, part: min(count, layer[part] + size)}
            grown = [wider if each is layer else each for each in chosen]
            assert wider == layer or table.of(grown) > 1 / speedup - 1e-9


@given(tables)
def test_a_wider_layer_is_never_faster(table):
    for part, count in (("ffn", NEURONS), ("heads", HEADS)):
        saved = [table.saved(part, width) for width in range(1, count + 1)]
        assert saved == sorted(saved, reverse=True)
        assert saved[-1] == 0


def test_time_that_heads_take_is_saved_where_the_ffn_costs_nothing():
    free = Latency({"ffn": [(4, 1.0), (NEURONS, 1.0)], "heads": [(1, 0.4), (HEADS, 1.0)]})
    chosen = widths.choose(options(1.5), layers(), some_scores(0), free)
    assert {layer["ffn"] for layer in chosen} == {NEURONS}
    assert sum(layer["heads"] for layer in chosen) < HEADS * LAYERS


def test_what_has_no_times_is_not_pruned():
    chosen = widths.choose(options(1.3), layers(), some_scores(0), Latency({"ffn": LINEAR.times["ffn"]}))
    assert {layer["heads"] for layer in chosen} == {HEADS}


def test_a_speedup_that_no_width_reaches_is_refused_with_the_best():
    with pytest.raises(BadTarget, match=r"4 is asked, and 3\.33 is the best") as caught:
        widths.choose(options(4, round_to=4), layers(), some_scores(0), LINEAR)
    assert caught.value.key == "prune.speedup"


@pytest.mark.parametrize("speedup", [1.0, 0.5, float("inf"), float("nan")])
def test_a_speedup_that_is_none_is_refused(speedup):
    with pytest.raises(ValueError, match="speedup"):
        Prune(speedup=speedup)


@pytest.mark.parametrize("other", [{"flops": 0.5}, {"ffn": 0.5}, {"heads": 0.5}, {"widths": [[8, 1]]}])
def test_a_speedup_beside_another_size_is_refused(other):
    with pytest.raises(ValueError, match="name one of"):
        Prune(speedup=2.0, **other)


# --- measured -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few questions and rounds, and no process of its own."""
    monkeypatch.setattr(latency, "QUESTIONS", 2)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(
        latency, "run_in_child", lambda module, request, directory, *_, **__: latency._work(
            {**request, "directory": str(directory)}, lambda _: None
        )
    )  # fmt: skip


@pytest.mark.parametrize(("name", "dtype"), [("eager", "fp32"), ("onnxruntime", "int8")])
@pytest.mark.parametrize("model_type", ["bert", "mpnet", "albert"])
def test_the_table_has_each_part_that_can_be_pruned(quick, tiny_checkpoint, tmp_path, model_type, name, dtype):
    checkpoint, module = resolve(tiny_checkpoint(model_type)), backend(name)
    table = Prune(speedup=1.5, dataset="sample", samples=32)
    arguments = (checkpoint, table, module.Options(), Runtime(dtype=dtype), Answer(), tmp_path)
    times = latency.measure_in_child(*arguments, offline=True, reporter=SILENT)["times"]
    assert set(times) == {"ffn", "heads"} - ({"heads"} if model_type == "mpnet" else set())
    for pairs in times.values():
        assert pairs[-1][1] == 1
        assert pairs == sorted(pairs)
        assert len(pairs) > 1
    assert not list(tmp_path.iterdir())


def test_times_are_measured_in_a_process_of_their_own(tiny_checkpoint, tmp_path):
    """And of a pruned checkpoint, one relative to the unpruned."""
    checkpoint, options = resolve(tiny_checkpoint("bert")), Prune(speedup=1.5, dataset="sample", samples=32)
    (tmp_path / "pruned").mkdir()
    prune(checkpoint, Prune(ffn=0.5, round_to=8, dataset="sample", samples=32), tmp_path / "pruned")
    arguments = (checkpoint, options, backend("eager").Options(), Runtime(), Answer(), tmp_path)
    times = latency.measure_in_child(*arguments, offline=True, reporter=SILENT)["times"]
    assert {part: pairs[-1][1] for part, pairs in times.items()} == {"ffn": 1, "heads": 1}
    reached = latency.measure_in_child(*arguments, pruned=tmp_path / "pruned", offline=True, reporter=SILENT)
    assert 0 < reached["time"] < 10
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_mpnet_loses_neurons_alone(tiny_checkpoint, tmp_path):
    checkpoint = resolve(tiny_checkpoint("mpnet"))
    table = Prune(speedup=1.3, dataset="sample", samples=32, round_to=8)
    record = prune(checkpoint, table, tmp_path, latency=Latency({"ffn": [(8, 0.6), (32, 1.0)]}))
    before, after = record["widths_before"], record["widths"]
    assert [heads for _, heads in after] == [heads for _, heads in before]
    assert sum(neurons for neurons, _ in after) < sum(neurons for neurons, _ in before)
    assert record["speedup"]["predicted"] >= record["speedup"]["asked"] == 1.3


# --- as steps of a target -------------------------------------------------------------------------------------------

TARGET = PRUNED.replace("ffn = 0.5", "speedup = 1.25").replace("eager", "onnxruntime")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "faster.toml").write_text(TARGET)
    return tmp_path / "faster.toml"


def gathered(target: Target, path: Path) -> TargetFacts:
    return gather(target, Store(path.parent / "store"), "x", fetch=False)


def keys(plan: Plan) -> dict[str, Any]:
    return {step.name: step.key for step in plan.steps if step.name in ("latency", "prune")}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.speedup=1.5", {"prune"}),
        ("prune.round_to=16", {"prune"}),
        ("prune.samples=64", {"latency", "prune"}),
        ("backend.level=1", {"latency", "prune"}),
        ("answer.max_seq_len=128", {"latency", "prune"}),
        ("runtime.dtype=int8", {"latency", "prune"}),
        ("verify.samples=9", set()),
    ],
)
def test_a_key_of_the_target_changes_the_keys_of_its_steps(path, override, expected):
    assert changed(path, override) & {"latency", "prune"} == expected


@pytest.mark.parametrize("name", ["cpu", "cores"])
def test_on_another_machine_times_are_measured_anew(path, monkeypatch, name):
    before = keys(planned(path))
    monkeypatch.setattr(machine, name, lambda: 99)
    assert not set(before.values()) & set(keys(planned(path)).values())


def test_times_do_not_depend_on_what_int8_is_calibrated_on(path):
    path.write_text(TARGET.replace("onnxruntime", "openvino") + "[runtime]\ndtype = 'int8'\n")
    assert keys(planned(path)) == keys(planned(path, "backend.calibration_samples=7"))
    assert keys(planned(path)) != keys(planned(path, "backend.rest=bf16"))


def test_without_a_speedup_nothing_is_timed(path):
    path.write_text(TARGET.replace("speedup = 1.25", "flops = 0.8"))
    assert set(keys(planned(path))) == {"prune"}


def fixed_times(*_: Any, pruned: Path | None, **__: Any) -> dict[str, Any]:
    """In place of a measurement."""
    table = {"ffn": [[8, 0.5], [64, 1.0]], "heads": [[1, 0.8], [2, 1.0]]}
    return {"time": 0.75} if pruned else {"times": table}


def test_a_build_states_widths_and_speedups_and_its_lock_makes_the_same_model_elsewhere(path, monkeypatch):
    monkeypatch.setattr(latency, "measure_in_child", fixed_times)
    path.write_text(TARGET.replace("onnxruntime", "eager"))
    store = Store(path.parent / "store")
    with pytest.raises(BadTarget, match=r"prune\.speedup = 1\.25 was not built on this machine"):
        locking.make(load(path), results=store)

    built = build(lock.load(path), path.parent / "artifacts", results=store)
    assert [step.name for step in built.plan.steps[:3]] == ["checkpoint", "latency", "prune"]
    manifest = json.loads((built.directory / "manifest.json").read_text())
    (stage,) = manifest["stages"]
    assert stage["speedup"]["asked"] == 1.25 <= stage["speedup"]["predicted"]
    assert stage["speedup"]["measured"] == round(1 / 0.75, 3)
    assert stage["widths"] != stage["widths_before"]

    lock.write(locking.make(load(path), results=store), lock.path_of(path))
    elsewhere = lock.load(path, locked=True)
    assert "latency" not in {step.name for step in planning.make(elsewhere, gathered(elsewhere, path)).steps}
    made = train(elsewhere, results=Store(path.parent / "another store"))
    assert made.digest == manifest["checkpoint"]["digest"]

    for override in ("prune.speedup=1.3", "prune.seed=1", "runtime.dtype=bf16"):
        with pytest.raises(BadTarget, match=r"prune\.speedup = 1\..* is not pinned"):
            lock.load(path, [override], locked=True)
    earlier = lock.read(lock.path_of(path))
    again = locking.make(load(path), results=Store(path.parent / "another store"), earlier=earlier)
    assert again == earlier, "where only the pinned widths were built, they stay"


def test_widths_belong_to_what_was_pruned(path):
    text = path.read_text()
    pin = lock.WidthsPin(target=path.stem, chosen_by=lock.chosen_by(load(path)), widths=((8, 1),))
    assert lock.widths_of(load(path), [pin]) == ((8, 1),)
    path.write_text(f'{text}[train]\ndataset = "sample"\n')
    trained = pin.model_copy(update={"chosen_by": lock.chosen_by(load(path))})
    assert lock.widths_of(load(path), [pin]) is None
    for override in ("train.learning_rate=1e-3", "train.samples=64", "checkpoint.model=./elsewhere"):
        assert lock.widths_of(load(path), [trained]) == ((8, 1),)
        assert lock.widths_of(load(path, [override]), [trained]) is None, override


def test_widths_that_keep_all_heads_are_widths_of_mpnet(tiny_checkpoint, tmp_path):
    checkpoint = resolve(tiny_checkpoint("mpnet"))
    heads = checkpoint.config["num_attention_heads"]
    assert not Prune(widths=((8, heads),)).prunes_heads(checkpoint.config)
    assert Prune(widths=((8, heads), (8, heads - 1))).prunes_heads(checkpoint.config)
