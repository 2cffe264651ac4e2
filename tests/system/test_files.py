"""Files that are written atomically, once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from qabuild.system import files


def refused(*_: object) -> None:
    raise OSError("no hard links here")


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_create_a_file_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refused)
    start, created = threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait()
        if files.create(tmp_path / "file", b"%d" % number):
            created.append(b"%d" % number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == [(tmp_path / "file").read_bytes()]
    assert os.listdir(tmp_path) == ["file"]
