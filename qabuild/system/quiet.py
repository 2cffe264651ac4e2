"""Silence compilers' logs, warnings and output; comparing outputs, not these, finds their mistakes."""

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
    """Drop log records up to `level` of every logger inside the block."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def quiet_tracing(level: int = logging.WARNING) -> Iterator[None]:
    """Hide TorchScript's deprecation and tracer warnings inside the block; comparing outputs checks the trace."""
    from torch.jit import TracerWarning

    with quiet_logging(level), warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):  # the latter from torch 2.14 on
            warnings.filterwarnings("ignore", message=r"`?torch\.jit\.\w+`? is ", category=category)
        # A trace reads every attribute of the model, deprecated ones too.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.modeling_utils")
        warnings.filterwarnings("ignore", category=TracerWarning)
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the log, warnings and progress bars of transformers inside the block; it raises its errors too."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def captured(descriptor: int) -> Iterator[IO[bytes]]:
    """Redirect stdout (1) or stderr (2) to a temporary file inside the block and yield it.

    This includes the output of native code and subprocesses, but not what Python's own stream still buffers.
    """
    c_library = ctypes.CDLL(None)
    with tempfile.TemporaryFile() as output:
        c_library.fflush(None)
        saved = os.dup(descriptor)
        os.dup2(output.fileno(), descriptor)
        try:
            yield output
        finally:
            c_library.fflush(None)
            os.dup2(saved, descriptor)
            os.close(saved)
