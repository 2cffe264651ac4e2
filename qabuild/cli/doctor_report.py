"""What this machine can build and run, and what is missing on it for each target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qabuild.builder.requirements import missing
from qabuild.models import dtype_speed, measured_speed
from qabuild.models.backends import BACKENDS, Backend, backend
from qabuild.models.recommendation import missing_packages
from qabuild.system import advisories, machine, packages
from qabuild.system.machine import FAST
from qabuild.system.units import count_of
from qabuild.target.model import Target

SHOWN = 5
"""Measured speeds in the report."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    subject: str
    found: str
    note: str = ""
    """What follows from it, or how to mend it."""


def examine() -> list[Finding]:
    """Inspect processor, devices and packages. Imports every runtime, which takes some seconds."""
    return [
        Finding(subject="processor", found=f"{machine.cpu()}, {count_of(machine.cores(), 'core')}"),
        *(_kernels(dtype) for dtype in FAST),
        _fastest(),
        *_measured(),
        _gpu(),
        *_runtimes(),
        *_advisories(),
    ]


def slow(target: Target) -> str | None:
    """Why `target` would run slowly on this machine; None if it would not."""
    variant = measured_speed.variant_of(target.backend, target.runtime.dtype)
    expected = dtype_speed.expected(target.runtime, target.backend.name, variant)
    return f"likely to be slower than fp32: {expected.why}" if expected and expected.rate < 1 else None


def _kernels(dtype: str) -> Finding:
    instructions = [name for name in FAST[dtype] if name in machine.instruction_sets()]
    return Finding(
        subject=f"{dtype} on the CPU",
        found=", ".join(instructions) or "no instructions for it",
        note="" if instructions else f"needs {' or '.join(FAST[dtype])}",
    )


def _fastest() -> Finding:
    """The dtypes, expected fastest first, from the processor's instructions; only a comparison measures it."""
    ranking = dtype_speed.ranking()
    return Finding(
        subject="fastest on the CPU",
        found=f"expected: {', then '.join(rule.numbers for rule in ranking)}",
        note=f"{'; '.join(rule.why for rule in ranking if rule.dtype != 'fp32')}; `qabuild compare` measures it",
    )


def _measured() -> list[Finding]:
    """What `qabuild tune` measured on each device, fastest first."""
    devices = {device: measured_speed.recall(device) for device in ("cpu", "cuda")}
    return [
        Finding(
            subject=f"measured on {device}",
            found=", then ".join(f"{speed.label} ({speed.speedup:.1f}x)" for speed in speeds[:SHOWN]),
            note=f"relative to eager fp32, by `qabuild tune` with {speeds[0].checkpoint}, {speeds[0].measured_at[:10]}",
        )
        for device, speeds in devices.items()
        if speeds
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


def _runtimes() -> list[Finding]:
    """The distinct runtimes of the backends; transformers, which all need, comes after torch."""
    modules: dict[tuple[str, str], list[Backend]] = {}
    for name in BACKENDS:
        modules.setdefault(backend(name).RUNTIME, []).append(backend(name))
    torch, *others = (
        _package(*runtime, sharing[0].EXTRAS, partial(_here, sharing)) for runtime, sharing in modules.items()
    )
    return [torch, _package("transformers", "transformers", (), lambda: ""), *others]


def _here(sharing: Sequence[Backend]) -> str:
    """What the backends that share a runtime say of it."""
    return "; ".join(filter(None, (module.here() for module in sharing)))


def _advisories() -> list[Finding]:
    return [
        Finding(
            subject="vulnerability",
            found=f"{advisory.package} {version}",
            note=f"{advisory.cve}: {advisory.risk}; fixed in {advisory.fixed} (as of {advisories.AS_OF})",
        )
        for version, advisory in advisories.installed()
    ]


def _package(subject: str, package: str, extras: Sequence[str], capabilities: Callable[[], str]) -> Finding:
    """The installed version, and what `capabilities` says of it; a package that does not load is a finding, too."""
    installed = packages.versions([package])
    if not installed:
        return Finding(subject=subject, found="not installed", note=packages.remedy(package, extras))
    found = " and ".join(f"{name} {version}" for name, version in installed.items())
    if len(installed) > 1:
        note = "they overwrite each other: uninstall both, then install one of qabuild[cpu] and qabuild[gpu]"
        return Finding(subject=subject, found=found, note=note)
    try:
        note = capabilities()
    except Exception as error:  # whatever a native library or an outdated package raises at import
        note = f"does not load: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return Finding(subject=subject, found=found, note=note)


def report(targets: Sequence[Target]) -> dict[str, Any]:
    """Findings about machine and backends and, for each target, what is missing, as JSON values."""
    return {
        "machine": [finding.__dict__ for finding in examine()],
        "backends": {name: missing_packages(backend(name)) for name in BACKENDS},
        "targets": [{"target": t.name, "missing": missing(t), "slow": slow(t)} for t in targets],
    }
