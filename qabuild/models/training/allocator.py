"""Keeps glibc from returning freed memory to the kernel.

With batches of changing shape, it would be mapped again, page by page, at every step: measured on a CPU, page faults
took a third of a training step.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_memory() -> None:
    """Keep freed memory in this process, and allocate large blocks from the heap. For glibc only."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
