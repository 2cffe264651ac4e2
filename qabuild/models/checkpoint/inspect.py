"""Inspects the config and tokenizer files of a checkpoint before anything is deserialised.

This module does not import transformers. An error names the file and the place in it. What only a loaded model or
tokenizer can show (missing weights, NaN values) is left to `load_model` and `load_tokenizer` of `checkpoint.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.checkpoint.interface import COUNTED_FROM_PADDING
from qabuild.system import documents, files

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_VOCABULARIES = (TOKENIZER, "vocab.json")
GENERIC_CLASS = "TokenizersBackend"
"""The `tokenizer_class` that transformers 5 writes for a fast tokenizer without a class of its own."""

TOKENIZER_PATTERNS = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
"""Glob patterns of the files that a tokenizer may consist of."""

_CODE_KEYS = ("auto_map", "custom_pipelines", "_attn_implementation", "_attn_implementation_internal")
"""Keys that make transformers import modules of a repository, or download kernels from the Hub."""
_CODE_KEYS_BUT: dict[str, tuple[Any, ...]] = {
    # In a nested config, it reaches the same loader as the last two of `_CODE_KEYS`.
    "attn_implementation": (None, "eager", "sdpa"),
    # transformers would read another config than the one that is inspected here.
    "configuration_files": (None, [], [CONFIG]),
}
"""Such keys that have harmless values."""

_REPEATED = (
    *("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_hidden_groups", "inner_group_num"),
    *("num_feedforward_networks", "num_labels"),
)
_MOST_REPEATED = 1000
"""Limit of these numbers in a config: transformers makes that many objects before it compares them with the weights."""

_ENCODER_DECODERS = ("bart", "bigbird_pegasus", "led", "mbart", "mt5", "mvp", "t5", "umt5")
_DECODERS = (
    *("arcee", "bloom", "diffllama", "exaone4", "falcon", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "minimax"),
    *("ministral", "mistral", "mixtral", "mpt", "nemotron", "opt", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
    *("qwen3_next", "seed_oss", "smollm3"),
)
_NOT_TEXT_ONLY = ("layoutlm", "layoutlmv2", "layoutlmv3", "lilt", "lxmert", "markuplm")

_DAMAGED = "the file is damaged: download the checkpoint again"

_MAKE_TOKENIZER = (
    "make one where you trust the source: AutoTokenizer.from_pretrained(SOURCE, use_fast=True).save_pretrained(FOLDER)"
)


def examine_config(directory: Path) -> Mapping[str, Any]:
    """Read config.json and check that it is safe to load and that the architecture is a text encoder.

    Raises UntrustedInput if it is missing, damaged or makes transformers run code; BadTarget if it is no text encoder.
    """
    if own_file(directory, CONFIG) is None:
        raise UntrustedInput(
            f"{directory}: there is no {CONFIG} in it",
            "name the folder that `save_pretrained` wrote, with its config, weights and tokenizer",
        )
    config = read_object(directory, CONFIG)
    _refuse_code(config, directory / CONFIG)
    _refuse_architecture(config, directory)
    _refuse_endless(config, directory / CONFIG)
    if config["model_type"] in COUNTED_FROM_PADDING and config.get("pad_token_id", 0) is None:
        raise UntrustedInput(
            f"{directory / CONFIG}: pad_token_id is null, and a {config['model_type']!r} counts its positions from it",
            "state the id that the model was trained with: 1 in RoBERTa and its kin, unless it was changed",
        )
    return config


def refuse_code(directory: Path, names: Iterable[str]) -> None:
    """Check those of the files `names` that transformers may read as settings: JSON files directly in the folder.

    A vocabulary is not among them: the tokenizers' library reads it, and `examine_tokenizer` checks it. Raises
    UntrustedInput if one cannot be read or makes transformers run code.
    """
    for name in names:
        if name.endswith(".json") and "/" not in name and name not in _VOCABULARIES:
            _refuse_code(read_object(directory, name), directory / name)


def tokenizer_files(directory: Path) -> tuple[str, ...]:
    """The names of the tokenizer's files in the folder, sorted.

    Raises UntrustedInput if they do not suffice for a fast tokenizer.
    """
    names = sorted({path.name for pattern in TOKENIZER_PATTERNS for path in directory.glob(pattern)})
    names = [name for name in names if own_file(directory, name) is not None]
    # A fast tokenizer is read from tokenizer.json or converted from the files of a slow one.
    complete = (
        TOKENIZER in names
        or "vocab.txt" in names
        or {"vocab.json", "merges.txt"} <= set(names)
        or any(name.endswith(".model") for name in names)
    )
    if not complete:
        raise UntrustedInput(f"{directory}: there is no tokenizer in it ({TOKENIZER})", _MAKE_TOKENIZER)
    return tuple(names)


def tokenizer_packages(directory: Path) -> tuple[str, ...]:
    """The distributions, beside transformers, that reading the folder's tokenizer takes: those of SentencePiece."""
    names = tokenizer_files(directory)
    converted = TOKENIZER not in names and "vocab.txt" not in names and not {"vocab.json", "merges.txt"} <= set(names)
    return ("sentencepiece", "protobuf") if converted else ()


