"""Libraries that compile talk a lot; what they get wrong is found by comparing, not by reading."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import IO


@contextmanager
def quiet_logging(level: int = logging.WARNING) -> Iterator[None]:
    """Drop log records up to `level`, of every logger, inside the block."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_tracing(level: int = logging.WARNING) -> Iterator[None]:
    """Keep TorchScript's deprecation and the tracer's remarks from the user; the comparison judges the trace."""
    from torch.jit import TracerWarning

    with quiet_logging(level), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`?torch\.jit\.\w+`? is ", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield


@contextmanager
def quiet_stdout() -> Iterator[IO[bytes]]:
    """Send what this process prints to stdout inside the block to a file, which is given: what Python prints, what C
    and CUDA code does, and what the compilers do that it starts."""
    c_library = ctypes.CDLL(None)
    with tempfile.TemporaryFile() as said:
        c_library.fflush(None)
        stdout = os.dup(1)
        os.dup2(said.fileno(), 1)
        try:
            with redirect_stdout(io.StringIO()):
                yield said
        finally:
            c_library.fflush(None)
            os.dup2(stdout, 1)
            os.close(stdout)
