"""Reference answers of the checkpoint, sealed into an artifact: answer texts, and logits on a few probes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qabuild.errors import UntrustedInput

FOLDER = "reference"
ANSWERS = "answers.json"
PROBES = "probes.safetensors"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One batch of inputs, described by what the tokenizer makes it of."""

    rows: Sequence[Sequence[str]]
    """Question ids of each row: the question of the first, and the contexts of all, joined."""
    length: int
    """Maximum tokens of a row."""
    padded: bool
    """Whether every row is padded to `length`, or to the longest row."""
    vocabulary: bool = False
    """Whether the tokens of the text are replaced by tokens from the entire vocabulary, at regular intervals."""


_FIRST_PROBES = ((48, False), (128, False), (384, True), (224, False))
"""Length and padding of the probes of qabuild 0.1.0, which sealed the question ids alone."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The sealed answers, and the data they belong to."""

    answers: Mapping[str, str]
    """Answer text by question id, in the order of the questions."""
    data: Mapping[str, Any]
    """dataset, configuration, revision, split, samples, seed, fingerprint, unanswerable"""
    probes: tuple[Probe, ...]


def read(directory: Path) -> Reference:
    """The reference in `directory`, whose files must have been checked against the manifest before.

    Raises UntrustedInput where it cannot be read.
    """
    path = directory / ANSWERS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Reference(
            answers=document["answers"],
            data=document["data"],
            probes=tuple(_probe(number, probe) for number, probe in enumerate(document["probes"])),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UntrustedInput(f"{path}: not a reference: {error}", "build the artifact again") from None


def _probe(number: int, document: Any) -> Probe:
    if isinstance(document, dict):
        return Probe(**document)
    length, padded = _FIRST_PROBES[number]
    return Probe(rows=[[name] for name in document], length=length, padded=padded)


def write_probes(directory: Path, probes: Sequence[Mapping[str, Any]]) -> None:
    """Write the tensors of each probe, see `read_probes`. Integers are stored in 32 bits, as half the bytes."""
    import torch
    from safetensors.torch import save

    tensors = {
        f"{number}.{name}": tensor.cpu().to(torch.int32 if tensor.dtype == torch.int64 else tensor.dtype).contiguous()
        for number, probe in enumerate(probes)
        for name, tensor in probe.items()
    }
    (directory / PROBES).write_bytes(save(tensors))  # not `save_file`, which makes the file readable by its owner only


def read_probes(directory: Path) -> list[dict[str, Any]]:
    """The tensors of each probe: the model's inputs, int64, and the checkpoint's `start_logits` and `end_logits`."""
    import torch
    from safetensors.torch import load_file

    probes: dict[int, dict[str, Any]] = defaultdict(dict)
    for key, tensor in load_file(directory / PROBES).items():
        number, name = key.split(".", 1)
        probes[int(number)][name] = tensor if tensor.is_floating_point() else tensor.to(torch.int64)
    return [probes[number] for number in sorted(probes)]
