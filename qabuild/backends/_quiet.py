"""Libraries that compile talk a lot; what they get wrong is found by comparing, not by reading."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
