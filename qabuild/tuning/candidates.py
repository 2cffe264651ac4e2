"""The targets that a tuning tries: what the backends can make of the checkpoint, by what they say of themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qabuild.builder.requirements import missing
from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS, BASELINE, backend
from qabuild.models.calibration import Calibrated
from qabuild.models.capabilities import Rule
from qabuild.models.dtype_speed import expected, promise
from qabuild.models.runtime import Device, Dtype, Runtime
from qabuild.models.support import check
from qabuild.target.model import Target
from qabuild.target.read import load
from qabuild.target.write import write as write_target
from qabuild.tuning.start import FROM_ORIGINAL, Start

DTYPES: tuple[Dtype, ...] = ("fp32", "fp16", "bf16", "int8")
"""Simplest first: further left is closer to the checkpoint."""
PRUNED: Mapping[str, Mapping[str, float]] = {
    "ffn75": {"ffn": 0.75},
    "ffn65": {"ffn": 0.65},
    "ffn65-heads75": {"ffn": 0.65, "heads": 0.75},
    "ffn50": {"ffn": 0.5},
}
"""Widths that are tried, by what they are called in a candidate's name; those that cost the least F1 first."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A target that is tried."""

    name: str
    backend: str
    dtype: Dtype
    variant: Mapping[str, Any]
    """The backend's options that differ from its defaults."""
    pruned: Mapping[str, float]
    device: Device
    file: Path

    @property
    def expected(self) -> Rule | None:
        """What is expected of its speed on this machine."""
        return expected(Runtime(device=self.device, dtype=self.dtype), self.backend, self.variant)

    @property
    def simplicity(self) -> tuple[Any, ...]:
        """Less is simpler: to trust, to move to another machine, to understand."""
        options = backend(self.backend).Options.model_validate(dict(self.variant))
        native = bool(backend(self.backend).native_code(options))
        order = list(BACKENDS).index(self.backend)
        return (bool(self.pruned), native, DTYPES.index(self.dtype), len(self.variant), order)


def candidates(start: Start, folder: Path, backends: Collection[str] = ()) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates of those `backends`, or of all, and, by name, why others are left out.

    The target of each is in `folder`. The baseline comes first, since it tells how long the others take, then the
    likely fastest. Raises BadTarget where none is left.
    """
    tried: list[Candidate] = []
    left_out: dict[str, str] = {}
    for name, dtype, variant in _forms(start.device, backends or BACKENDS):
        candidate = _candidate(start, folder, name, dtype, variant, {})
        try:
            write(candidate, start)
            require(load(candidate.file), start)
        except BadTarget as error:
            left_out[candidate.name] = error.message.rpartition(": ")[2] if error.key else error.message
            candidate.file.unlink(missing_ok=True)
        else:
            tried.append(candidate)
    if not tried:
        reasons = sorted(set(left_out.values()))
        raise BadTarget(
            f"no backend takes {start.checkpoint.name}: " + "; ".join(reasons), "`qabuild doctor` shows what is missing"
        )
    return sorted(tried, key=_order), left_out


def _order(candidate: Candidate) -> tuple[Any, ...]:
    """Sorts the baseline first, then what promises the most speed, then what is simple."""
    group, rate = promise(candidate.expected)
    return ((candidate.backend, candidate.dtype) != (BASELINE, "fp32"), -group, -rate, candidate.simplicity)


def pruned(candidate: Candidate, start: Start, folder: Path) -> list[Candidate]:
    """The candidate's pruned siblings, those that cost the least F1 first."""
    several = [
        _candidate(start, folder, candidate.backend, candidate.dtype, candidate.variant, widths)
        for widths in PRUNED.values()
    ]
    for each in several:
        write(each, start)
    return several


def write(
    candidate: Candidate, start: Start, path: Path | None = None, description: str | None = None, header: str = ""
) -> None:
    """Write the candidate's target to its file, or to another `path`."""
    tables: dict[str, Any] = {**({"description": description} if description else {}), **start.tables}
    options = start.calibration if issubclass(backend(candidate.backend).Options, Calibrated) else {}
    calibrates = candidate.dtype == "int8"
    tables["backend"] = {"name": candidate.backend, **candidate.variant, **(options if calibrates else {})}
    tables["runtime"] = {"device": start.device, "dtype": candidate.dtype}
    if candidate.pruned:
        verify = tables["verify"]
        tables["prune"] = {**start.train, **candidate.pruned}
        gates = {FROM_ORIGINAL if key == start.drop_gate else key: limit for key, limit in verify["gates"].items()}
        tables["verify"] = {**verify, "gates": gates}
    write_target(tables, path or candidate.file, header)


def require(target: Target, start: Start) -> None:
    """Raise BadTarget where this machine or the backend cannot build the target."""
    if problems := missing(target):
        raise BadTarget("; ".join(problems))
    check(start.checkpoint.config, target.backend, target.runtime)


def _forms(device: str, backends: Collection[str]) -> Iterator[tuple[str, Dtype, Mapping[str, Any]]]:
    """Backend, dtype and options of everything that those backends offer on that device."""
    for name in backends:
        module = backend(name)
        for dtype in module.DTYPES.get(device, ()):
            for variant in ({}, *module.VARIANTS.get(dtype, ())):
                yield name, dtype, variant


def _candidate(
    start: Start, folder: Path, name: str, dtype: Dtype, variant: Mapping[str, Any], widths: Mapping[str, float]
) -> Candidate:
    words = [name.replace("_", "-"), dtype, *_words(variant)]
    words += [word for word, each in PRUNED.items() if each == widths]
    label = "-".join(words)
    return Candidate(
        name=label,
        backend=name,
        dtype=dtype,
        variant=variant,
        pruned=widths,
        device=start.device,
        file=folder / f"{label}.toml",
    )


def _words(variant: Mapping[str, Any]) -> Sequence[str]:
    words = [key if value is True else f"{key}-{value}" for key, value in variant.items()]
    return [word.replace("_", "-") for word in words]
