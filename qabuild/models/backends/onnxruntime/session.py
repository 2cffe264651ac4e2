"""ONNX Runtime sessions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qabuild.models.runtime import Runtime
from qabuild.system import machine
from qabuild.system.quiet import quiet_logging


def load_graph(directory: Path, provider: str) -> Any:
    """Load the ORTModelForQuestionAnswering in `directory`; its session logs only errors."""
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTModelForQuestionAnswering

    settings = SessionOptions()
    settings.log_severity_level = 3  # with CUDA, every session would warn of nodes that stay on the CPU
    # ONNX Runtime multiplies fp32 in TF32 by default; PyTorch, which it is compared with, does not.
    provider_options = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else None
    return ORTModelForQuestionAnswering.from_pretrained(
        directory,
        provider=provider,
        provider_options=provider_options,
        session_options=settings,
        local_files_only=True,
    )


def comparison_provider(runtime: Runtime) -> str:
    """CUDA's execution provider if the runtime and this machine have a GPU, else the CPU's, which runs every graph.

    ONNX Runtime lists every provider that it is built with as available, whether or not there is a device for it.
    """
    import onnxruntime

    if runtime.device == "cuda" and machine.gpus() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return "CUDAExecutionProvider"
    return "CPUExecutionProvider"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence exporter, optimiser and quantiser; their errors are raised, not logged."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    try:
        with quiet_logging(logging.ERROR), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)
