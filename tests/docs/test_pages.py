"""The documentation is checked against the code: commands run, targets load, and reference tables are up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from hub import Hub
from pydantic import BaseModel

from qabuild.cli import cli
from qabuild.errors import INTERRUPTED
from qabuild.evaluation.cross_check import LABELS, PLAIN, STOCK
from qabuild.models import support
from qabuild.models.backends import BACKENDS, backend
from qabuild.target.explain import table_of
from qabuild.target.model import Target
from qabuild.target.read import SOURCES

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
LANGUAGES = {"console", "python", "text", "toml"}
"""Blocks in these languages are run, loaded or compared; blocks in others are only shown."""


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def pages_with(*languages: str) -> list[str]:
    return [name for name, text in PAGES.items() if {language for language, _ in blocks(text)} & set(languages)]


def tool(name: str) -> ModuleType:
    """The script tools/NAME.py, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up there
    spec.loader.exec_module(module)
    return module


# --- commands and programs ------------------------------------------------------------------------------------------


PROGRESS = re.compile(r"^  [^:\n]+: \d+( of \d+)?(, [\d.]+/s(, about \d+ s left)?)?\n", re.MULTILINE)
"""A line of progress, as `qabuild.cli.console` writes it where there is no terminal."""


def without_numbers(text: str) -> list[str]:
    """The lines with numbers, rules and runs of spaces normalised, since those differ between machines.

    Progress is left out: a slow machine reports it, and a fast one is done before. The pages show transformers 5; on
    4.57 the cross-check names another pipeline.
    """
    text = PROGRESS.sub("", text.replace(LABELS[STOCK], LABELS[PLAIN]))
    masked = re.sub(r"\d+(\.\d+)?", "0", re.sub(r"─+", "-", re.sub(r"\b[0-9a-f]{40}\b", "0", text)))
    return [" ".join(line.split()) for line in masked.splitlines() if line.strip()]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the targets, and `qabuild` on the PATH."""
    shutil.copytree(ROOT / "targets", tmp_path / "targets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


ON_THE_HUB = {"docs/guides/publish.md": 3, "docs/guides/sign.md": 7}
"""Pages that publish, with the number of their commands."""
RUN = [name for name in pages_with("console", "python") if name not in ON_THE_HUB]


def test_pages_with_commands_are_collected():
    assert {"docs/getting-started.md", "docs/guides/serve.md", "docs/guides/bulk-answering.md"} <= set(RUN)


@pytest.mark.parametrize("name", RUN)
def test_commands_and_programs_of_a_page_run(installed, name):
    count = follow(PAGES[name])
    assert count >= (8 if name == "docs/getting-started.md" else 1)


@pytest.mark.hub
@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_page_that_publishes_runs_against_a_local_hub(installed, tmp_path, monkeypatch, name):
    with Hub({"hf_mine": ("me", "write")}) as hub:
        for variable, value in {**hub.environment(tmp_path / "home"), "HF_TOKEN": "hf_mine"}.items():
            monkeypatch.setenv(variable, value)
        assert follow(PAGES[name]) == ON_THE_HUB[name]


def follow(text: str) -> int:
    """Write each file of the text and run each command and program. Returns the number of commands."""
    count, printed = 0, ""
    for language, content in blocks(text):
        if language == "toml":
            name = content.split("\n")[0].removeprefix("# ")
            Path(name).write_text(content, encoding="utf-8")
        elif language == "python":
            printed = subprocess.run([sys.executable, "-c", content], capture_output=True, text=True, check=True).stdout
        elif language == "text":
            assert printed == content
        elif language == "console":
            count += session(content)
    return count


def session(content: str) -> int:
    """Run a block of `$ command` lines, each followed by its output. Returns the number of commands."""
    steps = [step for step in re.split(r"^\$ ", content, flags=re.MULTILINE) if step]
    status = 0
    for step in steps:
        command, _, expected = step.partition("\n")
        if command == "echo $?":
            assert str(status) == expected.strip()
            continue
        process = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        status = process.returncode
        assert without_numbers(process.stdout) == without_numbers(expected), f"{command}\n{process.stdout}"
    return len(steps)


def quoted_commands() -> set[str]:
    """Every qabuild command line in the pages: in backquotes, in an indented block, in a session."""
    commands = set()
    for text in PAGES.values():
        commands.update(re.findall(r"`qabuild ([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)))
        commands.update(re.findall(r"^ {4}(?:.*&& )?qabuild (.+)$", text, re.MULTILINE))
        commands.update(re.findall(r"^\$ qabuild (.+)$", text, re.MULTILINE))
    return commands


def test_quoted_commands_and_options_exist():
    lines = quoted_commands()
    assert len(lines) > 30
    for line in lines:
        words = line.partition(" | ")[0].split()
        command: click.Command = cli
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if command is cli:  # short for build
            assert re.match(r"TARGET|\$TARGETS|.*\.toml|--?\w", words[0]) or words[0].startswith("targets/"), line
            command = cli.commands["build"]
        options = {option for parameter in command.params for option in parameter.opts} | {"-h", "--help", "--version"}
        assert {word for word in words if word.startswith("-") and word != "-"} <= options, line


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pages_with("toml"))
def test_targets_in_the_pages_are_valid(installed, name):
    """A block that names a file of targets/ agrees with that file; any other block is a valid target."""
    from qabuild.target.read import load

    for language, content in blocks(PAGES[name]):
        if language != "toml":
            continue
        file = re.match(r"# ([\w./-]+\.toml)", content)
        assert file, f"{name}: its first line names no file"
        if not Path(file[1]).exists():
            Path(file[1]).write_text(content, encoding="utf-8")
        target = load(Path(file[1])).model_dump(mode="json")
        for table, keys in tomllib.loads(content).items():
            if table != "extends":
                assert states(target[table], keys), (name, table)


def states(loaded: Any, shown: Any) -> bool:
    """Whether the loaded values contain the shown ones. Names of targets and relative paths are loaded as paths."""
    if isinstance(shown, dict):
        return all(states(loaded[key], value) for key, value in shown.items())
    if isinstance(shown, str) and isinstance(loaded, str):
        return shown in (loaded, Path(loaded).stem) or str(Path(shown).absolute()) == loaded
    return bool(loaded == shown)


def test_readme_shows_an_existing_target():
    shown = [content for language, content in blocks(PAGES["README.md"]) if language == "toml"]
    assert shown
    assert all((ROOT / content.split()[1].rstrip(",")).is_file() for content in shown)


def test_targets_named_in_the_pages_exist():
    for name, text in PAGES.items():
        for path in re.findall(r"targets/[\w/-]+\.toml", text):
            assert (ROOT / path).is_file(), (name, path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("targets/*.toml")), ids=lambda path: path.stem)
def test_every_target_has_a_description_and_relative_paths(path):
    from qabuild.target.read import load

    target = load(path)
    assert target.description
    for *tables, key in SOURCES:
        if key == "target":  # in a loaded target, its path
            continue
        source: Any = target
        for name in (*tables, key):
            source = getattr(source, name, None)
        assert source is None or not Path(source).is_absolute()


# --- the reference --------------------------------------------------------------------------------------------------


def test_the_reference_is_up_to_date():
    process = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "reference.py"), "--check"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_a_stale_page_fails_the_check(tmp_path, monkeypatch, capsys):
    reference = tool("reference")
    page = tmp_path / "docs" / "reference" / "statuses.md"
    page.parent.mkdir(parents=True)
    text = PAGES["docs/reference/statuses.md"]
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr(reference, "pages", lambda: {page: text})
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    page.write_text(text.replace("Success", "Succes"), encoding="utf-8")
    assert reference.main() == 1
    assert "docs/reference/statuses.md" in capsys.readouterr().out
    page.write_text(text, encoding="utf-8")
    assert reference.main() == 0


def keys(model: type[BaseModel], table: str = "") -> Iterator[tuple[str, str, str, Any]]:
    """Section, key, description and default of every target key."""
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        if (table, name) == ("", "name"):
            continue
        if (table, name) == ("", "backend"):
            for backend_name in BACKENDS:
                for key, option in backend(backend_name).Options.model_fields.items():
                    if key != "name":
                        yield f"`{backend_name}`", key, option.description or "", option.default
        elif inner := table_of(field.annotation):
            nested.append((f"{table}.{name}".strip("."), inner))
        else:
            yield f"`[{table}]`" if table else "Top level", name, field.description or "", field.default
    for name, inner in nested:
        yield from keys(inner, name)


def rows_of_page(name: str) -> Iterator[tuple[str, list[str]]]:
    """Each table row of a page: the heading above it, and its cells."""
    heading = ""
    for line in PAGES[name].splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            yield heading, [cell.strip() for cell in line.strip("|").split("|")]


def test_every_target_key_is_documented():
    described = {(heading, row[0].strip("`")): row[1:] for heading, row in rows_of_page("docs/reference/targets.md")}
    assert described.pop(("`[backend]`", "name"))[0] == ", ".join(f"`{name}`" for name in BACKENDS)
    extends = described.pop(("Top level", "extends"))
    assert extends[-1] == "a target that this one starts from, relative to this file"
    expected = list(keys(Target))
    assert set(described) == {(section, key) for section, key, _, _ in expected}
    for section, key, text, default in expected:
        _, shown, meaning = described[section, key]
        assert meaning == text
        assert (shown != "") == (default not in (None, "")), (section, key)
        assert not shown or json_of(default) == shown.strip("`"), (section, key)


def json_of(value: Any) -> str:
    import json

    return json.dumps(value)


def test_every_architecture_is_documented():
    listed = (
        PAGES["docs/reference/backends.md"].split("<!-- architectures -->\n")[1].split("<!-- /architectures -->")[0]
    )
    assert listed.strip() == support.markdown()


def test_readme_states_the_number_of_architectures():
    rows = support.markdown().splitlines()[2:]
    assert f"They support {len(rows)} encoder architectures" in PAGES["README.md"]


def test_readme_lists_every_backend():
    assert [row[0].strip("`") for _, row in rows_of_page("README.md")] == list(BACKENDS)


def test_every_command_and_exit_status_is_documented():
    text = PAGES["docs/reference/commands.md"]
    for name in cli.commands:
        assert f"\n## qabuild {name}" in text, name
    statuses = {int(n) for n in re.findall(r"^\| (\d+) \|", PAGES["docs/reference/statuses.md"], re.MULTILINE)}
    assert statuses == {0, 1, 2, 3, 4, 5, INTERRUPTED, 128 + signal.SIGTERM}


# --- pages ----------------------------------------------------------------------------------------------------------


def test_readme_is_at_most_8_kib():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_readme_has_one_command_that_installs_and_tests():
    assert len(re.findall(r"^ *pip install .*&& pytest$", PAGES["README.md"], re.MULTILINE)) == 1


def test_every_link_resolves():
    links = tool("links")
    assert [(str(path), problem) for path in links.pages() for problem in links.dead_links(path)] == []


def test_dead_links_are_reported(tmp_path, monkeypatch):
    links = tool("links")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Top\n\n[a](docs/a.md#there) [b](docs/b.md) [c](#top) [d](docs/a.md#gone)\n")
    (tmp_path / "docs" / "a.md").write_text("# There\n\n```text\n# Gone\n[x](y.md)\n```\n\n[out](../README.md)\n")
    monkeypatch.setattr(links, "ROOT", tmp_path)
    assert [problem for path in links.pages() for problem in links.dead_links(path)] == [
        "docs/b.md: no such file",
        "docs/a.md#gone: no such heading",
        "../README.md: outside docs/, so not part of the site",
    ]


def test_every_page_is_in_the_navigation_and_in_llms_txt():
    pages = {name.removeprefix("docs/") for name in PAGES if name != "README.md"}
    assert set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))) == pages
    listed = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert listed.startswith("# qabuild\n\n> ")
    assert set(re.findall(r"\(([\w/-]+\.md)\)", listed)) == pages - {"index.md"}


def test_every_block_has_a_known_language():
    for name, text in PAGES.items():
        assert {language for language, _ in blocks(text)} <= LANGUAGES | {"js", "py"}, name
