"""Files of questions by path, URL, folder or glob, in a fixed order, with the state that tells whether one changed."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qabuild.errors import BadTarget
from qabuild.qa.data import records
from qabuild.qa.data.records import QuestionsFormat
from qabuild.qa.data.source import is_pipe
from qabuild.system import storage
from qabuild.system.storage import FileState, Location


@dataclass(frozen=True)
class QuestionFiles:
    """Files of one format."""

    root: Location
    """The folder that holds all of them."""
    states: Mapping[str, FileState]
    """By name within the root, sorted."""
    format: QuestionsFormat
    is_folder: bool
    """Whether all files in the root belong to them."""
    pattern: str | None
    """The glob that they match."""

    def would_hold(self, folder: Location, names: Iterable[str]) -> bool:
        """Whether a file of one of these names in `folder` would belong to them."""
        if not self.root.contains(folder):
            return False
        if self.pattern is None:
            return self.is_folder
        if "**" in self.pattern:
            return True
        from fsspec.utils import glob_translate

        matches = re.compile(glob_translate(self.pattern)).match
        paths = {folder.path, os.path.realpath(folder.path)} if folder.local else {folder.path}
        return any(matches(f"{path.rstrip('/')}/{name}") for path in paths for name in names)

    def address(self, name: str) -> str:
        return self.root.child(name).shown


def find(source: str) -> QuestionFiles:
    """The files that `source` names: a file, a folder with all that it holds, or a glob.

    In a folder, files of other endings count for nothing, nor do those whose name, or that of whose folder, begins with
    "." or "_", nor links to folders. Raises BadTarget if there is none, or if their formats differ.
    """
    if is_pipe(source) and not os.path.isdir(source):
        raise BadTarget(f"{source}: is read once, and cannot be cut into parts", "name a file, a folder or a glob")
    location = storage.locate(source)
    with storage.explained(source):
        is_glob = _is_glob(location)
        is_folder = not is_glob and location.is_folder()
        root, infos = _listed(location, is_glob, is_folder)
        if location.local:  # a listing tells about links, not about their files
            infos = {path: _info(location.filesystem, path) for path in infos}
    names = {path[len(root.path.rstrip("/")) + 1 :]: info for path, info in infos.items() if info["type"] == "file"}
    if is_folder:
        names = {name: info for name, info in names.items() if _is_visible(name) and _has_format(name)}
    if not names:
        raise BadTarget(f"{source}: there are no questions", "name a file, a folder or a glob that matches some")
    states = {name: _state(root.child(name), names[name]) for name in sorted(names)}
    pattern = location.path if is_glob else None
    return QuestionFiles(root, states, _format(source, states), is_folder=is_folder, pattern=pattern)


def single(source: str) -> str:
    """The path or URL of the only file that `source` names. Raises BadTarget if there are several."""
    source = storage.plain(source)
    is_several = os.path.isdir(source) or (glob.has_magic(source) and not os.path.exists(source))
    if not is_several and not storage.is_url(source):
        return source
    files = find(source)
    if len(files.states) > 1:
        hint = "name a folder for the answers, with / at its end (in Python: `answer_dataset`)"
        raise BadTarget(f"{source}: these are {len(files.states)} files", hint)
    return files.address(*files.states)


def _is_glob(location: Location) -> bool:
    """Whether it is a pattern; a file or folder of that very name comes first."""
    return glob.has_magic(location.path) and not location.exists()


def _listed(location: Location, is_glob: bool, is_folder: bool) -> tuple[Location, Mapping[str, dict[str, Any]]]:
    """The root and, by path, what the file system tells about each file."""
    filesystem, path = location.filesystem, location.path
    if is_folder and location.local:
        return location, {name: {} for name in _walked(path)}
    if is_folder:
        return location, filesystem.find(path, detail=True)
    if not is_glob:
        return location.parent(), {path: filesystem.info(path)}
    root = location
    while glob.has_magic(root.path):
        root = root.parent()
    root.is_folder()  # a store that does not answer is given up; a listing may take any time
    strict = {"on_error": "raise"} if location.local else {}  # a folder that cannot be read is not empty
    return root, filesystem.glob(path, detail=True, **strict)


def _walked(folder: str) -> Iterator[str]:
    """The files of a local folder and of all folders in it. Raises BadTarget for one that cannot be read."""

    def refuse(error: OSError) -> None:
        with storage.explained(str(error.filename)):
            raise error

    for path, _, names in os.walk(folder, onerror=refuse):
        yield from (os.path.join(path, name) for name in names)


def _state(file: Location, info: Mapping[str, Any]) -> FileState:
    """The state of a listed file; one of which a store's listing tells too little is asked for."""
    state = storage.state_of(info)
    return state if state.version or file.local else file.state() or state


def _info(filesystem: Any, path: str) -> dict[str, Any]:
    """What the local file system tells about a file; a link to nothing is a file that cannot be read."""
    try:
        return dict(filesystem.info(path))
    except FileNotFoundError:
        return {"type": "file", "size": 0}


def _is_visible(name: str) -> bool:
    return not any(part.startswith((".", "_")) for part in name.split("/"))


def _has_format(name: str) -> bool:
    try:
        records.format_of(name)
    except BadTarget:
        return False
    return True


def _format(source: str, names: Iterable[str]) -> QuestionsFormat:
    examples = {records.format_of(name): name for name in names}
    if len(examples) > 1:
        shown = ", ".join(f"{form} ({name})" for form, name in sorted(examples.items()))
        raise BadTarget(f"{source}: holds questions of several formats: {shown}", "name one with a glob, as in '*.csv'")
    return next(iter(examples))
