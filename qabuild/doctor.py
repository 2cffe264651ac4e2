"""What this machine can build and run, and what it lacks for each target."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qabuild import machine
from qabuild.backends import BACKENDS, backend
from qabuild.target import Target


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    subject: str
    found: str
    note: str = ""
    """What follows from it, or what to do about it."""


def examine() -> list[Finding]:
    """Look at processor, devices and packages. Imports the runtimes it asks, so it takes some seconds."""
    return [
        Finding(subject="processor", found=f"{machine.cpu()}, {machine.cores()} cores"),
        *_instruction_sets(),
        _gpu(),
        _torch(),
        Finding(subject="transformers", found=_version("transformers")),
        _onnxruntime(),
        _deepspeed(),
    ]


def missing(target: Target) -> list[str]:
    """What this machine lacks for `target`; empty where nothing is missing."""
    options = target.backend
    module = backend(options.name)
    lacks = machine.missing(module.PACKAGES, target.runtime.device)
    if not lacks and target.runtime.device == "cuda":
        lacks += _cuda_runtime(options)
    return lacks


def slow(target: Target) -> str | None:
    """Why `target` runs here, but slowly; None where nothing speaks against it."""
    sets = machine.instruction_sets()
    if target.runtime.device != "cpu":
        return None
    if target.runtime.dtype == "bf16" and not {"AVX512-BF16", "AMX-BF16"} & set(sets):
        return "runs, but this processor has no bf16 instructions: slower than fp32"
    if target.runtime.dtype == "int8" and not {"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"} & set(sets):
        return "runs, but this processor has no VNNI: int8 gains less"
    return None


def _instruction_sets() -> list[Finding]:
    sets = machine.instruction_sets()
    gains = {
        "AVX512-VNNI": "fast int8",
        "AMX-BF16": "fast bf16",
        "AMX-INT8": "fastest int8",
        "AVX512-BF16": "fast bf16",
    }
    return [
        Finding(subject=name, found="yes" if name in sets else "no", note=gain if name in sets else f"no {gain}")
        for name, gain in gains.items()
    ]


def _gpu() -> Finding:
    gpus = machine.gpus()
    if not gpus:
        return Finding(
            subject="GPU", found="none", note="targets with runtime.device = 'cuda' can be built with --compile-only"
        )
    return Finding(
        subject="GPU", found=", ".join(gpus), note=f"{machine.gpu_architecture()}, driver {machine.driver_version()}"
    )


def _torch() -> Finding:
    import torch

    if not torch.version.cuda:
        note = "a build without CUDA" + (", though a GPU is here: install torch's CUDA build" if machine.gpus() else "")
    else:
        note = f"built for CUDA {torch.version.cuda}" + (
            "" if torch.cuda.is_available() else ", which does not work here"
        )
    return Finding(subject="torch", found=torch.__version__, note=note)


def _onnxruntime() -> Finding:
    if not (found := machine.versions(["onnxruntime"])):
        return Finding(subject="ONNX Runtime", found="not installed", note=machine.INSTALL["onnxruntime"])
    name, version = next(iter(found.items()))
    if len(found) > 1:
        return Finding(
            subject="ONNX Runtime",
            found=" and ".join(found),
            note="they overwrite each other: pip uninstall both, then install one of qabuild[cpu] and qabuild[gpu]",
        )
    return Finding(subject="ONNX Runtime", found=f"{name} {version}", note=", ".join(_providers()))


def _providers() -> list[str]:
    try:
        return list(importlib.import_module("onnxruntime").get_available_providers())
    except ImportError as error:
        return [f"does not load: {error}"]


def _deepspeed() -> Finding:
    if not machine.versions(["deepspeed"]):
        return Finding(subject="DeepSpeed", found="not installed", note=machine.INSTALL["deepspeed"])
    with _silent():
        builders: Any = importlib.import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS
        kernel = builders.get("transformer_inference")
        works = bool(kernel and kernel.is_compatible())
    note = (
        "inference kernels can be built" if works else "no inference kernels here: replace_with_kernel_inject = false"
    )
    return Finding(subject="DeepSpeed", found=_version("deepspeed"), note=note)


def _cuda_runtime(options: Any) -> list[str]:
    """What a GPU target lacks although there is a GPU and the packages are installed."""
    import torch

    if options.name == "onnxruntime":
        wanted = options.provider or "CUDAExecutionProvider"
        if wanted not in _providers():
            return [f"ONNX Runtime has no {wanted}: pip uninstall onnxruntime, then pip install 'qabuild[gpu]'"]
    elif not torch.cuda.is_available():
        return ["torch finds no CUDA device: install torch's CUDA build for this driver"]
    return []


def _version(package: str) -> str:
    return machine.versions([package]).get(package, "not installed")


@contextlib.contextmanager
def _silent() -> Any:
    """Without what DeepSpeed prints and logs when it is imported."""
    import logging

    logging.disable(logging.CRITICAL)
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(io.StringIO()):
            sys.stderr.flush()
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        logging.disable(logging.NOTSET)


def report(targets: Sequence[Target]) -> dict[str, Any]:
    """Findings and, for each target, what it lacks, as JSON values."""
    return {
        "machine": [finding.__dict__ for finding in examine()],
        "backends": {name: machine.missing(backend(name).PACKAGES, "cpu") for name in BACKENDS},
        "targets": [{"target": t.name, "missing": missing(t), "slow": slow(t)} for t in targets],
    }
