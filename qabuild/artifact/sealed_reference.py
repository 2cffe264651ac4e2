"""Reference answers of the checkpoint, sealed into an artifact: answer texts, and logits on a few probes.

An artifact whose checkpoint was trained may hold the same of the original, too: of the teacher or, without one, of the
checkpoint that the training started from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from pydantic import with_config
from typing_extensions import TypedDict

from qabuild.errors import UntrustedInput
from qabuild.system import documents
from qabuild.system.documents import Count

FOLDER = "reference"
ORIGINAL = "original"
ANSWERS = "answers.json"
PROBES = "probes.safetensors"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One batch of inputs, described by what the tokenizer makes it of."""

    __pydantic_config__ = documents.CLOSED

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


@with_config(documents.OPEN)
class Data(TypedDict):
    """The source of the questions."""

    dataset: str
    file: bool
    configuration: NotRequired[str | None]
    revision: str | None
    split: str | None
    samples: Count
    seed: int | None
    fingerprint: str
    shown: NotRequired[str]
    """How much is shown of the questions, see `disclosure`."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The sealed answers, and the data they belong to."""

    __pydantic_config__ = documents.CLOSED

    answers: Mapping[str, str]
    """Answer text by question id, in the order of the questions."""
    data: Data
    probes: tuple[Probe, ...]


def read(directory: Path) -> Reference:
    """The reference in `directory`, whose files must have been checked against the manifest before.

    Raises UntrustedInput where it cannot be read.
    """
    hint = "build the artifact again"
    document = documents.load(dict[str, Any], directory / ANSWERS, hint)
    probes = document.get("probes")
    if isinstance(probes, list):
        document["probes"] = [_described(number, probe) for number, probe in enumerate(probes)]
    try:
        return documents.typed(Reference, document)
    except ValueError as error:
        raise UntrustedInput(f"{directory / ANSWERS}: {error}", hint) from None


def _described(number: int, probe: Any) -> Any:
    """The JSON value of a probe; that of qabuild 0.1.0 was the list of its questions' ids."""
    if not isinstance(probe, list) or number >= len(_FIRST_PROBES):
        return probe
    length, padded = _FIRST_PROBES[number]
    return {"rows": [[name] for name in probe], "length": length, "padded": padded}


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
        probes[int(number)][name] = tensor.to(torch.int64) if tensor.dtype == torch.int32 else tensor
    return [probes[number] for number in sorted(probes)]
