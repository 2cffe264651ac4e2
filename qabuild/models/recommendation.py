"""The backend and dtype that are likely to be fastest for a checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS, BASELINE, Backend, backend
from qabuild.models.capabilities import Rule
from qabuild.models.dtype_speed import expected, promise
from qabuild.models.runtime import Device, Runtime
from qabuild.models.support import check
from qabuild.system import packages


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A backend that can compile the checkpoint here and now, with the speed that is expected of it."""

    options: Any
    variant: Mapping[str, Any]
    """How the options differ from the backend's defaults."""
    runtime: Runtime
    rule: Rule


def candidates(config: Mapping[str, Any], device: Device) -> list[Candidate]:
    """What can compile a checkpoint with this config.json for `device` on this machine; expected fastest last.

    What was measured here to be faster than eager fp32 comes last, what was measured not to be comes first. Of two that
    are expected to be equally fast, the later one in `BACKENDS` comes last. A GPU need not be here. Raises BadTarget if
    the baseline does not support the checkpoint.
    """
    check(config, backend(BASELINE).Options(), Runtime(device=device))
    return sorted(_candidates(config, device), key=lambda candidate: promise(candidate.rule))


def _candidates(config: Mapping[str, Any], device: Device) -> Iterator[Candidate]:
    for name in BACKENDS:
        module = backend(name)
        if missing_packages(module):
            continue
        for dtype in module.DTYPES.get(device, ()):
            runtime = Runtime(device=device, dtype=dtype)
            for variant in ({}, *module.VARIANTS.get(dtype, ())):
                options, rule = module.Options.model_validate(variant), expected(runtime, name, variant)
                known = rule is not None and (rule.measured or not variant)
                if rule and known and _supports(config, options, runtime) and not module.missing(options, runtime):
                    yield Candidate(options=options, variant=variant, runtime=runtime, rule=rule)


def _supports(config: Mapping[str, Any], options: Any, runtime: Runtime) -> bool:
    try:
        check(config, options, runtime)
    except BadTarget:
        return False
    return True


def missing_packages(module: Backend) -> list[str]:
    """The packages that the backend lacks to compile and load with its default options."""
    loading = dict.fromkeys(module.PACKAGES, module.EXTRAS)
    return packages.missing({**loading, **module.compile_packages(module.Options())}, "cpu")
