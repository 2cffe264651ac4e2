"""A minimal environment: links to the installed packages of some requirements and their dependencies."""

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
"""Run as `python -I -S -c ENVIRONMENT FOLDER SCRIPT ...`: only packages in the folder can be imported."""


def make(requirements: Path, folder: Path) -> Path:
    """Create `folder` with links to the packages, and return it. Fails if an installed version does not fit."""
    folder.mkdir()
    pinned = [Requirement(line) for line in requirements.read_text().splitlines()]
    for requirement in pinned:
        assert requirement.specifier.contains(metadata.version(requirement.name)), requirement
    for distribution in _closure(pinned):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(Path(str(distribution.locate_file(name))))
    return folder


def _closure(requirements: list[Requirement]) -> Iterator[metadata.Distribution]:
    """The required distributions and their dependencies on this machine."""
    seen: set[tuple[str, frozenset[str]]] = set()
    stack = list(requirements)
    while stack:
        requirement = stack.pop()
        key = requirement.name.lower(), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        distribution = metadata.distribution(requirement.name)
        yield distribution
        for line in distribution.requires or ():
            dependency = Requirement(line)
            extras = requirement.extras or {""}
            if dependency.marker is None or any(dependency.marker.evaluate({"extra": extra}) for extra in extras):
                stack.append(dependency)
