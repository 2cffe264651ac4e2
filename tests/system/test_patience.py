"""Work that hangs is given up, and work that gets on is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from qabuild.system.patience import within


def test_the_result_is_that_of_the_work():
    assert within(5, lambda advanced: 42) == 42


@pytest.mark.parametrize("error", [ValueError("wrong"), TimeoutError("its own")])
def test_what_the_work_raises_is_raised(error):
    def work(advanced: Callable[[], None]) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        within(5, work)


def test_work_that_hangs_is_given_up():
    released = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer for 0\.2 s"):
        within(0.2, lambda advanced: released.wait(60))
    assert time.monotonic() - started < 10
    released.set()


def test_work_that_shows_progress_may_take_longer():
    def work(advanced: Callable[[], None]) -> str:
        for _ in range(12):
            time.sleep(0.1)
            advanced()
        return "done"

    assert within(1.0, work) == "done"
