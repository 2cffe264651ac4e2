"""Vets the file of a compiled model before its runtime opens it: it may hold tensors and a graph, nothing else.

Each backend states what that means for its files, as a function that yields problems.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qabuild.errors import UntrustedInput

_UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError),
    *(ValueError, zipfile.BadZipFile),
)
"""What readers raise on damaged files; torch's raises RuntimeError, that of XML a SyntaxError."""


def vet(path: Path, problems: Callable[[Path], Iterator[str]]) -> None:
    """Raise UntrustedInput for the first of the file's problems, or if it cannot be read."""
    try:
        problem = next(problems(path), None)
    except _UNREADABLE as error:
        problem = f"cannot be read: {str(error).partition(chr(10))[0][:200]}"
    if problem:
        raise UntrustedInput(
            f"{path}: {problem}", "nothing of it was run; build the artifact again, or fetch it from whom you trust"
        )


def records(path: Path) -> tuple[Any, set[str]]:
    """torch's reader of an archive, and the names of its records.

    torch loads what its own reader finds. A reader of another library may find other content in the same bytes: two
    directories, say, of which each takes one. Raises ValueError for such an archive, and for a name that occurs twice.
    """
    import torch

    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    if len({name.lower() for name in names}) < len(names):
        raise ValueError("two records have the same name")
    with zipfile.ZipFile(path) as archive:
        if sorted(name.partition("/")[2] for name in archive.namelist()) != sorted(names):
            raise ValueError("it lists other records to other readers")
    return reader, set(names)
