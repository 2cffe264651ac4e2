"""One artifact for all tests of the server."""

from __future__ import annotations

from pathlib import Path

import pytest

import qabuild

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 4
"""


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the embedded checkpoint; copy it before changing it."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "tiny.toml").write_text(TARGET)
    return qabuild.build(folder / "tiny.toml", folder).directory
