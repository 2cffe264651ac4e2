"""Copies of the package and its targets, for tests that change its source."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def copy(folder: Path) -> Path:
    """The package and the targets, copied into `folder`, from where they run."""
    for name in ("qabuild", "targets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`qabuild ARGUMENTS` of the copy in `folder`, started there."""
    return subprocess.run(
        [sys.executable, "-m", "qabuild", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "QABUILD_CACHE": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
    )


def document(folder: Path, *arguments: str) -> Any:
    """What `qabuild ARGUMENTS --json` of the copy prints."""
    done = run(folder, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def keys(folder: Path, *arguments: str) -> dict[str, str]:
    """The key of each step, by `qabuild plan` of the copy."""
    (plan,) = document(folder, "plan", *arguments)
    return {step["name"]: step["key"] for step in plan["steps"]}


def edit(path: Path, old: str, new: str) -> None:
    """Replace `old`, which stands in the file once, by `new`."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), encoding="utf-8")
