"""The sample targets that come with the package: the files of the repository's folder targets/."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from qabuild.errors import BadTarget
from qabuild.system import files
from qabuild.target.read import files_of

FOLDER = Path(__file__).with_name("samples").resolve()
"""In the repository, a link to targets/."""


def names() -> list[str]:
    """Their names, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def copy(name: str, folder: Path) -> list[Path]:
    """Copy a sample target into `folder`, with the files that it extends and the targets that it builds on.

    Returns all their paths, the target's first. Raises BadTarget, and copies nothing, if there is no such target or if
    another file has one of the paths; QABuildError where the folder is not writable.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        perhaps = f"perhaps you meant {near[0]!r}; " if near else ""
        raise BadTarget(f"there is no sample target {name!r}", f"{perhaps}there are {', '.join(names())}")
    contents = {folder / path.relative_to(FOLDER): files.read(path) for path in files_of(FOLDER / f"{name}.toml")}
    if others := [str(path) for path, content in contents.items() if _is_another(path, content)]:
        raise BadTarget(
            f"not overwritten, since they are other files: {', '.join(others)}",
            "rename or remove them, or name another folder: qabuild targets --copy NAME FOLDER",
        )
    hint = "make it writable, or name another: qabuild targets --copy NAME FOLDER"
    files.require_writable(folder, "the folder", hint)
    for path in contents:
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        if not path.exists():
            files.write(path, content)
    return list(contents)


def _is_another(path: Path, content: bytes) -> bool:
    return os.path.lexists(path) and not (path.is_file() and files.read(path) == content)
