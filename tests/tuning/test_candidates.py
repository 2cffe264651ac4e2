"""Which targets a tuning tries."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import qabuild
from qabuild.errors import BadTarget, MissingEnvironment
from qabuild.models import measured_speed
from qabuild.models.backends import BACKENDS, eager
from qabuild.models.forms import forms
from qabuild.models.measured_speed import MeasuredSpeed
from qabuild.system.reporter import SILENT
from qabuild.target.read import load
from qabuild.tuning import start as starts
from qabuild.tuning.candidates import candidates, pruned

TWO = ("eager", "onnxruntime")


def start(source="sample", **changes):
    given = {"dataset": None, "train_dataset": None, "device": "cpu", "max_f1_drop": 0.5, **changes}
    return starts.read(source, **given, offline=True, reporter=SILENT)


def test_every_backend_is_tried_in_every_dtype_that_this_machine_can_run(tmp_path):
    tried, left_out = candidates(start(), tmp_path)
    names = [candidate.name for candidate in tried]
    assert names[0] == "eager-fp32", "the baseline comes first, since it tells how long the others take"
    assert {"onnxruntime-int8", "torchscript-fp32", "torch-export-fp32", "torch-export-fp32-aot"} <= {*names, *left_out}
    assert not {*names} & {*left_out}
    assert all(left_out.values())
    for candidate in tried:
        target = load(candidate.file)
        assert (target.backend.name, target.runtime.dtype) == (candidate.form.backend, candidate.form.runtime.dtype)
        assert target.verify.gates.max_f1_drop == 0.5


def test_a_new_backend_takes_part_without_a_change_here(tmp_path, monkeypatch):
    new = SimpleNamespace(**{name: getattr(eager, name) for name in dir(eager)})
    new.VARIANTS = {"fp32": ({"name": "eager"},)}
    monkeypatch.setitem(sys.modules, "new_backend", new)
    monkeypatch.setitem(BACKENDS, "new", "new_backend")
    new_ones = [(form.runtime.dtype, form.variant) for form in forms("cpu") if form.backend == "new"]
    assert ("fp32", {}) in new_ones
    assert ("fp32", {"name": "eager"}) in new_ones


def test_what_was_measured_here_decides_what_is_tried_first(tmp_path):
    def speed(backend, dtype, speedup):
        return MeasuredSpeed(
            backend=backend, dtype=dtype, variant={}, device="cpu", speedup=speedup, checkpoint="c", measured_at="2026"
        )

    measured_speed.remember([speed("onnxruntime", "fp32", 9.0), speed("onnxruntime", "int8", 0.1)])
    names = [candidate.name for candidate in candidates(start(), tmp_path, TWO)[0]]
    assert names[:2] == ["eager-fp32", "onnxruntime-fp32"]
    assert names[-1] == "onnxruntime-int8"


def test_int8_is_calibrated_and_pruning_done_on_the_training_data(tmp_path):
    begun = start(train_dataset="sample")
    wide = next(each for each in candidates(begun, tmp_path, TWO)[0] if each.name == "onnxruntime-fp32")
    narrow = pruned(wide, begun)
    assert narrow[0].name == "onnxruntime-fp32-ffn75"
    target = load(narrow[0].file)
    assert target.prune is not None
    assert (target.prune.dataset, target.prune.ffn) == ("sample", 0.75)
    assert target.verify.gates.max_f1_drop is None
    assert target.verify.gates.max_f1_drop_from_original == 0.5
    assert narrow[0].simplicity > wide.simplicity


def test_questions_of_a_target_to_prune_on_keep_their_columns_and_all_that_names_them(tmp_path):
    (tmp_path / "train.jsonl").write_text("")
    (tmp_path / "mine.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "openvino"\ncalibration = "./train.jsonl"\n'
        'calibration_max_misplaced = 0.1\n[backend.calibration_columns]\nquestion = "q"\n'
        '[runtime]\ndtype = "int8"\n[verify]\ndataset = "sample"\n'
    )
    begun = start(str(tmp_path / "mine.toml"))
    wide = next(each for each in candidates(begun, tmp_path / "made", TWO)[0] if each.name == "onnxruntime-fp32")
    prune = load(pruned(wide, begun)[0].file).prune
    assert prune is not None
    wanted = load(tmp_path / "mine.toml").backend.data
    assert Path(prune.dataset).resolve() == Path(wanted.dataset)
    assert replace(prune.data.whole(), dataset=wanted.dataset) == wanted


def test_a_target_keeps_its_tables_and_gates(tmp_path):
    (tmp_path / "mine.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "onnxruntime"\n[runtime]\ndtype = "int8"\n'
        '[answer]\nmax_answer_len = 20\n[verify]\ndataset = "sample"\nbatch_size = 4\n'
        "[verify.gates]\nmin_f1_retention = 0.9\nmin_speedup = 1.5\n"
    )
    tried, _ = candidates(start(str(tmp_path / "mine.toml")), tmp_path / "candidates", TWO)
    target = load(tried[0].file)
    assert (target.answer.max_answer_len, target.verify.batch_size) == (20, 4)
    gates = target.verify.gates
    assert (gates.min_f1_retention, gates.min_speedup, gates.max_f1_drop) == (0.9, 1.5, 0.5)
    assert (target.backend.name, target.runtime.dtype) == ("eager", "fp32"), "but its backend is one of many"


def test_paths_of_a_candidate_stay_what_they_are(tmp_path, tiny_checkpoint, monkeypatch):
    checkpoint = tiny_checkpoint("bert")
    monkeypatch.chdir(tmp_path)
    questions = tmp_path / "questions.json"
    row = {"id": "1", "question": "Who?", "context": "Ann did.", "answers": {"text": ["Ann"], "answer_start": [0]}}
    questions.write_text(json.dumps([row]))
    tried, _ = candidates(start(str(checkpoint), dataset="./questions.json"), Path("made"), TWO)
    assert 'dataset = "../questions.json"' in tried[0].file.read_text()
    assert load(tried[0].file).checkpoint.model == str(checkpoint)
    assert str(checkpoint) in tried[0].file.read_text(), "a moved target finds what was named by an absolute path"

    (tmp_path / "linked").symlink_to(checkpoint)
    Path("base").mkdir()
    (tmp_path / "base" / "base.toml").write_text('[checkpoint]\nmodel = "../linked"\n[backend]\nname = "eager"\n')
    (tmp_path / "mine.toml").write_text(f'extends = "base/base.toml"\n[verify]\ndataset = "{questions}"\n')
    tried, _ = candidates(start("mine.toml"), Path("made"), TWO)
    text = tried[0].file.read_text()
    assert 'model = "../linked"' in text, "relative, as the file that mine.toml extends states it"
    assert f'dataset = "{questions}"' in text


def test_a_checkpoint_that_no_backend_takes_is_refused_with_the_reason(tmp_path, tiny_checkpoint):
    begun = start(tiny_checkpoint("longformer"), dataset="sample")
    tried, left_out = candidates(begun, tmp_path, TWO)
    assert {candidate.form.backend for candidate in tried} == {"eager"}
    assert "sliding windows" in left_out["onnxruntime-fp32"]
    config = {**begun.checkpoint.config, "model_type": "gpt2"}
    other = SimpleNamespace(**{**begun.__dict__, "checkpoint": SimpleNamespace(name="gpt2", config=config)})
    with pytest.raises(BadTarget, match=r"no backend takes gpt2: .*model_type 'gpt2' is not one of the encoders"):
        candidates(other, tmp_path / "others", TWO)
    with pytest.raises(BadTarget, match=r"no backend takes sample: openvino runs no model on cuda"):
        candidates(replace(start(), device="cuda"), tmp_path / "others", ["openvino"])


def test_gates_of_a_target_stay_unless_the_user_says_otherwise(tmp_path):
    (tmp_path / "mine.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n[verify]\ndataset = "sample"\n'
        "[verify.gates]\nmax_f1_drop = 0.2\nconfidence = 0.99\n"
    )
    own, given = (start(str(tmp_path / "mine.toml"), max_f1_drop=drop) for drop in (None, 3.0))
    assert own.tables["verify"]["gates"] == {"max_f1_drop": 0.2, "confidence": 0.99, "min_f1_retention": 0.0}
    assert given.tables["verify"]["gates"]["max_f1_drop"] == 3.0
    assert (own.max_f1_drop, start(max_f1_drop=None).max_f1_drop) == (0.2, 0.5)
    moved = start(str(tmp_path / "mine.toml"), dataset="sample", max_f1_drop=3.0)
    assert moved.tables["verify"]["gates"]["min_f1_retention"] == 0.0


def test_a_gpu_that_is_not_here_is_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("qabuild.system.machine.gpus", lambda: ())
    with pytest.raises(MissingEnvironment, match="no CUDA device here"):
        start(device="cuda")


@pytest.mark.parametrize("option", ["dataset", "train_dataset"])
@pytest.mark.parametrize("name", ["./gone.json", "gone.json", "~/gone.csv"])
def test_a_file_of_questions_that_is_missing_is_refused_before_any_work(option, name, monkeypatch):
    monkeypatch.setattr(starts, "_checkpoint", None)
    with pytest.raises(BadTarget, match=r"gone\.(json|csv): there is no such file"):
        start(**{option: name})


def test_a_missing_file_that_a_target_names_is_refused_before_its_trainings(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[train]\ndataset = "sample"\n[backend]\nname = "openvino"\n'
        'calibration = "./gone.json"\n[runtime]\ndtype = "int8"\n[verify]\ndataset = "sample"\n'
    )
    monkeypatch.setattr(starts, "_checkpoint", None)
    with pytest.raises(BadTarget, match=r"gone\.json: there is no such file"):
        start(str(tmp_path / "mine.toml"))


def test_questions_without_answers_are_refused(tmp_path):
    row = {"id": "1", "question": "Who?", "context": "Ann did.", "answers": {"text": [], "answer_start": []}}
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps([row]))
    with pytest.raises(BadTarget, match="none of the questions has an answer"):
        start(dataset=str(questions))


def test_stages_over_several_targets_are_refused(tmp_path):
    common = '[backend]\nname = "eager"\n[verify]\ndataset = "sample"\n[train]\ndataset = "sample"\n'
    (tmp_path / "first.toml").write_text(f'[checkpoint]\nmodel = "sample"\n{common}')
    (tmp_path / "second.toml").write_text(f'[checkpoint]\ntarget = "first"\n{common}')
    with pytest.raises(BadTarget, match="second: trains or prunes the checkpoint of another target"):
        start(str(tmp_path / "second.toml"))
    assert qabuild.plan(tmp_path / "second.toml").target.name == "second"
