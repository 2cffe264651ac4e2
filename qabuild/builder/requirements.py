"""What a target needs of this machine, and what of that is missing."""

from __future__ import annotations

from qabuild.models.backends import backend
from qabuild.models.training import options
from qabuild.system import packages
from qabuild.target.lineage import Trained, trainings
from qabuild.target.model import Target


def missing(target: Target) -> list[str]:
    """What this machine lacks for `target`; empty where nothing is missing."""
    module = backend(target.backend.name)
    lacks = packages.missing(needed(target), target.runtime.device)
    if lacks:
        return lacks
    return [*_cuda_runtime(target.runtime.device), *module.lacks(target.backend, target.runtime)]


def _cuda_runtime(device: str) -> list[str]:
    """What a GPU target lacks although there is a GPU: the checkpoint itself answers in torch, whatever the backend."""
    if device != "cuda":
        return []
    import torch

    if torch.cuda.is_available():
        return []
    return ["torch finds no CUDA device: install torch's CUDA build for this driver"]


def needed(target: Target) -> tuple[str, ...]:
    """Distributions that building `target` takes beside qabuild's own."""
    searched = any(trained.distill and trained.distill.search for trained in trainings(target.origin))
    trained = options.PACKAGES if isinstance(target.origin, Trained) else ()
    return (*backend(target.backend.name).PACKAGES, *trained, *(options.SEARCH_PACKAGES if searched else ()))
