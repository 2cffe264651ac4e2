"""Libraries that compile talk a lot; what they get wrong is found by comparing, not by reading."""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
def captured(descriptor: int) -> Iterator[IO[bytes]]:
    """Send what is written to stdout (1) or stderr (2) to a file, which is given: by native code too, and by programs
    that are started. What Python's own stream still holds is none of that."""
    c_library = ctypes.CDLL(None)
    with tempfile.TemporaryFile() as said:
        c_library.fflush(None)
        saved = os.dup(descriptor)
        os.dup2(said.fileno(), descriptor)
        try:
            yield said
        finally:
            c_library.fflush(None)
            os.dup2(saved, descriptor)
            os.close(saved)
