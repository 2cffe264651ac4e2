"""Every example runs as a script and prints the answers of the embedded sample's model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    """Run the example in `folder`, with temporary files below it, and return its stdout."""
    temporary = folder / "tmp"
    temporary.mkdir()
    process = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        # The paths of Ray's sockets must be short.
        env={
            **os.environ,
            "TMPDIR": str(temporary),
            "RAY_TMPDIR": tempfile.gettempdir(),
            "PYTHONIOENCODING": "utf-8",
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert process.returncode == 0, process.stderr
    assert not list(temporary.glob("qabuild-example-*")), "the example left its artifact behind"
    assert [path.name for path in folder.iterdir()] == ["tmp"]
    return process.stdout


def test_build_compare_answer(tmp_path: Path) -> None:
    lines = run("build_compare_answer.py", tmp_path).splitlines()
    assert "Who drew the plans of the Flisool Bridge? Flerad Vopper" in lines
    assert "How long is the Flisool Bridge? 175 metres" in lines
    table = {line[:26].strip(): line[26:].split() for line in lines if line[26:].strip()}
    for row, result in (
        ("checkpoint", "reference"),
        ("artifact, built", "passed"),
        ("artifact, verified again", "passed"),
    ):
        exact_match, f1, printed_result = table[row]
        # One question of the 135 is 0.74 points: another processor's rounding may change one answer.
        assert float(exact_match) == pytest.approx(92.59, abs=0.75)
        assert float(f1) == pytest.approx(94.01, abs=0.75)
        assert printed_result == result
    assert "F1 retention 100.00%, agreement 100.00%" in lines
    assert any(line.startswith("speedup ") for line in lines)


BATCHES = ["1 175 metres", "2 row N.context is blank", "3 Flerad Vopper"]
"""What the examples with batches print; N is the row's number in its batch."""


@pytest.mark.scale
@pytest.mark.parametrize(("name", "package"), [("ray_batches.py", "ray.data"), ("spark_batches.py", "pyspark")])
def test_batches(tmp_path: Path, name: str, package: str) -> None:
    pytest.importorskip(package)
    if package == "pyspark" and not shutil.which("java"):
        pytest.skip("Spark needs Java")
    assert re.sub(r"row \d+", "row N", run(name, tmp_path)).splitlines() == BATCHES
