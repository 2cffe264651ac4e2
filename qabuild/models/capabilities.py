"""What a backend states of itself: the ways in which it runs models, and rules about its speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qabuild.models.runtime import Dtype
from qabuild.system import machine


@dataclass(frozen=True, kw_only=True)
class Way:
    """One mode in which a backend runs models, such as a graph in fp16: a column of the support matrix."""

    name: str
    """Its name in messages and tables, such as `onnxruntime in fp16`."""
    supported: Sequence[str]
    """Model types (`model_type` in config.json) that were tested with it."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Model types that do not work, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The expected speed of one dtype on processors with the given instructions."""

    dtype: Dtype
    instructions: str | None
    """The required instruction set, one of `qabuild.system.machine.INSTRUCTION_SETS`; None: any processor."""
    vendor: str | None = None
    """The required vendor, as in /proc/cpuinfo; None: any."""
    backend: str | None = None
    """The backend that the rule applies to; None: any."""
    rate: float
    """Peak throughput relative to fp32: multiplications per second, or questions per second where measured."""
    why: str
    measured: bool = False
    """Whether `rate` was measured on this machine: of two, such a rule says more than one without."""

    @property
    def numbers(self) -> str:
        """The label of the dtype, with the backend if the rule is for one alone."""
        return f"{self.dtype} with {self.backend}" if self.backend else self.dtype

    def fits(self) -> bool:
        """Whether the rule applies to this processor."""
        has = self.instructions is None or self.instructions in machine.instruction_sets()
        return has and self.vendor in (None, machine.vendor())
