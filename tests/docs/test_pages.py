"""README keeps its word: every command of the tour is run, and every table is what the code says."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from pydantic import BaseModel

from qabuild import cli
from qabuild.errors import INTERRUPTED
from qabuild.models.backends import BACKENDS, architectures, backend
from qabuild.target.explain import table_of
from qabuild.target.model import Target
from qabuild.target.read import SOURCES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text under a heading, up to the next of the same depth."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[2]


def part(name: str) -> str:
    return README.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].strip()


# --- the tour -------------------------------------------------------------------------------------------------------


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_numbers(text: str) -> list[str]:
    """The lines, with every number, rule and run of spaces made alike: those differ between machines."""
    masked = re.sub(r"\d+(\.\d+)?", "0", re.sub(r"─+", "-", re.sub(r"\b[0-9a-f]{40}\b", "0", text)))
    return [" ".join(line.split()) for line in masked.splitlines() if line.strip()]


@pytest.fixture
def visitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone in a folder with the targets, who has installed the package."""
    shutil.copytree(ROOT / "targets", tmp_path / "targets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def test_the_tour(visitor):
    assert follow(section("A tour") + section("Answering")) >= 8


@pytest.mark.hub
def test_the_way_to_the_hub_and_back(visitor, tmp_path, monkeypatch):
    with Hub({"hf_mine": ("me", "write")}) as hub:
        for name, value in {**hub.environment(tmp_path / "home"), "HF_TOKEN": "hf_mine"}.items():
            monkeypatch.setenv(name, value)
        assert follow(section("Publishing")) == 3


def follow(text: str) -> int:
    """Write each file of the text and run each command and program; returns how many commands there were."""
    ran, printed = 0, ""
    for language, content in blocks(text):
        if language == "toml":
            name = content.split("\n")[0].removeprefix("# ")
            Path(name).write_text(content, encoding="utf-8")
        elif language == "python":
            printed = subprocess.run([sys.executable, "-c", content], capture_output=True, text=True, check=True).stdout
        elif language == "text":
            assert printed == content
        else:
            ran += session(content)
    return ran


def session(content: str) -> int:
    """Run a block of `$ command` lines, each followed by what it prints; returns how many there were."""
    steps = [step for step in re.split(r"^\$ ", content, flags=re.MULTILINE) if step]
    status = 0
    for step in steps:
        command, _, expected = step.partition("\n")
        if command == "echo $?":
            assert str(status) == expected.strip()
            continue
        done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        status = done.returncode
        assert without_numbers(done.stdout) == without_numbers(expected), f"{command}\n{done.stdout}"
    return len(steps)


# --- the tables -----------------------------------------------------------------------------------------------------


def keys(model: type[BaseModel], table: str = "") -> Iterator[tuple[str, str, str]]:
    """Table, key and description of every key of a target, as README lists them."""
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        if (table, name) == ("", "name"):
            continue
        if (table, name) == ("", "backend"):
            yield "backend", "name", f"one of {', '.join(f'`{each}`' for each in BACKENDS)}"
            for each in BACKENDS:
                for key, option in backend(each).Options.model_fields.items():
                    if key != "name":
                        yield "backend", key, f"{each}: {option.description}{default(option)}"
        elif inner := table_of(field.annotation):
            nested.append((f"{table}.{name}".strip("."), inner))
        else:
            yield table, name, f"{field.description or ''}{default(field)}"
    for name, inner in nested:
        yield from keys(inner, name)


def default(field: Any) -> str:
    if field.is_required():
        return "; required"
    return "" if field.default in (None, "") else f" (default {str(field.default).lower()})"


def table_of_keys() -> str:
    rows = [("", "extends", "a target that this one starts from, relative to this file"), *keys(Target)]
    rows.sort(key=lambda row: row[0] != "")
    lines = ["| table | key | what it says |", "|---|---|---|"]
    return "\n".join(lines + [f"| {f'`[{t}]`' if t else ''} | `{key}` | {text} |" for t, key, text in rows])


def test_every_key_of_a_target_is_described():
    assert part("keys") == table_of_keys(), "python tests/test_readme.py writes them"


def test_every_architecture_is_listed():
    assert part("architectures") == architectures.markdown()


def test_every_command_and_exit_status_is_described():
    text = section("Commands")
    for name in cli.cli.commands:
        assert f"`qabuild {name}" in text or name == "build", name
    statuses = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert statuses == {0, 1, 2, 3, 4, 5, INTERRUPTED, 128 + signal.SIGTERM}


def test_the_target_at_the_top_is_the_one_in_the_folder():
    from qabuild.target.read import load

    shown = tomllib.loads(next(content for language, content in blocks(README) if language == "toml"))
    target = load(ROOT / "targets" / "ort-fp32-cpu.toml").model_dump(mode="json")
    for name, table in shown.items():
        for key, value in table.items():
            found = target[name][key]
            assert value.items() <= found.items() if isinstance(value, dict) else found == value, (name, key)


def test_every_target_that_is_named_is_there():
    for name in re.findall(r"targets/[\w/-]+\.toml", README):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", sorted(ROOT.glob("targets/*.toml")), ids=lambda path: path.stem)
def test_every_target_says_what_it_makes_and_where_its_paths_are(path):
    from qabuild.target.read import load

    target = load(path)
    assert target.description
    for *tables, key in SOURCES:
        if key == "target":  # of a target that was read, its file
            continue
        source: Any = target
        for name in (*tables, key):
            source = getattr(source, name, None)
        made_here = source is not None and Path(source).resolve().is_relative_to(ROOT / "build")
        assert source is None or made_here or not Path(source).is_absolute()


def rewrite() -> None:
    """Put the tables into README as the code has them: `python tests/test_readme.py`."""
    text = README
    for name, table in (("keys", table_of_keys()), ("architectures", architectures.markdown())):
        before, after = text.split(f"<!-- {name} -->")[0], text.split(f"<!-- /{name} -->")[1]
        text = f"{before}<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->{after}"
    (ROOT / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite()
