"""A user without a home folder and without a name, as containers start programs."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

import qabuild
from qabuild.errors import MissingEnvironment
from qabuild.system import hub, native_code, user_folders

TARGET = '[checkpoint]\nmodel = "sample"\n[backend]\nname = "{}"\n[verify]\ndataset = "sample"\nsamples = 8\n'
FOLDERS = ("HOME", "QABUILD_CACHE", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "XDG_STATE_HOME")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    pytest.importorskip("openvino")  # it caches what it compiles in the user's folder
    (tmp_path / "x.toml").write_text(TARGET.format("openvino"))
    return qabuild.build(tmp_path / "x.toml", tmp_path / "artifacts").directory


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in FOLDERS:
        monkeypatch.delenv(name, raising=False)
    assert os.path.expanduser("~") == "~"


def test_an_artifact_is_verified_and_answers_without_a_home(artifact, nobody, working_directory):
    assert qabuild.verify(artifact).passed
    assert qabuild.load(artifact)(question="Who came?", context="Ann came.")["answer"]
    assert not Path("~").exists()


def test_a_build_says_which_folder_it_needs(artifact, nobody):
    with pytest.raises(MissingEnvironment, match="no home folder") as refusal:
        qabuild.build(artifact.parents[1] / "x.toml", artifact.parent)
    assert "QABUILD_CACHE" in refusal.value.hint


def test_whoever_needs_a_folder_says_which(nobody):
    for needs, name in (
        (user_folders.cache, "QABUILD_CACHE"),
        (user_folders.state, "XDG_STATE_HOME"),
        (lambda: hub.commit("me/model", None, "model"), "HF_HOME"),
        (native_code.compiler_id, "XDG_STATE_HOME"),
    ):
        with pytest.raises(MissingEnvironment) as refusal:
            needs()
        assert name in refusal.value.hint
    assert not native_code.is_registered("0" * 64)


@pytest.mark.parametrize("name", ["QABUILD_CACHE", "XDG_CACHE_HOME"])
def test_a_folder_that_is_named_needs_no_home(nobody, monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, str(tmp_path))
    assert user_folders.cache().is_relative_to(tmp_path)
