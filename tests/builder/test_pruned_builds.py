"""Builds that prune: stopped in the middle, nothing half-made is left; their artifacts open without qabuild."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trainings import PRUNED

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.builder.closure import ImportGraph
from qabuild.builder.steps import prune as steps
from qabuild.errors import QABuildError
from qabuild.target.read import load


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qabuild", "--output", str(folder / "artifacts"), str(folder / "small.toml")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def pruning(build: subprocess.Popen[str]) -> list[Path]:
    """The folder in /proc of the build's child that prunes, if it has one."""
    numbers = Path(f"/proc/{build.pid}/task/{build.pid}/children").read_text().split()
    folders = [Path("/proc", number) for number in numbers]
    return [folder for folder in folders if b"qabuild.models.pruning.prune" in (folder / "cmdline").read_bytes()]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_stopped_while_it_prunes_leaves_no_result_and_the_next_completes(tmp_path, isolated_cache, number):
    (tmp_path / "small.toml").write_text(PRUNED)
    stopped = start(tmp_path)
    wait_until(lambda: any("libtorch" in (child / "maps").read_text() for child in pruning(stopped)))
    (child,) = pruning(stopped)
    stopped.send_signal(number)
    printed = stopped.communicate()[1]
    assert stopped.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), printed
    assert "compile:" not in printed
    wait_until(lambda: not child.exists())
    assert not list((isolated_cache / "v1" / "results").glob("*"))
    assert not (tmp_path / "artifacts" / "small").exists()

    again = start(tmp_path)
    printed = again.communicate()[1]
    assert again.returncode == 0, printed
    assert "prune: not built before" in printed
    (stage,) = open_artifact(tmp_path / "artifacts" / "small").manifest.stages
    assert sum(neurons for neurons, _ in stage["widths"]) == 3 * 256 / 2
    assert not list((isolated_cache / "v1" / "staging").iterdir())


# Prints the largest difference between the logits of the artifact in one folder and of the checkpoint in the other.
COMPARE = """
import sys
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

artifact, checkpoint = sys.argv[1:]
batch = AutoTokenizer.from_pretrained(artifact)(
    ["Who built the lighthouse?"] * 2,
    ["Mira Voss built it in 1871.", "It was built by an engineer, who lived there until the storm of 1902."],
    padding=True,
    return_tensors="pt",
)
OPEN
with torch.inference_mode():
    expected = AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()(**batch)
kept = batch["attention_mask"].bool()
pairs = (torch.as_tensor(start), expected.start_logits), (torch.as_tensor(end), expected.end_logits)
assert "qabuild" not in sys.modules
print(max(float((ours - theirs)[kept].abs().max()) for ours, theirs in pairs))
"""
OPEN = {
    "onnxruntime": """
import onnxruntime
session = onnxruntime.InferenceSession(f"{artifact}/model.onnx")
start, end = session.run(
    ["start_logits", "end_logits"], {node.name: batch[node.name].numpy() for node in session.get_inputs()}
)
""",
    "optimum": """
from optimum.onnxruntime import ORTModelForQuestionAnswering
output = ORTModelForQuestionAnswering.from_pretrained(artifact)(**batch)
start, end = output.start_logits, output.end_logits
""",
    "openvino": """
import openvino
graph = openvino.Core().compile_model(f"{artifact}/openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
output = graph({port.any_name: batch[port.any_name].numpy() for port in graph.inputs})
start, end = output["start_logits"], output["end_logits"]
""",
}


@pytest.mark.both_lines
@pytest.mark.parametrize(
    ("backend", "library"),
    [
        ("onnxruntime", "onnxruntime"),
        pytest.param("onnxruntime", "optimum", marks=pytest.mark.line457),
        ("openvino", "openvino"),
    ],
)
def test_a_pruned_artifact_opens_without_qabuild_and_computes_what_the_pruned_checkpoint_does(
    tmp_path, backend, library
):
    if library == "optimum":
        pytest.importorskip("optimum.onnxruntime")
    (tmp_path / "small.toml").write_text(PRUNED)
    target = load(tmp_path / "small.toml", ["prune.heads=0.5", f"backend.name={backend}"])
    artifact = qabuild.build(target, tmp_path / "artifacts").directory
    command = [sys.executable, "-c", COMPARE.replace("OPEN", OPEN[library]), artifact, qabuild.train(target).directory]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-3


def test_an_update_while_a_stage_is_made_is_said_and_no_defect(tmp_path, monkeypatch):
    (tmp_path / "small.toml").write_text(PRUNED)
    execute, digest = steps.Prune.run, ImportGraph.digest

    def run_and_update(self, context, directory):
        record = execute(self, context, directory)
        monkeypatch.setattr(ImportGraph, "digest", lambda graph, *roots: digest(graph, *roots)[::-1])
        return record

    monkeypatch.setattr(steps.Prune, "run", run_and_update)
    with pytest.raises(QABuildError, match="prune: qabuild, a package or the data changed while it was made"):
        qabuild.train(tmp_path / "small.toml")
