"""This machine's processor, cores and GPUs; read only."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from math import ceil, inf
from pathlib import Path

# Flags of /proc/cpuinfo that decide how fast low-precision kernels run, and their usual names.
INSTRUCTION_SETS: dict[str, str] = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "amx_int8": "AMX-INT8",
}

FAST: dict[str, tuple[str, ...]] = {
    "bf16": ("AVX512-BF16", "AMX-BF16"),
    "int8": ("AVX512-VNNI", "AVX-VNNI", "AMX-INT8"),
}
"""Instruction sets for a dtype; without any of them a CPU emulates it with slower instructions."""


COMPILER_FLAGS = re.compile(
    "(sse|ssse|avx|amx|fma|bmi|sha|vaes|gfni|sve|asimd)\\w*|abm|adx|aes|f16c|fp|i8mm|bf16|lzcnt|movbe|pclmulqdq|popcnt"
    "|vpclmulqdq"
)

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
CGROUP = Path("/proc/self/cgroup")
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage, and the line of memory.stat for cached files, in versions 2 and 1 of cgroups."""


@functools.cache
def _processor(cpuinfo: Path) -> Mapping[str, str]:
    """The fields of /proc/cpuinfo for the first processor; empty where there are none."""
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu() -> str:
    """Model name of the processor, with family and model, since some hypervisors hide the name."""
    info = _processor(CPUINFO)
    name = info.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {info[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in info]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def vendor() -> str:
    """The processor's vendor id, such as GenuineIntel or AuthenticAMD; empty where it is unknown."""
    return _processor(CPUINFO).get("vendor_id", "")


def cores() -> int:
    """How many processors this process may use, by its affinity and the CPU quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, ceil(min(allowed, _quota())))


def _quota() -> float:
    """The smallest CPU quota of the process's control group and its parents, in processors."""
    quotas = [inf]
    for group in _control_groups("cpu"):
        with suppress(OSError, ValueError):  # the root group has no quota, and "max" is not a number
            quota, period = map(int, (group / "cpu.max").read_text(encoding="utf-8").split())
            quotas.append(quota / period)
        with suppress(OSError, ValueError):
            quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            quotas.append(quota / period if quota > 0 else inf)
    return min(quotas)


def _control_groups(controller: str) -> list[Path]:
    """Folders of the process's control group and its parents, in version 2 of cgroups and in version 1, which has a
    tree for each controller; none where there are none."""
    try:
        memberships = [line.split(":", 2) for line in CGROUP.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    groups = []
    for _, controllers, path in memberships:
        if not controllers or controller in controllers.split(","):
            group = CGROUPS / (controller if controllers else "") / path.lstrip("/")
            groups += [group, *group.parents]
    return groups


def free_memory() -> float:
    """Bytes that processes may still take: what the system has available, and the limits of the control groups."""
    free = [inf]
    with suppress(OSError, ValueError, IndexError):
        free.append(1024 * int(re.findall(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(), re.MULTILINE)[0]))
    for group in _control_groups("memory"):
        for limit, usage, cache in MEMORY_FILES:
            with suppress(OSError, ValueError):  # "max" is not a number
                left = int((group / limit).read_text()) - int((group / usage).read_text())
                cached = re.findall(rf"^{cache} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                free.append(left + sum(map(int, cached)))  # the system drops cached files where memory is short
    return min(free)


def instruction_sets() -> tuple[str, ...]:
    """The usual names of those `INSTRUCTION_SETS` that the processor has."""
    flags = set(_processor(CPUINFO).get("flags", "").split())
    return tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags)


def compiler_flags() -> tuple[str, ...]:
    """Flags of /proc/cpuinfo that tell a compiler which instructions it may use (-march=native), in order.

    Others, such as those of virtual machines, have no influence on user code.
    """
    flags = _processor(CPUINFO).get("flags", _processor(CPUINFO).get("Features", "")).split()
    return tuple(sorted(flag for flag in set(flags) if COMPILER_FLAGS.fullmatch(flag)))


def lacks_instructions(dtype: str) -> bool:
    """Whether this is an x86 processor without any of the instruction sets that `FAST` names for the dtype."""
    return platform.machine() in ("x86_64", "AMD64") and not set(FAST[dtype]) & set(instruction_sets())


def preloaded(library: str) -> bool:
    """Whether this process preloads a library of that name (LD_PRELOAD, ld.so.preload)."""
    preloads = os.environ.get("LD_PRELOAD", "")
    with suppress(OSError):
        preloads += Path("/etc/ld.so.preload").read_text(encoding="utf-8", errors="replace")
    return library in preloads


@functools.cache
def gpus() -> tuple[str, ...]:
    """Names of the CUDA devices, queried from the driver, since importing torch takes seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    names = []
    for ordinal in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(device), ordinal)
        driver.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode(errors="replace"))
    return tuple(names)


def gpu_architecture() -> str | None:
    """Compute capability of the first CUDA device, such as `sm_90`, or None."""
    if not gpus():
        return None
    driver, device, major, minor = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # ... _MINOR
    return f"sm_{major.value}{minor.value}"


def driver_version() -> str | None:
    """Version of the NVIDIA driver, or None."""
    try:
        management = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    version = ctypes.create_string_buffer(80)
    if management.nvmlInit_v2() != 0 or management.nvmlSystemGetDriverVersion(version, len(version)) != 0:
        return None
    return version.value.decode(errors="replace")


def describe() -> dict[str, object]:
    """The hardware and system of a measurement, as JSON values."""
    facts: dict[str, object] = {
        "cpu": cpu(),
        "cores": cores(),
        "instruction_sets": list(instruction_sets()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if gpus():
        facts |= {"gpus": list(gpus()), "gpu_architecture": gpu_architecture(), "driver": driver_version()}
    return facts
