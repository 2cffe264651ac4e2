"""`targets --copy`: sample targets, copied out of the package."""

from __future__ import annotations

import glob
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qabuild.cli import main
from qabuild.errors import BadTarget
from qabuild.target import sample_targets
from qabuild.target.read import load

pytestmark = pytest.mark.both_lines

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def qabuild(working_directory: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """`qabuild("init")`: the command line in this process, in an empty folder."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return Result(int(stop.value.code or 0), streams.out, streams.err)

    return run


def folder_names() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


@pytest.mark.parametrize("name", sample_targets.names())
def test_a_sample_target_is_copied_with_all_it_needs(qabuild, working_directory, name):
    copied = qabuild("targets", "--copy", name)
    assert (copied.status, copied.out.splitlines()[0]) == (0, f"{name}.toml")
    assert copied.err == f"next: qabuild plan {name}.toml, then qabuild build {name}.toml\n"
    files = {str(path) for path in Path().rglob("*.toml")}
    assert files == set(copied.out.splitlines())
    assert all(Path(file).read_bytes() == (ROOT / "targets" / file).read_bytes() for file in files)
    target = load(f"{name}.toml")
    assert target.paths == ()  # files of this repository are not elsewhere
    for file in files - {f"{name}.toml"}:  # and each of them is needed
        Path(file).rename("aside")
        with pytest.raises(BadTarget, match="no such target"):
            load(f"{name}.toml")
        Path("aside").rename(file)


def test_sample_targets_that_are_copied_are_listed(qabuild):
    assert qabuild("targets", "--copy", "quickstart", "mine").out == "mine/quickstart.toml\n"
    assert "mine/quickstart.toml" in qabuild("targets", "mine").out
    document = json.loads(qabuild("targets", "--copy", "distil-amp", "--json").out)
    assert document["target"] == "distil-amp.toml"
    assert "base/squad.toml" in document["files"]


def test_the_samples_are_those_of_the_repository():
    assert sample_targets.names() == sorted(path.stem for path in ROOT.glob("targets/*.toml"))


def test_a_wrong_name_is_answered_with_the_nearest_and_all_others(qabuild):
    result = qabuild("targets", "--copy", "quikstart")
    assert (result.status, folder_names()) == (2, set())
    assert "perhaps you meant 'quickstart'; there are amp, baseline" in result.err
    assert qabuild("targets", "--copy", "../targets/quickstart").status == 2


@pytest.mark.parametrize("content", ["mine", None])
def test_another_file_is_not_overwritten_and_nothing_is_copied(qabuild, content):
    Path("base").mkdir()
    other = Path("base/roberta-squad2.toml")
    other.symlink_to("gone") if content is None else other.write_text(content)
    before = folder_names()
    result = qabuild("targets", "--copy", "ort-int8-cpu")
    assert (result.status, folder_names()) == (2, before)
    assert "base/roberta-squad2.toml" in result.err
    assert content is None or other.read_text() == content


def test_an_equal_file_is_left(qabuild):
    qabuild("targets", "--copy", "ort-int8-cpu")
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert qabuild("targets", "--copy", "pruned-ort-int8-cpu").status == 0
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()}.items() <= before.items()


def test_an_empty_folder_says_where_targets_come_from(qabuild):
    result = qabuild("targets")
    assert result.status == 2
    assert "qabuild targets --copy NAME" in result.err


def test_every_file_of_the_package_is_in_its_package_data():
    settings: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["qabuild"]
    package = ROOT / "qabuild"
    packed = {path for pattern in patterns for path in glob.glob(pattern, root_dir=package, recursive=True)}
    held = {path for path in glob.glob("**/*", root_dir=package, recursive=True) if (package / path).is_file()}
    assert {path for path in held if not path.endswith((".py", ".pyc"))} - packed == set()
    assert "target/samples/base/squad.toml" in packed
