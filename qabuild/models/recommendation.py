"""The backend and dtype that are likely to be fastest for a checkpoint on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.errors import BadTarget
from qabuild.models.backends import BASELINE, Backend, backend
from qabuild.models.dtype_speed import promise
from qabuild.models.forms import Form, forms
from qabuild.models.runtime import Device, Runtime
from qabuild.models.support import check
from qabuild.system import packages


def recommended(config: Mapping[str, Any], device: Device) -> list[Form]:
    """What can compile a checkpoint with this config.json for `device` here and now; expected fastest last.

    What was measured here to be faster than eager fp32 comes last, what was measured not to be comes first. Of two that
    are expected to be equally fast, the later one in `BACKENDS` comes last. A GPU need not be here. Raises BadTarget if
    the baseline does not support the checkpoint.
    """
    check(config, backend(BASELINE).Options(), Runtime(device=device))
    return sorted(
        (form for form in forms(device) if _is_known(form) and _is_possible(form, config)),
        key=lambda form: promise(form.expected),
    )


def _is_known(form: Form) -> bool:
    """Whether its speed can be told; the rules know of no options."""
    rule = form.expected
    return rule is not None and (rule.measured or not form.variant)


def _is_possible(form: Form, config: Mapping[str, Any]) -> bool:
    module = backend(form.backend)
    if missing_packages(module) or module.missing(form.options, form.runtime):
        return False
    try:
        check(config, form.options, form.runtime)
    except BadTarget:
        return False
    return True


def missing_packages(module: Backend) -> list[str]:
    """The packages that the backend lacks to compile and load with its default options."""
    loading = dict.fromkeys(module.PACKAGES, module.EXTRAS)
    return packages.missing({**loading, **module.compile_packages(module.Options())}, "cpu")
