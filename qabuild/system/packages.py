"""Versions of installed packages, and how to install missing ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata

from qabuild.errors import MissingEnvironment
from qabuild.system import machine

# Distributions that provide the same import package; one of them is installed.
ALTERNATIVES: dict[str, tuple[str, ...]] = {"onnxruntime": ("onnxruntime", "onnxruntime-gpu")}

OLDER_LINE = {"optimum", "optimum-gpu"}
"""Extras that transformers 5 has nothing for."""


def distributions(package: str) -> tuple[str, ...]:
    """The distributions that provide `package`: onnxruntime-gpu provides `onnxruntime` too."""
    return ALTERNATIVES.get(package, (package,))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions of the packages, by distribution name; packages that are not installed are left out."""
    installed = {}
    for name in sorted({name for package in packages for name in distributions(package)}):
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def remedy(package: str, extras: Sequence[str] = ()) -> str:
    """The pip command that installs the package; `extras` are those of qabuild that include it, one is enough."""
    command = f"pip install {' or '.join(repr(f'qabuild[{extra}]') for extra in extras) or package}"
    line = versions(["transformers"]).get("transformers", "4.57.")
    if OLDER_LINE.isdisjoint(extras) or line.startswith("4.57."):
        return command
    return f"{command}, in an environment of transformers 4.57 (this one has {line})"


def require(packages: Mapping[str, Sequence[str]], device: str) -> None:
    """Raise MissingEnvironment unless the packages and the device are available; see `missing`."""
    refuse(missing(packages, device))


def refuse(problems: Sequence[str]) -> None:
    """Raise MissingEnvironment if there are any problems."""
    if problems:
        raise MissingEnvironment("; ".join(problems), "`qabuild doctor` shows what this machine can build and run")


def missing(packages: Mapping[str, Sequence[str]], device: str) -> list[str]:
    """What is missing on this machine, one message with a remedy for each; empty where nothing is missing.

    `packages` maps PyPI names to the extras of qabuild that include them.
    """
    lacking: dict[str, list[str]] = {}
    for package, extras in packages.items():
        if not versions([package]):
            lacking.setdefault(remedy(package, extras), []).append(package)
    problems = [
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not installed: {how}"
        for how, names in lacking.items()
    ]
    if device == "cuda" and not machine.gpus():
        problems.append("no CUDA device here: `qabuild build --compile-only` needs none, `qabuild verify` does")
    return problems
