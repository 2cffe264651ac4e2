"""Reads the safetensors headers in a checkpoint's folder: which files, which tensors, which shapes.

A header is eight bytes of length, then JSON with each tensor's dtype, shape and data offsets
(https://huggingface.co/docs/safetensors, 'Format'). The data is not read, and pickle is never opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from qabuild.errors import UntrustedInput
from qabuild.models.checkpoint.inspect import own_file, read_object
from qabuild.models.checkpoint.interface import LABELS
from qabuild.system import documents, files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PATTERNS = ("model*.safetensors", INDEX)
"""Glob patterns of the weights and their index on the Hub."""

_LARGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_LFS_POINTER = b"version https://git-lfs"
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".ot", ".onnx", ".gguf")
_FETCH = "the file is damaged or incomplete: download the checkpoint again"

_HEADS = {"big_bird": "qa_classifier.", "modernbert": "classifier.", "splinter": "splinter_qass."}
_HEAD = "qa_outputs."  # of all other architectures
_OUTPUTS = {"qa_classifier.": "qa_classifier.qa_outputs."}
"""The last layer of heads of several."""
_OTHER_LAYERS = ("splinter_qass.",)
"""Heads that compare tokens with the question's, and have no layer with an output for each logit."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """`files`: names in the folder, including the index of shards; `shapes`: the shape of each tensor, by name."""

    files: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def embedding_rows(self) -> int | None:
        """The number of rows of the word embedding; None unless exactly one tensor has its name."""
        rows = [shape[0] for name, shape in self.shapes.items() if name.endswith("word_embeddings.weight") and shape]
        return rows[0] if len(rows) == 1 else None


def examine_weights(directory: Path, other_files: Sequence[str] = ()) -> Weights:
    """Read the headers of the folder's weights, found as transformers finds them: one file, or shards by their index.

    `other_files`: files of the same checkpoint that are not in the folder; the message names them if there are no
    safetensors. Raises UntrustedInput if there are none, or if they are damaged.
    """
    if own_file(directory, WEIGHTS) is not None:
        return Weights(files=(WEIGHTS,), shapes=_header(directory, WEIGHTS))
    if own_file(directory, INDEX) is not None:
        return _sharded(directory)
    raise _no_safetensors(directory, other_files)


def refuse_headless(weights: Weights, config: Mapping[str, Any], directory: Path) -> None:
    """Raise UntrustedInput if the architecture's question-answering head is missing, or is that of another task."""
    head, architectures = head_of(config), config.get("architectures")
    saved_as = [str(name) for name in architectures] if isinstance(architectures, list) else []
    # The heads of other tasks have the same names there.
    shared = head == "classifier." and saved_as and not any("QuestionAnswering" in name for name in saved_as)
    if shared or not any(name.startswith(head) or f".{head}" in name for name in weights.shapes):
        raise UntrustedInput(
            f"{directory}: this checkpoint has no question-answering head: "
            + ("" if shared else f"no weights '{head}*' ")
            + f"(it was saved as {', '.join(map(repr, saved_as)) or 'a model without a head'})",
            "a newly initialised head answers at random: name a checkpoint fine-tuned on SQuAD or similar data",
        )
    if head not in _OTHER_LAYERS:
        _refuse_other_outputs(weights, _OUTPUTS.get(head, head), directory)


def _refuse_other_outputs(weights: Weights, layer: str, directory: Path) -> None:
    """Refuse a head whose last layer does not give a start and an end logit for each token."""
    found = {kind: _ending(weights.shapes, f"{layer}{kind}") for kind in ("weight", "bias")}
    if all(shape and shape[0] == LABELS for shape in found.values()):
        return
    shapes = " and ".join(
        f"'{layer}{kind}' {'is missing' if shape is None else f'has shape {list(shape)}'}"
        for kind, shape in found.items()
    )
    raise UntrustedInput(
        f"{directory}: its head is none of extractive question answering, which gives {LABELS} logits for each token, "
        f"start and end: {shapes}",
        "it was trained for another task: name a checkpoint fine-tuned on SQuAD or similar data, or fine-tune this one "
        "with a table [train]",
    )


def _ending(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    return next((shape for key, shape in shapes.items() if key == name or key.endswith(f".{name}")), None)


def head_of(config: Mapping[str, Any]) -> str:
    """The prefix of the weight names of the architecture's question-answering head."""
    return _HEADS.get(config["model_type"], _HEAD)


def _no_safetensors(directory: Path, other_files: Sequence[str]) -> UntrustedInput:
    names = sorted({*other_files, *(path.name for path in directory.iterdir())})
    others = [name for name in names if name.endswith(_OTHER_FORMATS)]
    if not others:
        return UntrustedInput(
            f"{directory}: there are no weights in it ({WEIGHTS})",
            "name the folder or repository that `save_pretrained` wrote, with its config, weights and tokenizer",
        )
    return UntrustedInput(
        f"{directory}: the weights are not in safetensors, only in {', '.join(others[:3])}, and pickle can run code",
        "if you trust the source, convert: AutoModelForQuestionAnswering.from_pretrained(SOURCE)"
        ".save_pretrained(FOLDER, safe_serialization=True), and the tokenizer likewise",
    )


def _sharded(directory: Path) -> Weights:
    """Read the headers of all shards, and check that they hold every tensor of the index."""
    index = directory / INDEX
    weight_map = read_object(directory, INDEX).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(shard, str) for shard in weight_map.values())
    ):
        raise UntrustedInput(f"{index}: has no weight_map from tensors to files", _FETCH)
    shapes: dict[str, tuple[int, ...]] = {}
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard != PurePosixPath(shard).name or "\\" in shard or not shard.endswith(".safetensors"):
            raise UntrustedInput(f"{index}: {shard!r} is no plain name of a safetensors file", _FETCH)
        if own_file(directory, shard) is None:
            raise UntrustedInput(f"{directory}: the shard {shard!r} that {INDEX} names is missing", _FETCH)
        shapes |= _header(directory, shard)
    if missing := sorted(set(weight_map) - set(shapes)):
        raise UntrustedInput(
            f"{index}: names {len(missing)} tensors that are in no shard, {missing[0]!r} among them", _FETCH
        )
    return Weights(files=(INDEX, *shards), shapes=shapes)


def _header(directory: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes in a safetensors file, and check its size against its header."""
    path = directory / name
    size = path.stat().st_size
    with files.opened(path) as file:
        start = file.read(8)
        if (start + file.read(len(_LFS_POINTER) - 8)) == _LFS_POINTER:
            raise UntrustedInput(
                f"{path}: is a Git LFS pointer, not the weights",
                "run `git lfs pull` in the repository, or download again",
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise UntrustedInput(f"{path}: not a safetensors file, or cut off in its header ({size} bytes)", _FETCH)
        file.seek(8)
        text = file.read(length)
    try:
        tensors = {name: entry for name, entry in documents.read_json(text).items() if name != "__metadata__"}
        shapes = {name: _shape(entry) for name, entry in tensors.items()}
        end = max((_end(entry) for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedInput(f"{path}: its safetensors header makes no sense ({error})", _FETCH) from error
    if size != 8 + length + end:
        state = "cut off" if size < 8 + length + end else "too long"
        raise UntrustedInput(f"{path}: is {state}: {size} bytes, and its header says {8 + length + end}", _FETCH)
    return shapes


def _shape(entry: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(entry["shape"])
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return shape


def _end(entry: Mapping[str, Any]) -> int:
    start, end = entry["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end:
        raise ValueError(f"data_offsets {start}, {end}")
    return end
