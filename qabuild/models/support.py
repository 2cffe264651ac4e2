"""Support matrix: the devices, dtypes and encoder architectures that each backend declares.

Whatever a backend does not declare is refused. `tests/models/backends` builds every cell of the matrix and compares its
logits with the eager model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.errors import BadTarget
from qabuild.models.capabilities import Way
from qabuild.models.runtime import Runtime


def check(config: Mapping[str, Any], options: Any, runtime: Runtime) -> None:
    """Raise BadTarget, before any work, if the backend of `options` does not support the dtype, device or architecture.

    `config` is the checkpoint's config.json; an empty one (the checkpoint is not resolved yet) passes.
    """
    from qabuild.models.backends import backend

    module = backend(options.name)
    module.check(config, options, runtime)
    if runtime.dtype not in module.DTYPES.get(runtime.device, ()):
        supported = "; ".join(f"{device}: {', '.join(dtypes)}" for device, dtypes in module.DTYPES.items())
        raise BadTarget(
            f"runtime.dtype = {runtime.dtype!r} on runtime.device = {runtime.device!r}: the backend {options.name} "
            "does not support it",
            f"it supports {supported or 'nothing that it states'}",
            key="runtime.dtype",
        )
    if config:
        ways = module.ways(options, runtime)
        if not ways:
            raise BadTarget(f"the backend {options.name} states no architectures that it supports", "take another one")
        for way in ways:
            _check_architecture(way, config.get("model_type"))


def _check_architecture(way: Way, model_type: Any) -> None:
    if model_type in way.supported:
        return
    if model_type not in model_types():
        raise BadTarget(
            f"the checkpoint's model_type {model_type!r} is not one of the encoders that qabuild supports",
            f"supported are {', '.join(model_types())}",
        )
    raise BadTarget(
        f"the backend {way.name} does not support model_type {model_type!r}: "
        + way.refused.get(model_type, "it was not measured with it"),
        f"these do: {', '.join(other.name for other in all_ways() if model_type in other.supported)}",
    )


def all_ways() -> list[Way]:
    """The ways of all backends, in the order of `BACKENDS`."""
    from qabuild.models.backends import BACKENDS, backend

    return [way for name in BACKENDS for way in backend(name).WAYS]


def model_types() -> list[str]:
    """Every model type that at least one backend supports, in alphabetical order."""
    return sorted({model_type for way in all_ways() for model_type in way.supported})


def markdown() -> str:
    """The support matrix as a Markdown table: a row for each model type, a column for each way."""
    ways = all_ways()
    rows = [("model type", *(way.name for way in ways)), ("---", *(":-:" for _ in ways))]
    rows += [(name, *("yes" if name in way.supported else "no" for way in ways)) for name in model_types()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