def examine_tokenizer(directory: Path, rows: int | None) -> tuple[str, ...]:
    """Check the tokenizer's files and return their names.

    `rows`: the number of rows of the word embedding; None if unknown. Raises UntrustedInput if the files make
    transformers run code or read other files, or if a token id is `rows` or greater.
    """
    names = tokenizer_files(directory)
    contents = {name: read_object(directory, name) for name in names if name.endswith(".json")}
    for name, content in contents.items():
        _refuse_code(content, directory / name)
        if name == TOKENIZER_CONFIG:
            _refuse_other_files(content, directory)
            _refuse_no_length(content, directory)
    if rows is not None:
        refuse_ids_beyond(directory, _vocabulary(directory, names, contents), rows)
    return names


def refuse_ids_beyond(directory: Path, vocabulary: Mapping[str, int], rows: int) -> None:
    """Raise UntrustedInput if a token's id has no row in the word embedding, which has `rows` of them."""
    beyond = {token: number for token, number in vocabulary.items() if not 0 <= number < rows}
    if beyond:
        token, number = min(beyond.items(), key=lambda item: item[1])
        raise UntrustedInput(
            f"{directory}: {len(beyond)} tokens of the tokenizer have ids outside the {rows} rows of the model's word "
            f"embedding, {token!r} ({number}) among them",
            "this tokenizer belongs to another checkpoint: take the one that the model was trained with",
        )


def own_file(directory: Path, name: str) -> Path | None:
    """The path of a regular file in the folder; None if there is none.

    A symlink may lead only into the folder itself or, in the Hub's cache, to the blobs of the same repository: the
    target of any other link would be read here and published later. Raises UntrustedInput for such a link.
    """
    path = directory / name
    if not path.is_file():
        return None
    root = directory.resolve()
    target = path.resolve()
    blobs = root.parent.parent / "blobs"
    if target.is_relative_to(root) or (root.parent.name == "snapshots" and target.is_relative_to(blobs)):
        return path
    raise UntrustedInput(f"{path}: is a link that leads out of its folder", f"copy the file here: it is {target}")


