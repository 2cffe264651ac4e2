"""What `[prune]` refuses, and where: when the target is read, in the plan, or when the questions are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trainings import PRUNED

from qabuild.builder import preview as previewing
from qabuild.builder.build import build
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.pruning import structure
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.prune import prune
from qabuild.target.read import load


@pytest.fixture
def small(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(PRUNED)
    return tmp_path / "small.toml"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prune.ffn=0", "above 0"),
        ("prune.ffn=1.5", "1 or less"),
        ("prune.ffn=-0.5", "above 0"),
        ('prune.ffn="half"', "a number"),
        ("prune.heads=0", "above 0"),
        ("prune.flops=0.5", "`widths`; `ffn` and `flops` are given"),
        ("prune.widths=[[64, 4]]", "name one of `ffn` and `heads`"),
        ("prune.widths=[[64]]", "neurons and heads of each layer"),
        ("prune.round_to=0", "1 or more"),
        ("prune.samples=8", "32 or more"),
        ('prune.method="norm"', "fisher"),
        ("prune.fnn=0.5", "ffn"),
        ("prune.recover.epochs=0", "1 or more"),
        ("prune.recover.alpha=2", "1 or less"),
        ("prune.recover.hidden_states=-1", "0 or more"),
        ("prune.recover.layers=[0]", "layers"),
    ],
)
def test_what_is_refused_when_the_target_is_read(small, override, message):
    with pytest.raises(BadTarget) as caught:
        load(small, [override])
    assert "prune" in caught.value.message
    assert message in str(caught.value)


def test_a_table_that_names_no_size_is_refused(small):
    small.write_text(PRUNED.replace("ffn = 0.5\n", ""))
    with pytest.raises(BadTarget, match=r"name one of `ffn` and `heads`.*; none is given"):
        load(small)


@pytest.mark.parametrize(
    ("options", "key", "remedy"),
    [
        ({"ffn": 0.01, "round_to": 32}, "prune.ffn", "ask for 0.125 or more"),
        ({"heads": 0.1}, "prune.heads", "ask for 0.25 or more"),
        ({"flops": 0.01}, "prune.flops", "or more"),
        ({"widths": [[64, 4]]}, "prune.widths", "for each layer"),
        ({"widths": [[64, 4], [999, 4], [64, 4]]}, "prune.widths", "none of them greater than the model's"),
    ],
)
def test_what_is_refused_of_this_checkpoint(tmp_path, options, key, remedy):
    with pytest.raises(BadTarget) as caught:
        prune(resolve("sample"), Prune(**{"dataset": "sample", "samples": 32, **options}), tmp_path)
    assert caught.value.key == key
    assert remedy in str(caught.value)
    assert not list(tmp_path.iterdir())


def planned(path: Path, *overrides: str) -> None:
    previewing.previews([load(path, overrides)], Store(path.parent / "store"), path.parent / "artifacts")


def test_the_plan_refuses_an_architecture_by_name(small, tiny_checkpoint: Callable[..., Path]):
    with pytest.raises(BadTarget, match=r"of type 'convbert' cannot be pruned\n  these can: albert, bert"):
        planned(small, f"checkpoint.model={tiny_checkpoint('convbert')}")


def test_the_plan_refuses_blocks_that_are_larger_than_a_layer(small):
    with pytest.raises(BadTarget, match=r"prune\.round_to: 512, and its layers have 256 neurons\n.* divides 256"):
        planned(small, "prune.round_to=512")


def test_the_plan_refuses_to_prune_heads_that_share_a_bias(small, tiny_checkpoint: Callable[..., Path]):
    with pytest.raises(BadTarget, match="attention heads of a model of type 'mpnet'"):
        planned(small, f"checkpoint.model={tiny_checkpoint('mpnet')}", "prune.heads=0.5")


@pytest.mark.parametrize(("table", "other"), [("prune", "train"), ("prune.recover", "validation")])
def test_the_plan_refuses_the_questions_of_the_verification(small, table, other):
    with pytest.raises(BadTarget, match=rf"^small: {table}\.dataset: .* are asked by the verification as well"):
        planned(small, f"{table}.dataset=sample", f"prune.split={other}", "verify.split=train")


def test_an_artifact_too_far_from_the_unpruned_checkpoint_is_kept_aside(small):
    overrides = ["prune.ffn=0.04", "verify.gates.max_f1_drop_from_original=0.1"]
    built = build(load(small, overrides), small.parent / "artifacts", results=Store(small.parent / "store"))
    assert built.directory.name == "small.failed"
    assert [gate.name for gate in built.verification.failed_gates] == ["max_f1_drop_from_original"]


def test_a_checkpoint_that_was_pruned_before_is_refused(tmp_path):
    halved = Prune(dataset="sample", samples=32, ffn=0.5, round_to=8)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    prune(resolve("sample"), halved, tmp_path / "once")
    with pytest.raises(BadTarget, match="was pruned before"):
        prune(resolve(tmp_path / "once"), halved, tmp_path / "twice")


@pytest.mark.parametrize(
    ("config", "heads", "message"),
    [
        ({"model_type": "albert", "num_hidden_groups": 2}, False, "several groups"),
        ({"model_type": "deberta-v2", "share_att_key": False}, True, "projections of their own"),
        ({"model_type": "deberta-v2"}, True, "projections of their own"),
    ],
)
def test_configs_whose_layers_cannot_be_cut_are_refused(config, heads, message):
    with pytest.raises(BadTarget, match=message):
        structure.architecture(config, heads=heads)
