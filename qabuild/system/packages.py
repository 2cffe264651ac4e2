"""Installed packages: their versions, and what is missing with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata

from qabuild.errors import MissingEnvironment
from qabuild.system import machine

# Distributions that offer the same package, of which one is installed.
ALTERNATIVES: dict[str, tuple[str, ...]] = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}


def distributions(package: str) -> tuple[str, ...]:
    """The names under which `package` may be installed: `onnxruntime` is also that of onnxruntime-gpu."""
    return ALTERNATIVES.get(package, (package,))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed version of each package, by the name it is installed under; what is not installed is left out."""
    found = {}
    for name in sorted({name for package in packages for name in distributions(package)}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def remedy(package: str, extras: Sequence[str] = ()) -> str:
    """How to install the package; `extras` are those of qabuild that bring it, of which one is enough."""
    return f"pip install {' or '.join(repr(f'qabuild[{extra}]') for extra in extras) or package}"


def require(packages: Mapping[str, Sequence[str]], device: str) -> None:
    """Raise MissingEnvironment unless the packages are installed and the device is there; see `missing`."""
    refuse(missing(packages, device))


def refuse(lacks: Sequence[str]) -> None:
    """Raise MissingEnvironment where anything is lacking."""
    if lacks:
        raise MissingEnvironment("; ".join(lacks), "`qabuild doctor` shows what this machine can build and run")


def missing(packages: Mapping[str, Sequence[str]], device: str) -> list[str]:
    """What this machine lacks, each in a few words with its remedy; empty where nothing is missing.

    `packages` are distributions by their PyPI names, each with the extras of qabuild that bring it.
    """
    lacks = [
        f"{package} is not installed: {remedy(package, extras)}"
        for package, extras in packages.items()
        if not versions([package])
    ]
    if device == "cuda" and not machine.gpus():
        lacks.append("no CUDA device here: `qabuild build --compile-only` needs none, `qabuild verify` does")
    return lacks
