"""What this machine can build and run, and what it lacks for each target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qabuild.builder.requirements import missing
from qabuild.models import dtype_speed
from qabuild.models.backends import BACKENDS, Backend, backend
from qabuild.system import machine, packages
from qabuild.system.machine import FAST
from qabuild.target.model import Target


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
        *(_kernels(dtype) for dtype in FAST),
        _fastest(),
        _gpu(),
        *_runtimes(),
    ]


def slow(target: Target) -> str | None:
    """Why `target` runs here, but slowly; None where nothing speaks against it."""
    if target.runtime.device != "cpu":
        return None
    expected = dtype_speed.of(target.runtime.dtype, target.backend.name)
    return f"likely to be slower than fp32: {expected.why}" if expected and expected.rate < 1 else None


def _kernels(dtype: str) -> Finding:
    here = [name for name in FAST[dtype] if name in machine.instruction_sets()]
    return Finding(
        subject=f"{dtype} on the CPU",
        found=", ".join(here) or "no instructions for it",
        note="" if here else f"would need {' or '.join(FAST[dtype])}",
    )


def _fastest() -> Finding:
    """An order of dtypes, from what the processor can multiply; only a comparison can prove it."""
    ranking = dtype_speed.ranking()
    return Finding(
        subject="fastest on the CPU",
        found=f"expected: {', then '.join(rule.numbers for rule in ranking)}; with OpenVINO where it is installed",
        note=f"{'; '.join(rule.why for rule in ranking if rule.dtype != 'fp32')}; `qabuild compare` measures it",
    )


def _gpu() -> Finding:
    gpus = machine.gpus()
    if not gpus:
        return Finding(
            subject="GPU", found="none", note="targets with runtime.device = 'cuda' can be built with --compile-only"
        )
    return Finding(
        subject="GPU", found=", ".join(gpus), note=f"{machine.gpu_architecture()}, driver {machine.driver_version()}"
    )


def _runtimes() -> list[Finding]:
    """What the backends run on, each once; transformers, which all need, after torch."""
    modules: dict[tuple[str, str], Backend] = {}
    for name in BACKENDS:
        modules.setdefault(backend(name).RUNTIME, backend(name))
    found = [_package(*runtime, module.EXTRAS, module.here) for runtime, module in modules.items()]
    return [found[0], _package("transformers", "transformers", (), lambda: ""), *found[1:]]


def _package(subject: str, package: str, extras: Sequence[str], look: Callable[[], str]) -> Finding:
    """Which version is installed, and what `look` makes of it; a package that is broken is a finding too."""
    installed = packages.versions([package])
    if not installed:
        return Finding(subject=subject, found="not installed", note=packages.remedy(package, extras))
    found = " and ".join(f"{name} {version}" for name, version in installed.items())
    if len(installed) > 1:
        note = "they overwrite each other: uninstall both, then install one of qabuild[cpu] and qabuild[gpu]"
        return Finding(subject=subject, found=found, note=note)
    try:
        note = look()
    except Exception as error:  # whatever a native library or a package of another age raises when it is imported
        note = f"does not load: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return Finding(subject=subject, found=found, note=note)


def report(targets: Sequence[Target]) -> dict[str, Any]:
    """Findings and, for each target, what it lacks, as JSON values."""
    return {
        "machine": [finding.__dict__ for finding in examine()],
        "backends": {
            name: packages.missing(dict.fromkeys(backend(name).PACKAGES, backend(name).EXTRAS), "cpu")
            for name in BACKENDS
        },
        "targets": [{"target": t.name, "missing": missing(t), "slow": slow(t)} for t in targets],
    }
