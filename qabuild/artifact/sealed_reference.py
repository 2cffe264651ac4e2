"""What the checkpoint answers, as it is sealed into an artifact: text of each answer, and logits on a few probes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qabuild.errors import UntrustedInput

FOLDER = "reference"


ANSWERS = "answers.json"


PROBES = "probes.safetensors"


# (questions, most tokens, padded to that length). Several batch sizes and lengths, with padding and without: a graph
# that was traced for one shape, or a mask that overflows, shows itself on another.
PROBE_SHAPES: tuple[tuple[int, int, bool], ...] = ((1, 48, False), (3, 128, False), (2, 384, True), (5, 224, False))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The sealed answers, and what they are answers to."""

    answers: Mapping[str, str]
    """Text by question id, in the order asked."""
    data: Mapping[str, Any]
    """dataset, revision, split, samples, seed, fingerprint, unanswerable"""
    probes: tuple[tuple[str, ...], ...]
    """Ids of the questions of each probe."""


def read(directory: Path) -> Reference:
    """The reference that `make` wrote. The files must have been held against the manifest before."""
    path = directory / ANSWERS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Reference(
            answers=document["answers"], data=document["data"], probes=tuple(tuple(ids) for ids in document["probes"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UntrustedInput(f"{path}: not a reference: {error}", "build the artifact again") from None


def read_probes(directory: Path) -> list[dict[str, Any]]:
    """The tensors of each probe: the model's inputs, and the checkpoint's `start_logits` and `end_logits`."""
    from safetensors.torch import load_file

    probes: list[dict[str, Any]] = [{} for _ in PROBE_SHAPES]
    for key, tensor in load_file(directory / PROBES).items():
        number, name = key.split(".", 1)
        probes[int(number)][name] = tensor
    return probes
