"""Work in a child process."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qabuild.system.process import Child

SLEEPER = """
import time
from qabuild.system.process import serve
def work(request, tell):
    time.sleep(request["seconds"])
    return {"slept": request["seconds"]}
serve(work)
"""


@pytest.fixture
def sleeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that sleeps as long as it is told."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.syspath_prepend(tmp_path)
    return "sleeper"


def test_a_child_that_takes_too_long_is_killed(sleeper):
    began = time.monotonic()
    with Child(sleeper, "the nap") as child, pytest.raises(TimeoutError, match="the nap took more than 1 s"):
        child.ask({"seconds": 600}, seconds=1)
    assert time.monotonic() - began < 60


def test_a_child_that_answers_in_time_goes_on(sleeper):
    with Child(sleeper, "the nap") as child:
        assert child.ask({"seconds": 0}, seconds=120) == {"slept": 0}
        assert child.ask({"seconds": 0.1}) == {"slept": 0.1}
