"""ONNX Runtime sessions: the provider for comparisons, and quiet logs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from qabuild.models.backends.onnxruntime.options import Provider
from qabuild.models.runtime import Runtime
from qabuild.system.quiet import quiet_logging


def comparison_provider(runtime: Runtime) -> Provider:
    """CUDA's execution provider if the runtime is for a GPU and torch has one, else the CPU's, which runs every graph.

    ONNX Runtime lists every provider that it is built with as available, whether or not there is a device for it.
    """
    import onnxruntime
    import torch

    available = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if runtime.device == "cuda" and available:
        return "CUDAExecutionProvider"
    return "CPUExecutionProvider"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporter, optimiser and quantiser; their errors are raised, not logged."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        with quiet_logging(logging.ERROR), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)
