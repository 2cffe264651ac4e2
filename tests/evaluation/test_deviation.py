"""An artifact of low precision is held to how far it was from its checkpoint when it was built.

Each sabotage makes a model of another checkpoint, puts its file into a sound artifact, and seals that again. The target
has no gate that would notice: its F1 may fall to 0, and int8 has no limit of its own on logits.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qabuild
from qabuild.artifact import as_built
from qabuild.artifact import manifest as artifacts
from qabuild.artifact.evidence import Flip, Verification
from qabuild.artifact.judge import judge
from qabuild.artifact.manifest import Artifact, Manifest, open_artifact, seal
from qabuild.builder.store.local import Store
from qabuild.errors import MissingEnvironment
from qabuild.evaluation.verify import verify
from qabuild.models.backends import backend, eager
from qabuild.models.checkpoint.resolve import resolve

TARGET = """
[checkpoint]
model = "{model}"
[backend]
name = "{backend}"
[runtime]
dtype = "{dtype}"
[verify]
dataset = "sample"
samples = 16
cross_check = 0
[verify.gates]
min_f1_retention = 0.0
min_agreement = 0.0
max_logit_difference = 1000.0
"""

Weights = dict[str, torch.Tensor]
EMBEDDINGS = "bert.embeddings."


def ignore_token_types(weights: Weights) -> None:
    types = weights[f"{EMBEDDINGS}token_type_embeddings.weight"]
    types[1] = types[0]


def shift_positions(weights: Weights) -> None:
    name = f"{EMBEDDINGS}position_embeddings.weight"
    weights[name] = weights[name].roll(-1, 0)


def lose_a_layer(weights: Weights) -> None:
    weights["bert.encoder.layer.1.output.dense.weight"].zero_()


def lose_late_positions(weights: Weights) -> None:
    weights[f"{EMBEDDINGS}position_embeddings.weight"][300:] = 0


SABOTAGES = [ignore_token_types, shift_positions, lose_a_layer, lose_late_positions]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any) -> Callable[..., Path]:
    """`build("eager", "bf16")`: the artifact of a tiny BERT, built once."""
    folder = tmp_path_factory.mktemp("deviation")

    def make(backend: str, dtype: str) -> Path:
        name = f"{backend}-{dtype}"
        if not (folder / "artifacts" / name).exists():
            text = TARGET.format(model=tiny_checkpoint("bert"), backend=backend, dtype=dtype)
            (folder / f"{name}.toml").write_text(text, encoding="utf-8")
            built = qabuild.build(folder / f"{name}.toml", folder / "artifacts", results=Store(folder / "store"))
            assert built.verification.passed
        return folder / "artifacts" / name

    return make


@pytest.fixture
def sabotaged(tmp_path: Path, tiny_checkpoint: Any) -> Callable[..., Path]:
    """`sabotaged(artifact, change)`: a copy whose model was compiled after `change(weights)`, sealed again."""

    def sabotage(original: Path, change: Callable[[Weights], None]) -> Path:
        source = shutil.copytree(tiny_checkpoint("bert"), tmp_path / "checkpoint")
        weights = load_file(source / "model.safetensors")
        change(weights)
        (source / "model.safetensors").unlink()
        save_file(weights, source / "model.safetensors", {"format": "pt"})
        copy = shutil.copytree(original, tmp_path / "sabotaged")
        manifest = open_artifact(copy).manifest
        compiled = tmp_path / "compiled"
        compiled.mkdir()
        backend(manifest.backend["name"]).compile(resolve(source, None), manifest.options, manifest.runtime, compiled)
        for path in compiled.iterdir():
            (copy / path.name).unlink()  # it may be a hard link to the store's file
            shutil.copyfile(path, copy / path.name)
        return resealed(copy)

    return sabotage


def resealed(folder: Path, **changed: Any) -> Path:
    """`folder`, sealed again without evidence, as its author could."""
    manifest = artifacts.read_manifest(folder)
    facts = {name: value for name, value in vars(manifest).items() if name in Manifest.__dataclass_fields__}
    del facts["files"]
    (folder / artifacts.EVIDENCE).unlink(missing_ok=True)
    seal(folder, **{**facts, **changed})
    return folder


def failed(verification: Verification) -> set[str]:
    return {gate.name for gate in verification.failed_gates}


@pytest.mark.parametrize("change", SABOTAGES)
def test_int8_of_another_model_fails(build, sabotaged, change):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    assert "logit_rms_as_built" in failed(verify(sabotaged(build("onnxruntime", "int8"), change)))


@pytest.mark.parametrize("change", SABOTAGES)
def test_bf16_of_another_model_fails(build, sabotaged, change):
    assert "logit_rms_as_built" in failed(verify(sabotaged(build("eager", "bf16"), change)))


def test_the_manifest_of_every_low_precision_has_the_record(build):
    for name, dtype in (("eager", "fp16"), ("torchscript", "bf16"), ("torch_export", "bf16")):
        recorded = open_artifact(build(name, dtype)).manifest.deviation
        assert recorded is not None
        assert 0 < recorded["logit_rms"] < recorded["logit_difference"] < 0.5
        assert recorded["questions"] == 16
    assert open_artifact(build("eager", "fp32")).manifest.deviation is None, "its limits are close anyway"


def test_an_artifact_without_the_record_has_no_such_gates(build, tmp_path):
    """As one that an earlier version sealed."""
    copy = resealed(shutil.copytree(build("eager", "bf16"), tmp_path / "copy"), deviation=None)
    verification = verify(copy)
    assert verification.passed
    assert not {gate.name for gate in verification.gates if gate.name.endswith("_as_built")}


def test_the_same_error_drawn_again_by_another_processor_passes(build):
    artifact = open_artifact(build("eager", "bf16"))
    measurement, recorded = Verification.from_dict(artifact.evidence).measurement, artifact.manifest.deviation
    again = replace(measurement, logit_rms=1.9 * recorded["logit_rms"], flips=_flips(artifact, recorded, 3))
    assert judge(artifact, again, artifact.manifest.gates).passed
    worse = replace(measurement, logit_rms=2 * recorded["logit_rms"] + 0.01, flips=_flips(artifact, recorded, 9))
    assert failed(judge(artifact, worse, artifact.manifest.gates)) == {"logit_rms_as_built", "changed_answers_as_built"}


def _flips(artifact: Artifact, recorded: Mapping[str, Any], more: int) -> list[Flip]:
    """So many more answers that changed than were recorded."""
    ids = list(artifact.reference.answers)[: recorded["changed_answers"] + more]
    return [Flip(id=name, question="", checkpoint="", artifact="", gold=[], f1_difference=0.0) for name in ids]


@given(st.integers(0, 256), st.integers(0, 256))
def test_more_recorded_changes_allow_more(one, other):
    assert as_built.most_changed(one) >= one + 4
    assert (as_built.most_changed(one) <= as_built.most_changed(other)) or one > other


def test_where_the_model_cannot_run_nothing_is_recorded(tmp_path, tiny_checkpoint, monkeypatch):
    """As with --compile-only for a GPU that is elsewhere."""

    def refuse(*_: object) -> None:
        raise MissingEnvironment("no CUDA device here", "get one")

    text = TARGET.format(model=tiny_checkpoint("bert"), backend="eager", dtype="bf16")
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(eager, "load", refuse)
    built = qabuild.build(tmp_path / "x.toml", tmp_path / "artifacts", compile_only=True)
    assert open_artifact(built.directory).manifest.deviation is None
