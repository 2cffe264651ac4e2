"""Which dtype is likely to be fastest on this machine, and why.

On a CPU, an estimate from its instruction sets, not a measurement. Rates are the vendors' peak rates, except these,
which were measured:

- Intel's AVX512-BF16 without AMX, on a Xeon of family 6, model 207: 94 GFLOP/s a core in bf16, 168 in fp32.
- int8 on AMX, whose peak rate is twice that of bf16, in OpenVINO on a Xeon of family 6, model 167: 0.9 times the
  questions/s of bf16, since unquantised operations run in fp32; 1.02 times with those in bf16.
- AVX2 alone, on an AMD EPYC of family 25, model 1: questions/s relative to eager fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qabuild.models import measured_speed
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.capabilities import Rule
from qabuild.models.runtime import Dtype, Runtime

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
"""Rules for every backend; a backend's own are in its `SPEED`. For each dtype and backend, the first that fits wins."""


ON_A_GPU = (
    Rule(
        dtype="fp16",
        instructions=None,
        rate=1.2,
        why="with RoBERTa-base, fp16 was 1.2 times as fast on an RTX 4090; a small model may gain nothing",
    ),
    Rule(dtype="fp32", instructions=None, rate=1, why="fp32 needs nothing"),
)
"""Rules for every backend; dtypes that were not measured have none. The figure is of autocast in PyTorch."""


def ranking() -> list[Rule]:
    """The rule of each dtype on this processor, fastest first; a backend whose speed differs has a rule of its own."""
    first: dict[tuple[Dtype, str | None], Rule] = {}
    own = [rule for name in BACKENDS for rule in backend(name).SPEED]
    for rule in filter(Rule.fits, (*RULES, *own)):
        if (rule.dtype, None) not in first:
            first.setdefault((rule.dtype, rule.backend), rule)
    return sorted(first.values(), key=lambda rule: -rule.rate)


def speed_rule(runtime: Runtime, backend: str) -> Rule | None:
    """The rule for the device and dtype of `runtime` with `backend` on this machine; None if there is none."""
    rules = ranking() if runtime.device == "cpu" else ON_A_GPU
    return next((rule for rule in rules if rule.dtype == runtime.dtype and rule.backend in (None, backend)), None)


def expected(runtime: Runtime, backend: str, variant: Mapping[str, Any]) -> Rule | None:
    """What is expected of a backend with options that differ from its defaults in `variant`.

    As it was measured on this machine, or else by the rules, which know no options. None where nothing is known.
    """
    measured = measured_speed.find(backend, runtime, variant)
    if measured is None:
        return speed_rule(runtime, backend)
    why = f"it was {measured.speedup:.2g} times as fast as eager fp32 on this machine"
    return Rule(dtype=runtime.dtype, instructions=None, backend=backend, rate=measured.speedup, why=why, measured=True)


def promise(rule: Rule | None) -> tuple[int, float]:
    """Sorts by promise: what was measured to be faster than eager fp32 last, what was measured not to be first."""
    if rule is None:
        return (1, 1.0)
    return (1 if not rule.measured else 2 if rule.rate > 1 else 0, rule.rate)
