"""Downloads from a Hub that lists names which are no plain names of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import proven
import pytest
from hub import Hub

from qabuild.errors import UntrustedInput
from qabuild.system import hub_files

pytestmark = [pytest.mark.hub, pytest.mark.both_lines]

TARGET = """\
[checkpoint]
model = "me/checkpoint"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 1
"""


@pytest.fixture
def hub(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> Iterator[Hub]:
    """A Hub with an artifact and a checkpoint."""
    with Hub() as hub:
        hub.commit("model", "me/artifact", proven.make(tmp_path / "artifact"))
        hub.commit("model", "me/checkpoint", tiny_checkpoint())
        yield hub


def refusal(hub: Hub, folder: Path, *arguments: str) -> str:
    """The error of the command, which must end with status 4 and must have downloaded nothing."""
    (folder / "questions.jsonl").write_text('{"id": "1", "question": "Who?", "context": "Ann."}\n')
    (folder / "tiny.toml").write_text(TARGET)
    environment = {**os.environ, **hub.environment(folder / "home"), "QABUILD_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "qabuild", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert not any("/resolve/" in request for request in hub.requests)
    return done.stderr


@pytest.mark.parametrize("name", ["../../x", "/x", "a\\x", "config.JSON", "a/./x", "x\x1b[2J", "x\ny"], ids=ascii)
def test_an_artifact_with_a_strange_name_is_not_downloaded(hub, tmp_path, name):
    hub.planted[name] = b"x"
    assert "me/artifact: the Hub lists a file" in refusal(hub, tmp_path, "answer", "me/artifact", "questions.jsonl")


@pytest.mark.parametrize("name", ["model/../../../x.safetensors", "vocab.\x1b[2J", "VOCAB/../vocab.txt", "vocab.TXT"])
def test_a_checkpoint_with_a_strange_name_is_not_downloaded(hub, tmp_path, name):
    hub.planted |= {name: b"x", "model.safetensors": b"x", "vocab.txt": b"x", "config.json": b"{}"}
    if name.startswith("VOCAB"):
        hub.planted["vocab./../x"] = b"x"
    assert "me/checkpoint: the Hub lists a file" in refusal(hub, tmp_path, "build", "tiny.toml")


def test_names_of_other_files_do_not_matter_to_a_checkpoint(hub):
    class Listing:
        def model_info(self, repo_id: str, **options: object) -> SimpleNamespace:
            names = ["config.json", "README.md", "readme.md", "../x"]
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    assert hub_files.list_names(Listing(), "me/x", "0" * 40, ["config.json"]) == ["config.json"]  # type: ignore[arg-type]
    with pytest.raises(UntrustedInput):
        hub_files.list_names(Listing(), "me/x", "0" * 40)  # type: ignore[arg-type]
