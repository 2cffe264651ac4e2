"""Speeds that were measured on this machine: they say more than what is expected of its processor.

They lie in the cache, never in the package or an artifact, and count for this processor and this version of the runtime
only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qabuild.models.backends import BACKENDS, backend
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system import documents, files, machine, packages, user_folders
from qabuild.system.cache import LAYOUT


@dataclass(frozen=True, kw_only=True)
class MeasuredSpeed:
    """Questions/s of an artifact over those of its checkpoint in eager fp32, in the same rounds."""

    __pydantic_config__ = documents.CLOSED

    backend: str
    dtype: Dtype
    variant: Mapping[str, Any]
    """The backend's options that differ from its defaults."""
    device: str
    speedup: float
    checkpoint: str
    """Its name, for messages."""
    measured_at: str
    """UTC, ISO 8601."""

    @property
    def label(self) -> str:
        options = "".join(f", {key} = {value}" for key, value in self.variant.items())
        return f"{self.dtype} with {self.backend}{options}"


def remember(speeds: Sequence[MeasuredSpeed]) -> None:
    """Keep them for this machine; an earlier one of the same backend, dtype and options is replaced."""
    if not speeds:
        return
    conditions = _conditions()
    kept = [entry for entry in _read() if not _is_replaced(entry, conditions, speeds)]
    new = [{"conditions": conditions[speed.backend], "speed": asdict(speed)} for speed in speeds]
    _path().parent.mkdir(parents=True, exist_ok=True)
    files.write(_path(), json.dumps([*kept, *new], indent=1).encode())


def recall(device: str) -> list[MeasuredSpeed]:
    """What was measured under the present conditions, fastest first."""
    conditions = _conditions()
    found = [speed for entry in _read() if (speed := _speed(entry, conditions)) and speed.device == device]
    return sorted(found, key=lambda speed: -speed.speedup)


def find(name: str, runtime: Runtime, variant: Mapping[str, Any]) -> MeasuredSpeed | None:
    """What was measured of the backend `name`, with options that differ from its defaults in `variant`."""
    wanted = (name, runtime.dtype, dict(variant))
    return next((s for s in recall(runtime.device) if (s.backend, s.dtype, dict(s.variant)) == wanted), None)


def variant_of(options: Any, dtype: Dtype) -> dict[str, Any]:
    """How the options of a backend differ from its defaults, of those that decide its speed."""
    module = backend(options.name)
    tried = {key for variant in module.VARIANTS.get(dtype, ()) for key in variant}
    defaults = module.Options()
    return {key: getattr(options, key) for key in tried if getattr(options, key) != getattr(defaults, key)}


def _speed(entry: Any, conditions: Mapping[str, Any]) -> MeasuredSpeed | None:
    """The speed of an entry; None where it was measured under other conditions, or is none."""
    try:
        speed = documents.typed(MeasuredSpeed, entry["speed"])
        return speed if entry["conditions"] == conditions[speed.backend] else None
    except (KeyError, TypeError, ValueError):  # of another version of qabuild, or damaged
        return None


def _is_replaced(entry: Any, conditions: Mapping[str, Any], by: Sequence[MeasuredSpeed]) -> bool:
    old = _speed(entry, conditions)
    return old is not None and any(
        (old.backend, old.dtype, old.variant, old.device) == (new.backend, new.dtype, new.variant, new.device)
        for new in by
    )


def _conditions() -> dict[str, Any]:
    """By backend, what its speed depends on beside the model: hardware and versions."""
    hardware = {
        "cpu": machine.cpu(),
        "cores": machine.cores(),
        "instruction_sets": list(machine.instruction_sets()),
        "gpus": list(machine.gpus()),
    }
    return {name: {**hardware, **packages.versions([backend(name).RUNTIME[1]])} for name in BACKENDS}


def _path() -> Path:
    return user_folders.cache() / LAYOUT / "speeds.json"


def _read() -> list[Any]:
    try:
        document = documents.read_json(files.read(_path()))
    except (OSError, ValueError):
        return []
    return document if isinstance(document, list) else []
