"""Trainings in a process of their own, and plans of targets that train or prune."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from qabuild.builder import plan as planning
from qabuild.builder.plan import Plan
from qabuild.builder.store.local import Store
from qabuild.models.training.request import Request
from qabuild.target.read import load

PRUNED = """\
[checkpoint]
model = "sample"
[prune]
dataset = "sample"
samples = 32
ffn = 0.5
round_to = 8
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 12
"""
"""A target that prunes half of the FFN."""


def run_in_subprocess(request: Request, kill_at: int | None = None) -> int:
    """Run the step in a subprocess, which is killed once it has reached the step `kill_at`; return its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qabuild.models.training"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    with process.stdin:
        json.dump(request.to_dict(), process.stdin)
    for line in process.stdout:
        if kill_at is not None and json.loads(line).get("progress", {}).get("step", 0) >= kill_at:
            process.kill()
    return process.wait()


def planned(path: Path, *overrides: str) -> Plan:
    """The plan of the target at `path`, with a store beside it."""
    target = load(path, overrides)
    return planning.make(target, planning.gather(target, Store(path.parent / "store"), "x", fetch=False))


def keys(plan: Plan) -> dict[str, Any]:
    """The key of each step that has inputs."""
    return {step.name: step.key for step in plan.steps if step.inputs}


def changed(path: Path, override: str) -> set[str]:
    """The steps whose keys the override changes."""
    before, after = keys(planned(path)), keys(planned(path, override))
    return {name for name in before if before[name] != after[name]}
