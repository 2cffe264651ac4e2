"""An environment with nothing but some requirements and what these need, made of links to what is installed here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ENVIRONMENT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"))
"""
"""Run as `python -I -S -c ENVIRONMENT FOLDER SCRIPT ...`: no package is found but those in the folder."""


def make(requirements: Path, folder: Path) -> Path:
    """Fill `folder`, which is made, with links to the packages, and return it. Raises where a version differs."""
    folder.mkdir()
    wanted = [Requirement(line) for line in requirements.read_text().splitlines()]
    for requirement in wanted:
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement
    for distribution in _closure(wanted):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(Path(str(distribution.locate_file(name))))
    return folder


def _closure(wanted: list[Requirement]) -> Iterator[metadata.Distribution]:
    """The distributions that are wanted, and those that they need on this machine."""
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        key = requirement.name.lower(), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        distribution = metadata.distribution(requirement.name)
        yield distribution
        for line in distribution.requires or ():
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                wanted.append(needed)
