"""OpenVINO itself: one Core for each process."""

from __future__ import annotations

import functools
import sys
from typing import Any


def package() -> Any:
    """OpenVINO itself, kept from sending usage statistics: without `openvino_telemetry` it has nothing to do so by."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def core() -> Any:
    """OpenVINO's Core, the only one of this process.

    Each brings a stack for signal handlers and, when it goes, puts back what it found. That is gone too where the lives
    of two overlapped, and the next signal, such as Ctrl-C, then ends in a segmentation fault.
    """
    return package().Core()
