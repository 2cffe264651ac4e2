"""The forms that backends can give a checkpoint: backend, dtype, and options that may be faster than the defaults."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qabuild.models.backends import BACKENDS, backend
from qabuild.models.capabilities import Rule
from qabuild.models.dtype_speed import expected
from qabuild.models.runtime import Device, Runtime


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a checkpoint can be compiled to."""

    backend: str
    variant: Mapping[str, Any]
    """The backend's options that differ from its defaults."""
    runtime: Runtime

    @cached_property
    def options(self) -> Any:
        return backend(self.backend).Options.model_validate(dict(self.variant))

    @cached_property
    def expected(self) -> Rule | None:
        """What is expected of its speed on this machine; None where nothing is known."""
        return expected(self.runtime, self.backend, self.variant)


def forms(device: Device, backends: Collection[str] = ()) -> Iterator[Form]:
    """Everything that those `backends`, or all, say that they can make for `device`, whether or not it runs here."""
    for name in backends or BACKENDS:
        module = backend(name)
        for dtype in module.DTYPES.get(device, ()):
            for variant in ({}, *module.VARIANTS.get(dtype, ())):
                yield Form(backend=name, variant=variant, runtime=Runtime(device=device, dtype=dtype))
