"""Reference answers of the checkpoint, sealed into an artifact: answer texts, and logits on a few probes."""

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

# (questions, maximum tokens, padded to that length). Several batch sizes and lengths, with and without padding: a graph
# traced for one shape, or an overflowing mask, fails on another.
PROBE_SHAPES: tuple[tuple[int, int, bool], ...] = ((1, 48, False), (3, 128, False), (2, 384, True), (5, 224, False))


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The sealed answers, and the data they belong to."""

    answers: Mapping[str, str]
    """Answer text by question id, in the order of the questions."""
    data: Mapping[str, Any]
    """dataset, configuration, revision, split, samples, seed, fingerprint, unanswerable"""
    probes: tuple[tuple[str, ...], ...]
    """Question ids of each probe."""


def read(directory: Path) -> Reference:
    """The reference in `directory`, whose files must have been checked against the manifest before.

    Raises UntrustedInput where it cannot be read.
    """
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
        index, name = key.split(".", 1)
        probes[int(index)][name] = tensor
    return probes
