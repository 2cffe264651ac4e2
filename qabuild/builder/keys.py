"""Keys: one digest over everything that decides the result of a step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from qabuild.system.packages import distributions

Inputs = Mapping[str, Any]
"""Everything that decides a step's result, as flat `name: JSON value` pairs; `UNKNOWN` for what is not known yet."""


class _Unknown:
    """The digest of something that a Hub id, not resolved yet, stands for."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()


def step_key(inputs: Inputs) -> str:
    """The key of a step: the digest of its inputs, all of which must be known."""
    return json_digest(inputs)


def json_digest(document: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of canonical JSON."""
    text = json.dumps(dict(document), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_known(inputs: Inputs) -> bool:
    """Whether all that decides the step is known."""
    return not any(value is UNKNOWN for value in inputs.values())


def key_or_unknown(inputs: Inputs) -> str | _Unknown:
    """The key of a step that another one follows."""
    return step_key(inputs) if is_known(inputs) else UNKNOWN


def flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables as flat pairs, with dotted names that begin with `prefix`."""
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        pairs |= flat(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return pairs


def package_inputs(versions: Mapping[str, str], packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that takes part, by the name it is installed under."""
    names = {name for package in packages for name in distributions(package)}
    return {f"package {name}": versions[name] for name in sorted(names) if name in versions}


def package_versions(inputs: Inputs) -> dict[str, str]:
    """The packages among what decides a step, and their versions: what `package_inputs` put there."""
    return {name.removeprefix("package "): v for name, v in inputs.items() if name.startswith("package ")}
