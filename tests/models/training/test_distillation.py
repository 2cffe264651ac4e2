"""Training as steps of a plan: their keys, shared steps, the manifest's record, and the search."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import changed, keys, planned

from qabuild.artifact.judge import explain_failure
from qabuild.builder import plan as planning
from qabuild.builder import preview as previewing
from qabuild.builder.build import build, train
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models.checkpoint.resolve import resolve
from qabuild.target.lineage import Derived, derivations
from qabuild.target.read import load

TARGET = """\
[checkpoint]
model = "sample"
[train]
dataset = "sample"
samples = 48
layers = [0, 2]
epochs = 1
batch_size = 16
learning_rate = 1e-3
dtype = "fp32"
[distill]
teacher.model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 12
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "taught.toml").write_text(TARGET)
    return tmp_path


DOWNSTREAM = {"train", "compile", "reference", "verify"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("distill.alpha=0.5", DOWNSTREAM),
        ("distill.temperature=2", DOWNSTREAM),
        ("train.learning_rate=1e-4", DOWNSTREAM),
        ("train.layers=[0]", DOWNSTREAM),
        ("train.dropout=0.2", DOWNSTREAM),
        ("train.samples=40", DOWNSTREAM | {"logits"}),
        ("train.max_seq_len=200", DOWNSTREAM | {"logits"}),
        ("train.seed=1", DOWNSTREAM | {"logits"}),  # the samples are drawn with it
        ("train.save_steps=7", set()),
        ("verify.gates.min_teacher_f1_retention=0.5", set()),
        ("verify.samples=5", {"reference", "original", "verify"}),
    ],
)
def test_a_key_of_the_target_changes_the_keys_of_its_steps(folder, override, expected):
    assert changed(folder / "taught.toml", override) == expected


def test_a_teachers_answers_are_shared_with_a_target_that_compiles_it(folder):
    (folder / "plain.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n[verify]\ndataset = "sample"\nsamples = 12\n'
    )
    assert keys(planned(folder / "taught.toml"))["original"] == keys(planned(folder / "plain.toml"))["reference"]


def test_a_target_built_on_another_shares_its_training(folder):
    (folder / "fast.toml").write_text(
        '[checkpoint]\ntarget = "taught"\n[backend]\nname = "torchscript"\n[verify]\ndataset = "sample"\nsamples = 12\n'
    )
    base, built_on = keys(planned(folder / "taught.toml")), keys(planned(folder / "fast.toml"))
    assert {name for name in base if base[name] == built_on[name]} == {"logits", "train", "reference", "original"}


def test_a_teacher_may_be_trained_by_another_target(folder):
    (folder / "student.toml").write_text(
        TARGET.replace('teacher.model = "sample"', 'teacher.target = "taught"').replace("[0, 2]", "[0]")
    )
    target = load(folder / "student.toml")
    assert [derived.name for derived in derivations(target.origin)] == ["taught", "student"]
    names = [step.name for step in planned(folder / "student.toml").steps]
    assert names[:5] == ["checkpoint", "taught logits", "taught train", "logits", "train"]


def test_a_student_without_a_checkpoint_starts_from_its_teacher(folder):
    (folder / "layers.toml").write_text(TARGET.replace('[checkpoint]\nmodel = "sample"\n', ""))
    assert load(folder / "layers.toml").origin == renamed(origin(folder / "taught.toml"), "layers")
    (folder / "none.toml").write_text(
        TARGET.replace('[checkpoint]\nmodel = "sample"\n', "").replace("layers = [0, 2]\n", "")
    )
    with pytest.raises(BadTarget, match="checkpoint: is missing"):
        load(folder / "none.toml")


def renamed(derived: Derived, name: str) -> Derived:
    return replace(derived, target=derived.target.model_copy(update={"name": name}))


def origin(path: Path) -> Derived:
    derived = load(path).origin
    assert isinstance(derived, Derived)
    return derived


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.layers=[2, 0]", r"`layers` are named once each, in their order, and not as \[2, 0\]"),
        ("train.gradient_accumulation_steps=3", "must divide `batch_size`, and 3 does not divide 16"),
        ("train.doc_stride=384", "`doc_stride` must be less than `max_seq_len`, and is 384 to 384"),
        ("distill.search.trials=2", r"set train\.held_out"),
        ("distill.alpha=1.5", "accepted: 1 or less"),
    ],
)
def test_an_invalid_training_is_refused_when_the_target_is_read(folder, override, message):
    with pytest.raises(BadTarget, match=message):
        load(folder / "taught.toml", [override])


