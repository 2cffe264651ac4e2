"""Libraries that compile talk a lot; what they get wrong is found by comparing, not by reading."""

from __future__ import annotations

import logging
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
