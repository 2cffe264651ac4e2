"""The table of builds and verifications."""

from __future__ import annotations

from dataclasses import replace

import pytest

import qabuild
from qabuild.artifact.judge import judge
from qabuild.artifact.manifest import open_artifact
from qabuild.cli.console import Console
from qabuild.cli.results import Outcome, conclude
from qabuild.target.gates import Gates

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 16
cross_check = 0
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "x.toml").write_text(TARGET)
    return qabuild.build(folder / "x.toml", folder / "artifacts")


def table(built, capsys, **gates):
    """The cells of the table of a verification by those gates, by column."""
    measurement = replace(built.verification.measurement, f1_difference=-0.25, f1_difference_bounds=(-0.75, 0.1))
    verification = judge(open_artifact(built.directory), measurement, Gates(**gates))
    conclude([Outcome(label="x", document={}, error=None, verification=verification)], Console())
    heads, _, row = capsys.readouterr().out.splitlines()
    split = [line.split("   ") for line in (heads, row)]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in split]
    return dict(zip(*cells, strict=True))


def test_the_table_shows_the_gates_that_are_set(built, capsys):
    usual = table(built, capsys)
    columns = ["artifact", "EM", "F1", "F1 retention", "agreement", "samples/s", "speedup", "result"]
    assert list(usual) == columns
    assert usual["F1 retention"].endswith("% (>= 99)")
    assert usual["agreement"].endswith("%"), "the dtype sets that gate"

    points = table(built, capsys, max_f1_drop=0.5, min_f1_retention=0.0)
    assert list(points) == [*columns[:-1], "F1 lost", "result"]
    assert points["F1 lost"] == "0.25 (<= 0.5)"
    assert points["F1 retention"].endswith("%"), "what cannot fail is no gate"

    sure = table(built, capsys, max_f1_drop=0.5, confidence=0.95, min_speedup=0.01, min_agreement=0.5)
    assert (sure["F1 lost"], sure["result"]) == ("0.25, at worst 0.75 (<= 0.5)", "FAILED: max_f1_drop")
    assert sure["speedup"].endswith("x (>= 0.01)")
    assert sure["agreement"].endswith("% (>= 50)")


def test_what_was_not_verified_has_no_figures_beside_one_with_gates(built, capsys):
    verification = judge(open_artifact(built.directory), built.verification.measurement, Gates(max_f1_drop=0.5))
    outcomes = [
        Outcome(label="x", document={}, error=None, verification=verification),
        Outcome(label="y", document={}, error=None),
    ]
    conclude(outcomes, Console())
    assert capsys.readouterr().out.splitlines()[-1].split() == ["y", *"-" * 7, "compiled,", "unverified"]
