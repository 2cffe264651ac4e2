"""What this machine is: processor, devices, installed packages. Looks, and changes nothing."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from qabuild.errors import MissingEnvironment

# Flags of /proc/cpuinfo that decide how fast low-precision kernels are, by the names people know them under.
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

# Packages that come with an extra, and how to get them.
INSTALL: dict[str, str] = {
    "deepspeed": "pip install 'qabuild[deepspeed]'",
    "onnx": "pip install 'qabuild[cpu]' or 'qabuild[gpu]'",
    "onnxruntime": "pip install 'qabuild[cpu]' or 'qabuild[gpu]'",
    "optimum": "pip install 'qabuild[cpu]' or 'qabuild[gpu]'",
    "optimum-onnx": "pip install 'qabuild[cpu]' or 'qabuild[gpu]'",
}


@functools.cache
def _cpuinfo() -> Mapping[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu() -> str:
    """Model name of the processor, with family and model where the name says little, as under some hypervisors."""
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    numbers = f" (family {info['cpu family']}, model {info['model']})" if "cpu family" in info else ""
    return name + numbers


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instruction_sets() -> tuple[str, ...]:
    """Those of `INSTRUCTION_SETS` that the processor has, by their usual names."""
    flags = set(_cpuinfo().get("flags", "").split())
    return tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags)


@functools.cache
def gpus() -> tuple[str, ...]:
    """Names of the CUDA devices, asked of the driver itself: importing torch for this would take seconds."""
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
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed version of each package; those that are not installed are left out.

    `onnxruntime` stands for whichever of onnxruntime and onnxruntime-gpu is there, under its own name.
    """
    found = {}
    for package in packages:
        for name in (package, "onnxruntime-gpu") if package == "onnxruntime" else (package,):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
    return dict(sorted(found.items()))


def require(packages: Iterable[str], device: str) -> None:
    """Raise MissingEnvironment unless the packages are installed and the device is there."""
    if lacks := missing(packages, device):
        raise MissingEnvironment("; ".join(lacks), "`qabuild doctor` shows what this machine can build and run")


def missing(packages: Iterable[str], device: str) -> list[str]:
    """What this machine lacks, each in a few words with its remedy; empty where nothing is missing."""
    packages = list(packages)
    installed = versions(packages)
    lacks = []
    for package in packages:
        if package not in installed and not (package == "onnxruntime" and "onnxruntime-gpu" in installed):
            lacks.append(f"{package} is not installed: {INSTALL.get(package, f'pip install {package}')}")
    if device == "cuda" and not gpus():
        lacks.append("no CUDA device here: build with --compile-only and verify where there is one")
    return lacks


def describe() -> dict[str, object]:
    """The conditions under which something was measured."""
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
