"""A first target for a checkpoint: its text, with a comment above each key that a user is likely to change."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from qabuild.errors import BadTarget
from qabuild.models.calibration import Calibrated
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.forms import Form
from qabuild.models.recommendation import recommended
from qabuild.models.runtime import Device
from qabuild.qa.data.dataset_ref import DatasetTable, require_source
from qabuild.system import files, hub, machine
from qabuild.target.gates import Gates
from qabuild.target.model import is_name
from qabuild.target.write import relative_to

DEFAULT_DATA: str = DatasetTable.model_fields["dataset"].default


def write(
    source: str,
    output: Path | None = None,
    *,
    data: str | None = None,
    device: Device | None = None,
    offline: bool = False,
) -> Path:
    """Write a target for the checkpoint `source`, which is resolved, and return its path.

    `output` is by default NAME.toml in the current folder; `data` names the questions of the verification. Raises
    BadTarget if the file exists, and what `resolve` raises.
    """
    if output:
        _require_free(output)
    data = data or (hub.SAMPLE if source == hub.SAMPLE else DEFAULT_DATA)
    require_source(data)
    checkpoint = resolve(source, offline=offline)
    path = output or Path(f"{name_of(checkpoint.name)}.toml")
    _require_free(path)
    ranking = recommended(checkpoint.config, device or ("cuda" if machine.gpus() else "cpu"))
    path.parent.mkdir(parents=True, exist_ok=True)
    model, questions = (_written(name, path.parent) for name in (source, data))
    files.write(path, text(path.stem, checkpoint.name, model, questions, ranking).encode())
    return path


def _require_free(path: Path) -> None:
    if not is_name(path.stem):
        raise BadTarget(
            f"{path}: {path.stem!r} cannot be the name of a target",
            "it has letters from a to z, digits, '.', '_' and '-', begins with a letter or a digit, and does not end "
            "in '.failed', as in --output mine.toml",
        )
    if path.suffix != ".toml":
        raise BadTarget(f"{path}: no .toml file", "a target is one, as in --output mine.toml")
    files.require_writable(path.parent, "the folder", "make it writable, or name another file with --output")
    if os.path.lexists(path):
        raise BadTarget(f"{path} exists and is not overwritten", "name another file with --output, or remove this one")


def name_of(checkpoint: str) -> str:
    """The name of a target for the checkpoint of that name."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.rpartition("/")[2]).lstrip("._-").rstrip("-")
    return re.sub(r"(\.failed)+$", "", words) or "checkpoint"


def _written(source: str, folder: Path) -> str:
    """`source` as a target in `folder` names it: a relative path is relative to the folder."""
    if not hub.is_path(source):
        return source
    path = Path(os.path.expanduser(source))
    files.require_native(path.absolute())
    return str(path) if path.is_absolute() else relative_to(folder, path.resolve())


def text(name: str, checkpoint: str, model: str, data: str, ranking: Sequence[Form]) -> str:
    """The TOML of the target `name`; `ranking` holds what can compile its checkpoint here, the choice last."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    choice = ranking[-1]
    options, runtime = choice.options, choice.runtime
    assert choice.expected is not None
    environment = Environment(
        loader=PackageLoader("qabuild", "target"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["toml"] = _toml
    return environment.get_template("scaffold.toml.jinja").render(
        description=f"{checkpoint} with {choice.backend} in {runtime.dtype} on {runtime.device}",
        model=model,
        model_on_hub=hub.is_id(model),
        backend=choice.backend,
        variant=choice.variant,
        others=dict.fromkeys(form.backend for form in ranking if form.backend != choice.backend),
        calibrated=isinstance(options, Calibrated) and options.calibrates(runtime),
        training=_training_data(model, data),
        device=runtime.device,
        dtype=runtime.dtype,
        why=choice.expected.why,
        data=data,
        min_f1_retention=Gates().min_f1_retention,
        repo=f"your-name/{name}",
    )


def _training_data(model: str, data: str) -> str:
    """The data set whose training split goes with the questions `data`; a file is one split, and names no other."""
    if not hub.is_path(data):
        return data
    return hub.SAMPLE if model == hub.SAMPLE else DEFAULT_DATA


def _toml(value: str | bool) -> str:
    """A basic string or a boolean: JSON's escapes are TOML's, but JSON leaves DEL as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
