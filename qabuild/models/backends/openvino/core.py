"""Imports OpenVINO, with one Core for each process."""

from __future__ import annotations

import functools
import sys
from typing import Any


def package() -> Any:
    """Import OpenVINO without its telemetry: with `openvino_telemetry` blocked, it sends no usage statistics."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def core() -> Any:
    """The process's only OpenVINO Core.

    Each Core installs a stack for signal handlers and, when destroyed, restores the previous one. If the lifetimes of
    two overlap, that one may be freed already, and the next signal, such as Ctrl-C, ends in a segmentation fault.
    """
    return package().Core()
