"""Targets that are written are read again as they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from qabuild.target.read import load
from qabuild.target.write import write


def normal(value: Any) -> Any:
    """The value with its paths normalised: /a/b/../c is /a/c."""
    if isinstance(value, dict):
        return {key: normal(each) for key, each in value.items()}
    return os.path.normpath(value) if isinstance(value, str) and value.startswith("/") else value


TARGETS = sorted((ROOT / "targets").glob("*.toml"))


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_every_target_of_the_repository_survives_being_written(path, tmp_path):
    target = load(path)
    tables = target.model_dump(mode="json", exclude={"name"}, exclude_defaults=True, exclude_none=True)
    write({**tables, "backend": {"name": target.backend.name, **tables.get("backend", {})}}, tmp_path / path.name)
    assert normal(load(tmp_path / path.name).model_dump()) == normal(target.model_dump())


def test_relative_paths_are_written_relative_to_the_file_and_others_stay_absolute(tmp_path):
    tables = {
        "checkpoint": {"model": str(tmp_path / "models" / "mine")},
        "backend": {"name": "eager"},
        "verify": {"dataset": str(tmp_path / "targets" / "dev.json")},
    }
    write(tables, tmp_path / "targets" / "absolute.toml")
    assert load(tmp_path / "targets" / "absolute.toml").checkpoint.model == tables["checkpoint"]["model"]
    assert tables["verify"]["dataset"] in (tmp_path / "targets" / "absolute.toml").read_text()
    relative = {tables["checkpoint"]["model"], tables["verify"]["dataset"]}
    write(tables, tmp_path / "targets" / "mine.toml", relative=relative)
    text = (tmp_path / "targets" / "mine.toml").read_text()
    assert 'model = "../models/mine"' in text
    assert 'dataset = "./dev.json"' in text
    assert tables["checkpoint"]["model"] == str(tmp_path / "models" / "mine"), "what was given stays as it was"
    assert Path(load(tmp_path / "targets" / "mine.toml").verify.dataset) == tmp_path / "targets" / "dev.json"
