"""What a target needs of this machine, and what of that is missing."""

from __future__ import annotations

from qabuild.builder.steps import STEPS
from qabuild.builder.steps.step import Requirements
from qabuild.models.backends import backend
from qabuild.system import packages
from qabuild.target.lineage import derivations
from qabuild.target.model import Target


def requirements(target: Target) -> Requirements:
    """The packages that building `target` takes, with the extras that install them."""
    targets = [target, *(derived.target for derived in derivations(target.origin))]
    return {package: extras for each in targets for step in STEPS for package, extras in step.requires(each).items()}


def missing(target: Target) -> list[str]:
    """What this machine lacks for `target`; empty where nothing is missing."""
    module = backend(target.backend.name)
    missing = packages.missing(requirements(target), target.runtime.device)
    if missing:
        return missing
    return [*_cuda_runtime(target.runtime.device), *module.missing(target.backend, target.runtime)]


def _cuda_runtime(device: str) -> list[str]:
    """What a GPU target lacks although there is a GPU: the checkpoint itself answers in torch, whatever the backend."""
    if device != "cuda":
        return []
    import torch

    if torch.cuda.is_available():
        return []
    return ["torch finds no CUDA device: install torch's CUDA build for this driver"]
