"""The code that decides a step's result: the import closure of the modules that do its work.

A step's key covers the bytes of every module that its work may import. Which those are is read from the source, so
that no list of modules is kept by hand. A new module of the package takes part where it is imported, and nowhere else.
"""

from __future__ import annotations

import ast
import hashlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qabuild.builder.keys import json_digest

PACKAGE = "qabuild"
HERE = Path(__file__).resolve().parents[1]

EXCLUDED = frozenset(
    {
        "qabuild",  # the public names
        "qabuild.builder.steps",  # the table of steps
        "qabuild.errors",
        "qabuild.models.backends",  # the table of backends
        "qabuild.models.dtype_speed",  # what `doctor` expects
        "qabuild.system.reporter",
        "qabuild.system.telemetry",  # what libraries would send
        "qabuild.system.version",
        "qabuild.target.gates",  # limits, applied to what was measured
    }
)
"""Modules that decide no result: tables, which grow with every entry, errors, and what is shown of progress or sent."""


@dataclass(frozen=True)
class ImportGraph:
    """The package's source, each file read once."""

    package: Path = HERE
    _contents: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    _imports: dict[str, list[str]] = field(default_factory=dict, compare=False, repr=False)
    _digests: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False, repr=False)

    def digest(self, *roots: str) -> str:
        """SHA-256, in hex, over the bytes of every module of the closure of `roots`."""
        if roots not in self._digests:
            sums = {name: hashlib.sha256(self._content(name)).hexdigest() for name in self.closure(*roots)}
            self._digests[roots] = json_digest(sums)
        return self._digests[roots]

    def closure(self, *roots: str) -> frozenset[str]:
        """All modules that importing `roots` may import, now or inside a function, themselves among them."""
        closure: set[str] = set()
        waiting = [module for root in roots for module in self._chain(root)]
        while waiting:
            module = waiting.pop()
            if module not in closure and module not in EXCLUDED:
                closure.add(module)
                waiting.extend(self._imported(module))
        return frozenset(closure)

    def _content(self, module: str) -> bytes:
        if module not in self._contents:
            path = self._path(module)
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            self._contents[module] = file.read_bytes()
        return self._contents[module]

    def _imported(self, module: str) -> list[str]:
        if module not in self._imports:
            statements = import_statements(self._content(module).decode("utf-8"))
            names = [name for statement in statements for name in _names(statement)]
            self._imports[module] = [part for name in names for part in self._chain(name)]
        return self._imports[module]

    def _chain(self, name: str) -> list[str]:
        """The modules that run where `name` is imported: the packages around it, and itself unless it is no module."""
        parts = name.split(".")
        modules = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        return modules if self._is_module(name) else modules[:-1]

    def _is_module(self, name: str) -> bool:
        path = self._path(name)
        return path.is_dir() or path.with_suffix(".py").is_file()

    def _path(self, name: str) -> Path:
        return self.package.joinpath(*name.split(".")[1:])


def import_statements(source: str) -> Iterator[ast.Import | ast.ImportFrom]:
    """The statements of `source` that import this package's modules, but for those under `if TYPE_CHECKING:`.

    Statements are found by the words that their first line begins with and only they are parsed: parsing all files as
    a whole would take most of the time of a build that has nothing to do.
    """
    lines = source.splitlines()
    type_checking: int | None = None  # indentation of the block that the type checker alone reads
    number = 0
    while number < len(lines):
        line, first = lines[number], number
        number += 1
        indentation = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if type_checking is not None and indentation <= type_checking:
            type_checking = None
        if line.lstrip().startswith("if TYPE_CHECKING:"):
            type_checking = indentation
        elif type_checking is None and line.lstrip().startswith((f"from {PACKAGE}", f"import {PACKAGE}")):
            while "(" in lines[first] and ")" not in lines[number - 1]:
                number += 1
            yield from _parsed("\n".join(lines[first:number]))


def _parsed(text: str) -> Iterator[ast.Import | ast.ImportFrom]:
    try:
        body = ast.parse(textwrap.dedent(text)).body
    except SyntaxError:  # a line of a docstring that begins as an import does
        return
    yield from (statement for statement in body if isinstance(statement, (ast.Import, ast.ImportFrom)))


def _names(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """Dotted names of what may be modules of this package."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        names = [f"{statement.module}.{alias.name}" for alias in statement.names]
    return [name for name in names if name.split(".")[0] == PACKAGE]