def test_all_conflicts_are_reported_at_once(folder):
    with pytest.raises(BadTarget, match=r"`layers` are named once.*; .*`batch_size`, and 3 does not"):
        load(folder / "taught.toml", ["train.layers=[2, 0]", "train.gradient_accumulation_steps=3"])


def test_a_gate_on_a_missing_teacher_is_refused_when_the_target_is_read(folder):
    (folder / "plain.toml").write_text('[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n')
    with pytest.raises(BadTarget, match="there is no teacher"):
        load(folder / "plain.toml", ["verify.gates.min_teacher_f1_retention=0.9"])
    with pytest.raises(BadTarget, match="trains nothing"):
        train(folder / "plain.toml", results=Store(folder / "store"))


def test_a_missing_or_damaged_deepspeed_config_is_reported_by_the_plan(folder):
    with pytest.raises(BadTarget, match=r"train\.deepspeed: .*zero\.json: no such file or folder"):
        planned(folder / "taught.toml", f"train.deepspeed={folder}/zero.json")
    (folder / "zero.json").write_text("{bad", encoding="utf-8")
    with pytest.raises(BadTarget, match=r"train\.deepspeed: .*zero\.json: .*line 1 column 2"):
        planned(folder / "taught.toml", f"train.deepspeed={folder}/zero.json")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.layers=[0, 3]", r"has layers 0 to 2, and train\.layers names 3"),
        pytest.param(
            "train.dtype=fp16",
            r'train\.dtype is "fp16", and there is no GPU here',
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_training_that_the_checkpoint_or_machine_cannot_run_is_refused_by_the_plan(folder, override, message):
    with pytest.raises(BadTarget, match=message):
        planned(folder / "taught.toml", override)


def test_training_on_verification_questions_is_refused(folder):
    target, store = load(folder / "taught.toml", ["train.split=validation"]), Store(folder / "store")
    refused = r"^taught: train\.dataset: \d+ of its \d+ questions are asked by the verification"
    with pytest.raises(BadTarget, match=refused):
        build(target, folder / "artifacts", results=store)
    with pytest.raises(BadTarget, match=refused):
        train(target, results=store)
    assert not (folder / "artifacts").exists()
    assert store.keys() == frozenset()


def test_holding_out_every_question_is_refused_by_the_plan(folder):
    target = load(folder / "taught.toml", ["train.held_out=9999"])
    with pytest.raises(BadTarget, match=r"^taught: train\.dataset: train\.held_out is 9999"):
        previewing.previews([target], Store(folder / "store"), folder / "artifacts")


def test_a_build_trains_once_and_records_the_training(folder):
    """The student of some thirty questions is worse than its teacher, so the gate fails."""
    store, reporter = Store(folder / "store"), RecordingReporter()
    gate = "verify.gates.min_teacher_f1_retention=0.99"
    built = build(load(folder / "taught.toml", [gate]), folder / "artifacts", results=store, reporter=reporter)
    assert built.directory.name == "taught.failed"
    assert [failed.name for failed in built.verification.failed_gates] == ["min_teacher_f1_retention"]
    assert "falls short of its teacher" in explain_failure(built.verification, built.directory)[1]
    manifest = json.loads((built.directory / "manifest.json").read_text())
    assert manifest["checkpoint"]["name"] == "taught"
    assert manifest["training"]["teacher"]["digest"] == resolve("sample").digest
    assert manifest["training"]["distill"] == {"alpha": 0.25, "temperature": 3.0}
    assert manifest["training"]["examples"]["questions"] == 48
    assert manifest["training"]["examples"]["dataset"] == "sample"
    assert len(manifest["training"]["examples"]["fingerprint"]) == 64
    assert not store.work(str(built.plan.step("train").key)).exists()

    reporter.lines.clear()
    (folder / "again.toml").write_text('extends = "taught.toml"\n')
    again = build(load(folder / "again.toml"), folder / "artifacts", results=store, reporter=reporter)
    assert again.verification.passed
    assert all(": cached" in line for line in reporter.lines), reporter.lines
    assert build(load(folder / "again.toml"), folder / "artifacts", results=store).cached

    plan = planning.make(again.plan.target, planning.gather(again.plan.target, store, "x", fetch=False))
    assert [step.reason for step in plan.steps if step.name == "logits"] == ["not needed"]

    with open(store.folder(str(plan.step("train").key)) / "files" / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    preview = previewing.preview(again.plan.target, store, "x")
    assert (preview.step("train").cached, preview.step("train").reason) == (False, planning.DAMAGED)
    assert preview.step("logits").reason == "another build made it", "the logits are needed again"


class RecordingReporter:
    """A reporter that records its messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def progress(self, label: str, total: int) -> Any:
        from qabuild.system.reporter import SILENT

        return SILENT.progress(label, total)


# --- search ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def search_request(folder: Path) -> Any:
    """`search_request(name)`: a request for a search of five trials, with its own folders."""
    pytest.importorskip("optuna")
    from qabuild.models.training.request import Request

    target = load(folder / "taught.toml", ["train.held_out=10", "distill.search.trials=5", "distill.search.samples=20"])

    def make(name: str) -> Request:
        for part in ("work", "result"):
            (folder / name / part).mkdir(parents=True)
        return Request(
            step="search",
            start=resolve("sample"),
            teacher=resolve("sample"),
            train=target.train,
            distill=target.distill,
            device="cpu",
            dtype="fp32",
            logits=None,
            work=folder / name / "work",
            directory=folder / name / "result",
            offline=True,
        )

    return make


def test_an_interrupted_search_resumes_to_the_same_result(search_request):
    from qabuild.models.checkpoint.load import load_tokenizer
    from qabuild.models.training import curves, examples
    from qabuild.models.training.search import TABLE, search

    windows = examples.load(search_request("data").train, load_tokenizer(resolve("sample").directory))
    trials: list[tuple[float, float]] = []

    def fit(request: Any, subset: Any) -> None:
        """Fake scores with the optimum at 0.3 and 4; the fourth training is interrupted once."""
        assert len(set(subset.windows.pair[subset.rows])) == 20
        assert request.train.epochs == 1
        trials.append((request.distill.alpha, request.distill.temperature))
        if len(trials) == 4:
            raise KeyboardInterrupt
        f1 = 90 - 50 * abs(request.distill.alpha - 0.3) - abs(request.distill.temperature - 4)
        (request.work / curves.FILE).write_text(json.dumps({"step": 1, "f1": f1}) + "\n")

    interrupted = search_request("interrupted")
    with pytest.raises(KeyboardInterrupt):
        search(interrupted, windows, fit)
    result = search(interrupted, windows, fit)
    assert trials[4] == trials[3]  # the interrupted trial is resumed
    assert len(trials) == 6
    assert search(search_request("uninterrupted"), windows, fit) == result
    best = max(result["trials"], key=lambda row: row["f1"])
    assert result["best"] == {name: best[name] for name in ("alpha", "temperature")}
    assert json.loads((interrupted.directory / TABLE).read_text()) == result["trials"]


def test_a_trial_that_no_build_can_have_made_is_refused(search_request):
    """Whoever can write to a shared storage can add a trial that is the best."""
    import optuna

    from qabuild.models.checkpoint.load import load_tokenizer
    from qabuild.models.training import examples, study
    from qabuild.models.training.search import search

    request = search_request("forged")
    storage = f"journal://{request.work}/study.log"
    searched = request.distill.search.model_copy(update={"storage": storage, "trials": 1})
    request = replace(request, distill=request.distill.model_copy(update={"search": searched}))
    any_range = optuna.distributions.FloatDistribution(0, 1000)
    with study.opened(request.work, searched):
        optuna.load_study(study_name=request.work.name, storage=study._storage(storage)).add_trial(
            optuna.create_trial(
                params={"alpha": 0.5, "temperature": 999.0},
                distributions={"alpha": any_range, "temperature": any_range},
                value=100.0,
            )
        )
    windows = examples.load(request.train, load_tokenizer(resolve("sample").directory))
    with pytest.raises(UntrustedInput, match=r"storage: trial 0 has the temperature 999.0, and the target"):
        search(request, windows, lambda *arguments: pytest.fail("no trial is left"))


def test_the_build_uses_the_best_trial(folder):
    pytest.importorskip("optuna")
    overrides = ["train.held_out=10", "distill.search.trials=2", "train.samples=32", "verify.samples=4"]
    target, store = load(folder / "taught.toml", overrides), Store(folder / "store")
    built = build(target, folder / "artifacts", results=store, compile_only=True)
    training = json.loads((built.directory / "manifest.json").read_text())["training"]
    search = store.find(str(built.plan.step("search").key))
    assert search is not None
    assert training["distill"] == search.record["best"]
    assert len(training["search"]) == 2


def test_a_storage_that_cannot_be_opened_is_refused_before_the_teacher_answers(folder):
    storage = "distill.search.storage=journal:///nowhere/study.log"
    target = load(folder / "taught.toml", ["train.held_out=10", "distill.search.trials=1", storage])
    store = Store(folder / "store")
    with pytest.raises(QABuildError, match=r"distill\.search\.storage: /nowhere/study\.log: No such file or directory"):
        train(target, results=store)
    assert store.keys() == frozenset()
