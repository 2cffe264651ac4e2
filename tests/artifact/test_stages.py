"""What was done to a checkpoint before it was compiled, as manifest, show, model card and report say it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qabuild.artifact import readme, stages
from qabuild.artifact.manifest import Artifact, open_artifact, read_manifest
from qabuild.artifact.validation import judged_evidence
from qabuild.builder.build import build
from qabuild.builder.store.local import Store
from qabuild.cli.show import show
from qabuild.errors import UntrustedInput
from qabuild.evaluation.compare import compare
from qabuild.evaluation.report import page
from qabuild.publishing import card
from qabuild.target.read import load

TARGET = """\
[checkpoint]
model = "sample"
[prune]
dataset = "sample"
samples = 40
widths = [[240, 4], [176, 3], [80, 4]]
[prune.recover]
dataset = "sample"
samples = 16
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 8
"""
PRUNED = (
    "Pruned; its layers keep 240, 176, 80 FFN neurons of 256 and 4, 3, 4 attention heads of 4, "
    "{share:.1f} % of their operations. Importance was measured on 40 questions of sample."
)
RECOVERED = "Trained on 16 questions of sample to answer as before it was pruned."


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "small.toml").write_text(TARGET)
    built = build(load(folder / "small.toml"), folder / "artifacts", results=Store(folder / "store"))
    return open_artifact(built.directory)


def test_the_manifest_says_what_each_stage_did(pruned):
    first, second = pruned.manifest.stages
    assert first["widths"] == [[240, 4], [176, 3], [80, 4]]
    assert first["widths_before"] == [[256, 4]] * 3
    assert 0.5 < first["flops"] < 0.9
    assert first["start"] == stages.source(pruned.manifest)
    assert first["start"]["name"] == "sample"
    assert second["start"]["digest"] != first["start"]["digest"]


def test_show_card_and_report_say_it_in_words(pruned):
    shown = CliRunner().invoke(show, [str(pruned.directory)]).output
    verification = judged_evidence(pruned)
    assert verification
    user = readme.UserContent()
    published = card.make(pruned, verification, user, repo="me/small", revision="main", base_license=None)
    report = page.page(compare(pruned.directory, samples=4))
    for text in (shown, published, report):
        assert PRUNED.format(share=100 * pruned.manifest.stages[0]["flops"]) in text
        assert RECOVERED in text
    assert "the checkpoint before it was pruned, in fp32 PyTorch" in published


@pytest.mark.parametrize(
    ("key", "value"),
    [("widths", [[1]]), ("widths", "all"), ("flops", "half"), ("examples", {"questions": 3}), ("start", None)],
)
def test_a_record_that_cannot_be_read_is_refused(pruned, tmp_path, key, value):
    document = json.loads((pruned.directory / "manifest.json").read_text())
    document["stages"][0][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UntrustedInput, match="stages"):
        read_manifest(tmp_path)


def test_an_unknown_stage_is_described_by_its_options():
    stage = {"stage": "nudge", "target": "x", "options": {"by": 3, "seed": None}}
    assert stages.described([stage]) == ["nudge: by 3."]  # type: ignore[list-item]
