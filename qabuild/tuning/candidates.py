"""The targets that a tuning tries: what the backends can make of the checkpoint, by what they say of themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qabuild.builder.requirements import missing
from qabuild.errors import BadTarget
from qabuild.models.backends import BACKENDS, BASELINE, backend
from qabuild.models.calibration import Calibrated
from qabuild.models.dtype_speed import promise
from qabuild.models.forms import Form, forms
from qabuild.models.runtime import Dtype
from qabuild.models.support import check
from qabuild.target.model import Target
from qabuild.target.read import load
from qabuild.target.write import write as write_target
from qabuild.tuning.outputs import HEADER
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

    form: Form
    pruned: Mapping[str, float]
    """The keys of `[prune]` that say how much is kept; empty for the whole checkpoint."""
    file: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def calibrates(self) -> bool:
        return isinstance(self.form.options, Calibrated) and self.form.options.calibrates(self.form.runtime)

    @property
    def simplicity(self) -> tuple[Any, ...]:
        """Less is simpler: to trust, to move to another machine, to understand."""
        form = self.form
        native = bool(backend(form.backend).native_code(form.options))
        order = list(BACKENDS).index(form.backend)
        return (bool(self.pruned), native, DTYPES.index(form.runtime.dtype), len(form.variant), order)


def candidates(start: Start, folder: Path, backends: Collection[str] = ()) -> tuple[list[Candidate], dict[str, str]]:
    """The candidates of those `backends`, or of all, and, by name, why others are left out.

    The target of each is in `folder`. The baseline comes first, since it tells how long the others take, then the
    likely fastest. Raises BadTarget where none is left.
    """
    tried: list[Candidate] = []
    left_out: dict[str, str] = {}
    for form in forms(start.device, backends):
        candidate = Candidate(form=form, pruned={}, file=folder / f"{_name(form)}.toml")
        try:
            write(candidate, start)
            require(load(candidate.file), start)
        except BadTarget as error:
            # The target is one of many that the user did not write: its name and line say nothing.
            left_out[candidate.name] = re.sub(rf"^{re.escape(str(candidate.file))}(:\d+)?: ", "", error.message)
            candidate.file.unlink(missing_ok=True)
        else:
            tried.append(candidate)
    if not tried:
        reasons = sorted(set(left_out.values())) or [f"{', '.join(backends)} runs no model on {start.device}"]
        raise BadTarget(
            f"no backend takes {start.checkpoint.name}: " + "; ".join(reasons), "`qabuild doctor` shows what is missing"
        )
    return sorted(tried, key=_order), left_out


def _order(candidate: Candidate) -> tuple[Any, ...]:
    """Sorts the baseline first, then what promises the most speed, then what is simple."""
    form = candidate.form
    group, rate = promise(form.expected)
    return ((form.backend, form.runtime.dtype) != (BASELINE, "fp32"), -group, -rate, candidate.simplicity)


def pruned(candidate: Candidate, start: Start) -> list[Candidate]:
    """The candidate's pruned siblings, those that cost the least F1 first."""
    siblings = [
        Candidate(form=candidate.form, pruned=widths, file=candidate.file.with_name(f"{candidate.name}-{words}.toml"))
        for words, widths in PRUNED.items()
    ]
    for sibling in siblings:
        write(sibling, start)
    return siblings


def write(candidate: Candidate, start: Start, path: Path | None = None, description: str | None = None) -> None:
    """Write the candidate's target to its file, or to another `path`."""
    tables: dict[str, Any] = {**({"description": description} if description else {}), **start.tables}
    form = candidate.form
    tables["backend"] = {"name": form.backend, **form.variant, **(start.calibration if candidate.calibrates else {})}
    tables["runtime"] = {"device": form.runtime.device, "dtype": form.runtime.dtype}
    if candidate.pruned:
        verify = tables["verify"]
        tables["prune"] = {**start.train, **candidate.pruned}
        gates = {FROM_ORIGINAL if key == start.drop_gate else key: limit for key, limit in verify["gates"].items()}
        tables["verify"] = {**verify, "gates": gates}
    write_target(tables, path or candidate.file, HEADER, start.relative)


def require(target: Target, start: Start) -> None:
    """Raise BadTarget where this machine or the backend cannot build the target."""
    if problems := missing(target):
        raise BadTarget("; ".join(problems))
    check(start.checkpoint.config, target.backend, target.runtime)


def _name(form: Form) -> str:
    options = [key if value is True else f"{key}-{value}" for key, value in form.variant.items()]
    return "-".join([form.backend, form.runtime.dtype, *options]).replace("_", "-")
