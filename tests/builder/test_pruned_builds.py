"""Builds that prune, stopped in the middle: nothing half-made is left, and the next build goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trainings import PRUNED

from qabuild.artifact.manifest import open_artifact


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
