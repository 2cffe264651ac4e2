"""Panics of libraries written in Rust, such as tokenizers: what they raise is no Exception, and passes all handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qabuild.errors import UntrustedInput


@contextmanager
def explained(source: object) -> Iterator[None]:
    """Turn a panic inside the block into UntrustedInput that names `source`, whose content the library met."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise UntrustedInput(
            f"{source}: a library failed on it: {str(error).partition(chr(10))[0][:200]}",
            "its tokenizer is damaged, most likely: build or download it again; -v shows where it came from",
        ) from error
