"""Which numbers are likely to be fastest on this CPU, and why.

An expectation from what it can multiply, and no measurement: rates are peak rates as the makers state them, but for
two. Intel's AVX512-BF16 was measured on a Xeon of family 6, model 207, without AMX: 94 GFLOP/s a core in bf16, 168 in
fp32. int8 on AMX, whose products are twice as fast as those of bf16, was measured in OpenVINO on a Xeon of family 6,
model 167: 0.9 times bf16's questions/s, since the rest is fp32, and 1.02 times with the rest in bf16.
"""

from __future__ import annotations

from dataclasses import dataclass

from qabuild import machine
from qabuild.backends import Dtype


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How fast a processor multiplies numbers of one kind, where it has these instructions."""

    dtype: Dtype
    instructions: str | None
    """One of `qabuild.machine.INSTRUCTION_SETS`; None: any processor."""
    vendor: str | None = None
    """As /proc/cpuinfo has it; None: any."""
    rate: float
    """Products for each one of fp32 in the same time, at best."""
    why: str

    def fits(self) -> bool:
        """Whether it speaks of this processor."""
        has = self.instructions is None or self.instructions in machine.instruction_sets()
        return has and self.vendor in (None, machine.vendor())


RULES = (
    Rule(dtype="int8", instructions="AMX-INT8", rate=15, why="AMX-INT8 does too, and then backend.rest = 'bf16' pays"),
    Rule(dtype="int8", instructions="AVX512-VNNI", rate=4, why="AVX512-VNNI makes four products where fp32 makes one"),
    Rule(dtype="int8", instructions="AVX-VNNI", rate=4, why="AVX-VNNI makes four products where fp32 makes one"),
    Rule(dtype="int8", instructions=None, rate=0.9, why="without VNNI, int8 takes detours, and needs overflow_fix"),
    Rule(dtype="bf16", instructions="AMX-BF16", rate=16, why="AMX-BF16 multiplies whole tiles"),
    Rule(
        dtype="bf16",
        instructions="AVX512-BF16",
        vendor="GenuineIntel",
        rate=0.6,
        why="Intel's AVX512-BF16 makes fewer products than fp32 does; it is AMX that is fast there, and here is none",
    ),
    Rule(dtype="bf16", instructions="AVX512-BF16", rate=2, why="AVX512-BF16 makes two products where fp32 makes one"),
    Rule(dtype="bf16", instructions=None, rate=0.1, why="no bf16 instructions, so that it is emulated"),
    Rule(dtype="fp32", instructions=None, rate=1, why="fp32 needs nothing"),
)
"""For each dtype, the first rule that fits counts."""


def ranking() -> list[Rule]:
    """What to expect of each dtype on this processor, the fastest first."""
    first: dict[Dtype, Rule] = {}
    for rule in RULES:
        if rule.fits():
            first.setdefault(rule.dtype, rule)
    return sorted(first.values(), key=lambda rule: -rule.rate)


def of(dtype: Dtype) -> Rule | None:
    """What to expect of that dtype; None where nothing is known of it."""
    return next((rule for rule in ranking() if rule.dtype == dtype), None)
