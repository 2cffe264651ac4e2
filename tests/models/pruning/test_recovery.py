"""Recovery: a pruned checkpoint, trained against the unpruned one, and still a checkpoint like any other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import PRUNED, changed, run_in_subprocess

from qabuild.builder.build import build
from qabuild.builder.store.local import Store
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.pruning import structure
from qabuild.models.pruning.compact import compact, expand
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.prune import prune
from qabuild.models.training import collate, examples, recover
from qabuild.models.training.loss import hidden_loss
from qabuild.models.training.objectives import Recovery
from qabuild.models.training.options import Recover
from qabuild.models.training.request import Request
from qabuild.models.training.trainer import last_state
from qabuild.target.lineage import Derived, original
from qabuild.target.read import load

RECOVER = Recover(dataset="sample", samples=64, epochs=2, batch_size=16, learning_rate=1e-3, dtype="fp32", save_steps=2)
TINY = {"dataset": "sample", "samples": 32, "round_to": 8}


def silent(message: Mapping[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The sample's checkpoint, with a tenth of its FFN neurons."""
    folder = tmp_path_factory.mktemp("pruned")
    prune(resolve("sample"), Prune(ffn=0.1, **TINY), folder)
    return resolve(folder)


@pytest.fixture
def request_of(tmp_path: Path, pruned: Checkpoint) -> Callable[..., Request]:
    """`request_of(train=..., start=..., teacher=...)`: a request to recover, with its own folders."""

    def make(name: str = "once", **fields: Any) -> Request:
        for folder in ("work", "result"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        request = Request(
            step="recover",
            start=pruned,
            teacher=resolve("sample"),
            train=RECOVER,
            distill=None,
            device="cpu",
            dtype="fp32",
            logits=None,
            work=tmp_path / name / "work",
            directory=tmp_path / name / "result",
            offline=True,
        )
        return replace(request, **fields)

    return make


def distance(checkpoint: Checkpoint, options: Recover = RECOVER) -> float:
    """What recovery minimises, on the questions that it learns from."""
    tokenizer = load_tokenizer(checkpoint.directory)
    windows = examples.load(options, tokenizer)
    batch = collate.Collator(windows, tokenizer.model_input_names)(range(len(windows)))
    objective = Recovery(load_model(resolve("sample")), alpha=0.0, temperature=1.0, hidden_states=1.0)
    with torch.inference_mode():
        return float(objective(load_model(checkpoint), batch))


@pytest.mark.both_lines
def test_a_recovered_checkpoint_is_nearer_to_what_was_pruned(request_of, pruned):
    request = request_of()
    record = recover.run(request, silent)
    assert record["steps"] == 10
    assert distance(resolve(request.directory)) < 0.5 * distance(pruned)


def test_the_hidden_states_take_part_in_the_loss_as_weighted(request_of):
    students = {}
    for weight in (0.0, 1.0):
        request = request_of(name=f"weight {weight}", train=RECOVER.model_copy(update={"hidden_states": weight}))
        recover.run(request, silent)
        students[weight] = distance(resolve(request.directory))
    assert students[1.0] < students[0.0]


def test_a_tokens_error_counts_relative_to_the_teachers_size():
    teacher = torch.tensor([[[1.0, 1.0], [100.0, 100.0], [7.0, 7.0]]])
    student = teacher * torch.tensor([1.1, 1.2, 5.0])[None, :, None]
    mask = torch.tensor([[1, 1, 0]])
    assert float(hidden_loss(student, teacher, mask)) == pytest.approx((0.1**2 + 0.2**2) / 2)


@pytest.mark.both_lines
@pytest.mark.parametrize("model_type", ["albert", "deberta-v2", "distilbert", "mpnet", "roberta"])
def test_a_recovered_checkpoint_has_the_shapes_and_the_zeros_of_the_pruned_one(
    request_of, tiny_checkpoint, tmp_path, model_type
):
    from transformers import AutoModelForQuestionAnswering

    teacher = resolve(tiny_checkpoint(model_type))
    heads = {"heads": 0.5} if structure.ARCHITECTURES[model_type].prunes_heads else {}
    (tmp_path / "pruned").mkdir()
    prune(teacher, Prune(ffn=0.5, **heads, **TINY), tmp_path / "pruned")
    start = resolve(tmp_path / "pruned")
    request = request_of(start=start, teacher=teacher, train=RECOVER.model_copy(update={"samples": 16, "epochs": 1}))
    recover.run(request, silent)
    model, loading = AutoModelForQuestionAnswering.from_pretrained(request.directory, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.to_dict()["model_type"] == model_type
    before, after = load_model(start), load_model(resolve(request.directory))
    changed = 0
    for old, new in zip(structure.layers(before), structure.layers(after), strict=True):
        for part in structure.PARTS if heads else structure.PARTS[:1]:
            assert new.live(part) == old.live(part)
            assert len(new.live(part)) < new.count(part)
        changed += int(not torch.equal(old.ffn[1].weight, new.ffn[1].weight))
    assert changed == len(structure.layers(before))


@pytest.mark.parametrize("model_type", structure.ARCHITECTURES)
def test_expanding_a_compact_model_gives_the_pruned_one(tiny_checkpoint, tmp_path, model_type):
    heads = {"heads": 0.5} if structure.ARCHITECTURES[model_type].prunes_heads else {}
    prune(resolve(tiny_checkpoint(model_type)), Prune(ffn=0.5, **heads, **TINY), tmp_path)
    smaller, expanded = load_model(resolve(tmp_path)), load_model(resolve(tiny_checkpoint(model_type)))
    kept = compact(smaller)
    expand(expanded, smaller.state_dict(), kept)
    torch.testing.assert_close(expanded.state_dict(), load_model(resolve(tmp_path)).state_dict(), rtol=0, atol=0)


@pytest.mark.timeout(300)
def test_a_killed_recovery_resumes_to_the_same_checkpoint(request_of):
    request, uninterrupted = request_of("killed"), request_of("uninterrupted")
    recover.run(uninterrupted, silent)
    assert run_in_subprocess(request, kill_at=5) == -9
    assert last_state(request.work) is not None
    assert run_in_subprocess(request) == 0
    assert resolve(request.directory).digest == resolve(uninterrupted.directory).digest


# --- as a stage of a target -----------------------------------------------------------------------------------------

TARGET = f"""\
{PRUNED}
[prune.recover]
dataset = "sample"
samples = 32
dtype = "fp32"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recovered.toml").write_text(TARGET)
    return tmp_path


DOWNSTREAM = {"compile", "reference", "verify"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.ffn=0.75", DOWNSTREAM | {"prune", "recover"}),
        ("prune.recover.learning_rate=1e-4", DOWNSTREAM | {"recover"}),
        ("prune.recover.hidden_states=0", DOWNSTREAM | {"recover"}),
        ("prune.recover.seed=1", DOWNSTREAM | {"recover"}),
        ("prune.recover.save_steps=7", set()),
    ],
)
def test_a_key_of_the_target_changes_the_keys_of_its_steps(folder, override, expected):
    assert changed(folder / "recovered.toml", override) == expected


def test_what_was_recovered_is_compared_with_what_was_pruned(folder):
    target = load(folder / "recovered.toml")
    assert target.stages == ("prune", "recover")
    assert original(target.origin) == target.checkpoint


def test_of_a_student_it_is_compared_with_the_teacher(folder):
    (folder / "student.toml").write_text(TARGET.replace("[prune]", '[distill]\nteacher.model = "sample"\n[prune]', 1))
    target = load(folder / "student.toml")
    assert target.stages == ("train", "prune", "recover")
    assert target.distill
    assert original(target.origin) == target.distill.teacher
    assert isinstance(target.origin, Derived)
    assert isinstance(target.origin.teacher, Derived), "recovery learns from the student before it was pruned"
    assert target.origin.teacher.stage == "train"


def test_a_build_prunes_and_recovers_once(folder):
    target, store = load(folder / "recovered.toml"), Store(folder / "store")
    built = build(target, folder / "artifacts", results=store)
    assert [step.name for step in built.plan.steps[:3]] == ["checkpoint", "prune", "recover"]
    stages = json.loads((built.directory / "manifest.json").read_text())["stages"]
    assert [each["stage"] for each in stages] == ["prune", "recover"]
    assert stages[1]["examples"]["questions"] == 32
    assert build(load(folder / "recovered.toml"), folder / "artifacts", results=store).cached


def test_relative_paths_of_its_data_are_relative_to_the_target(folder):
    recovered = load(folder / "recovered.toml", ["prune.recover.dataset=./train.json"]).prune
    assert recovered
    assert recovered.recover
    assert Path(recovered.recover.dataset).is_absolute()
