"""Which numbers are likely to be fastest on this CPU, and why.

An expectation from what it can multiply, and no measurement: rates are peak rates as the makers state them, but for
those that were measured. Intel's AVX512-BF16 was on a Xeon of family 6, model 207, without AMX: 94 GFLOP/s a core in
bf16, 168 in fp32. int8 on AMX, whose products are twice as fast as those of bf16, was in OpenVINO on a Xeon of family
6, model 167: 0.9 times bf16's questions/s, since the rest is fp32, and 1.02 times with the rest in bf16. What AVX2
alone does was on an AMD EPYC of family 25, model 1, by questions/s over those of eager fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from qabuild.models.backends import BACKENDS, backend
from qabuild.models.runtime import Dtype
from qabuild.system import machine


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How fast a processor multiplies numbers of one kind, where it has these instructions."""

    dtype: Dtype
    instructions: str | None
    """One of `qabuild.system.machine.INSTRUCTION_SETS`; None: any processor."""
    vendor: str | None = None
    """As /proc/cpuinfo has it; None: any."""
    backend: str | None = None
    """Which it speaks of; None: any."""
    rate: float
    """Products for each one of fp32 in the same time, at best; questions, where that was measured."""
    why: str

    @property
    def numbers(self) -> str:
        """What it speaks of, in words."""
        return f"{self.dtype} with {self.backend}" if self.backend else self.dtype

    def fits(self) -> bool:
        """Whether it speaks of this processor."""
        has = self.instructions is None or self.instructions in machine.instruction_sets()
        return has and self.vendor in (None, machine.vendor())


RULES = (
    Rule(dtype="int8", instructions="AMX-INT8", rate=15, why="AMX-INT8 does too, and then backend.rest = 'bf16' pays"),
    Rule(dtype="int8", instructions="AVX512-VNNI", rate=4, why="AVX512-VNNI makes four products where fp32 makes one"),
    Rule(dtype="int8", instructions="AVX-VNNI", rate=4, why="AVX-VNNI makes four products where fp32 makes one"),
    Rule(dtype="bf16", instructions="AMX-BF16", rate=16, why="AMX-BF16 multiplies whole tiles"),
    Rule(
        dtype="bf16",
        instructions="AVX512-BF16",
        vendor="GenuineIntel",
        rate=0.6,
        why="Intel's AVX512-BF16 makes fewer products than fp32 does; it is AMX that is fast there, and here is none",
    ),
    Rule(dtype="bf16", instructions="AVX512-BF16", rate=2, why="AVX512-BF16 makes two products where fp32 makes one"),
    Rule(dtype="bf16", instructions=None, rate=0.15, why="no bf16 instructions, so that it is emulated"),
    Rule(dtype="fp32", instructions=None, rate=1, why="fp32 needs nothing"),
)
"""Of any backend; those of one alone it states itself. For each dtype and backend, the first that fits counts."""


def ranking() -> list[Rule]:
    """What to expect of each dtype on this processor, the fastest first; of a backend apart where it differs."""
    first: dict[tuple[Dtype, str | None], Rule] = {}
    stated = [rule for name in BACKENDS for rule in backend(name).SPEED]
    for rule in filter(Rule.fits, (*RULES, *stated)):
        if (rule.dtype, None) not in first:
            first.setdefault((rule.dtype, rule.backend), rule)
    return sorted(first.values(), key=lambda rule: -rule.rate)


def of(dtype: Dtype, backend: str) -> Rule | None:
    """What to expect of that dtype with that backend; None where nothing is known of it."""
    return next((rule for rule in ranking() if rule.dtype == dtype and rule.backend in (None, backend)), None)