def read_object(directory: Path, name: str) -> dict[str, Any]:
    """Read the JSON object in a file of the folder. Raises UntrustedInput if it cannot be read or is no JSON object."""
    path = directory / name
    try:
        value = documents.read_json(files.read(path))
    except OSError as error:
        raise UntrustedInput(f"{path}: cannot be read ({error.strerror})", "download the checkpoint again") from error
    except ValueError as error:
        raise UntrustedInput(
            f"{path}: not JSON ({error})", "the file is damaged: download the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise UntrustedInput(f"{path}: holds no JSON object", _DAMAGED)
    return value


def _refuse_code(content: Mapping[str, Any], path: Path) -> None:
    """Refuse keys, at any depth of the file, that make transformers download and run code."""
    unsafe = [
        f"{place}.{key}".removeprefix(".")
        for place, members in _objects(content)
        for key in (*_CODE_KEYS, *_CODE_KEYS_BUT)
        if key in members and members[key] not in _CODE_KEYS_BUT.get(key, ())
    ]
    if unsafe:
        raise UntrustedInput(
            f"{path}: {', '.join(unsafe[:5])} can make transformers run code of others",
            "take a checkpoint without it; if you trust this one, save it from its own class and remove the key",
        )


def _objects(root: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object nested in a JSON value, with its path.

    Scalar members are skipped without a push: a vocabulary has one for each token.
    """
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, dict):
            yield place, value
            for key, inner in value.items():
                if isinstance(inner, dict | list):
                    shown = key if key.isidentifier() else repr(key)
                    stack.append((f"{place}.{shown}".removeprefix("."), inner))
        else:
            stack += [
                (f"{place}[{index}]", inner) for index, inner in enumerate(value) if isinstance(inner, dict | list)
            ]


def _refuse_architecture(config: Mapping[str, Any], directory: Path) -> None:
    """Refuse model types that are no encoder for extractive answers; unknown types are left to transformers."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UntrustedInput(
            f"{directory / CONFIG}: names no model_type", "download the checkpoint again, or save it with transformers"
        )
    for problem, applies in (
        ("is an encoder-decoder", config.get("is_encoder_decoder") or model_type in _ENCODER_DECODERS),
        ("is a decoder", config.get("is_decoder") or model_type in _DECODERS),
        ("reads more than text", model_type in _NOT_TEXT_ONLY),
        ("is quantised", config.get("quantization_config")),
        ("is a PEFT adapter, not a whole model", (directory / "adapter_config.json").exists()),
    ):
        if applies:
            raise BadTarget(
                f"{directory}: this checkpoint ({model_type!r}) {problem}",
                "name a plain text encoder fine-tuned for extractive question answering, such as a BERT or RoBERTa",
            )


def _refuse_endless(config: Mapping[str, Any], path: Path) -> None:
    for place, members in _objects(config):
        for key in _REPEATED:
            if isinstance(number := members.get(key), int | float) and number > _MOST_REPEATED:
                raise UntrustedInput(f"{path}: {f'{place}.{key}'.removeprefix('.')} is {number:g}", _DAMAGED)


def _refuse_other_files(config: Mapping[str, Any], directory: Path) -> None:
    """Refuse a tokenizer config that names files other than those examined and hashed."""
    foreign = [
        key
        for key, value in config.items()
        if key.endswith("_file") and isinstance(value, str) and _is_elsewhere(value, directory)
    ]
    versioned = config.get("fast_tokenizer_files") not in (None, [], [TOKENIZER])
    if foreign or versioned:
        raise UntrustedInput(
            f"{directory / TOKENIZER_CONFIG}: {', '.join(foreign or ['fast_tokenizer_files'])} leads to a tokenizer "
            f"file other than those of this folder",
            "remove the key, and keep the tokenizer in the folder itself",
        )


def _refuse_no_length(config: Mapping[str, Any], directory: Path) -> None:
    """Refuse a limit that is no number of tokens; transformers writes 1e30 where it knows none."""
    limit = config.get("model_max_length")
    if limit is not None and (type(limit) not in (int, float) or limit < 1):
        raise UntrustedInput(
            f"{directory / TOKENIZER_CONFIG}: model_max_length is {limit!r}, which is no number of tokens",
            "correct it, or remove the key: config.json states how many tokens the model reads",
        )


def _is_elsewhere(name: str, directory: Path) -> bool:
    """Whether `name` is an existing file outside the folder.

    Paths of the author's machine are often left in these files; they are harmless if nothing exists there.
    """
    try:
        path = Path(os.path.expanduser(name))
        return path.is_file() and not path.resolve().is_relative_to(directory.resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _vocabulary(directory: Path, names: Sequence[str], contents: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Token ids by token, as far as they can be read without a tokenizer library. `contents`: the parsed JSON files."""
    vocabulary: dict[str, int] = {}
    if TOKENIZER in names:
        vocabulary = _vocabulary_of(contents[TOKENIZER], directory / TOKENIZER)
    elif "vocab.json" in names:
        vocabulary = _integers(contents["vocab.json"])
    elif "vocab.txt" in names:
        lines = files.read(directory / "vocab.txt").splitlines()
        vocabulary = {line.decode(errors="replace"): number for number, line in enumerate(lines)}
    return vocabulary | _integers(contents.get("added_tokens.json", {}))


def _vocabulary_of(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The vocabulary in a tokenizer.json: an object with ids (BPE, WordPiece) or a list of pieces (Unigram)."""
    model, added = content.get("model"), content.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        vocabulary = _integers(vocab)
    elif isinstance(vocab, list):
        vocabulary = {str(piece): number for number, piece in enumerate(vocab)}
    else:
        raise UntrustedInput(f"{path}: holds no vocabulary", _MAKE_TOKENIZER)
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return vocabulary | _integers({str(token.get("content")): token.get("id") for token in tokens})


def _integers(vocabulary: Mapping[str, Any]) -> dict[str, int]:
    return {token: number for token, number in vocabulary.items() if type(number) is int}
