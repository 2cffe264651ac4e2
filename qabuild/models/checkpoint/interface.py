"""What a checkpoint's model takes and gives: how many tokens, which token types, which outputs.

A config may say more than that, or something else: of the task that the model had before, or of what a script printed.
Its author's tokenizer may know no limit of the model, or give token types that the model lacks. Imports neither torch
nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

COUNTED_FROM_PADDING = (
    *("camembert", "data2vec-text", "ibert", "longformer", "roberta", "roberta-prelayernorm", "xlm-roberta"),
    "xlm-roberta-xl",
)
"""Model types that number positions from `pad_token_id` + 1, so that the first positions hold no token."""
LEAST_TOKENS = 32
"""Tokens of the shortest window that holds a question, special tokens, and some of a context."""

FORCED: Mapping[str, Any] = {
    "return_dict": True,
    "torchscript": False,  # transformers 4.57 returns tuples with it
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,  # others save memory, and refuse lengths that are no multiple
}
"""Keys of a config with the values that make a model return its logits by name, for any length, and nothing else."""
LABELS = 2
"""Outputs of the head for each token: a start logit and an end logit."""
_OF_LABELS = ("num_labels", "id2label", "label2id")


def forced(config: Any) -> dict[str, Any]:
    """The attributes to set in transformers' `config` of an extractive question-answering model."""
    return {"num_labels": LABELS, **{key: value for key, value in FORCED.items() if hasattr(config, key)}}


def forced_content(content: Mapping[str, Any], class_name: str) -> dict[str, Any]:
    """The content of config.json with what `forced` changes, and the model's class where it names none."""
    changed = {**content, **{key: value for key, value in FORCED.items() if content.get(key, value) != value}}
    names = content.get("id2label")
    if content.get("num_labels", LABELS) != LABELS or (isinstance(names, dict) and len(names) != LABELS):
        changed = {key: value for key, value in changed.items() if key not in _OF_LABELS}
    if not content.get("architectures"):
        changed["architectures"] = [class_name]
    return changed


def positions(config: Any) -> int | None:
    """The maximum number of tokens of a row, by transformers' `config`; None where it states none.

    Models with rotary or relative positions could read more, but some backends fix what the config states.
    """
    count: int | None = getattr(config, "max_position_embeddings", None)
    if count is None:
        return None
    if config.model_type in COUNTED_FROM_PADDING:
        return count - 1 - int(config.pad_token_id)
    return count - 2 if config.model_type == "mpnet" else count


def stated_positions(content: Mapping[str, Any]) -> int | None:
    """The same by the content of config.json; None also where that leaves it to transformers' defaults."""
    names = ("max_position_embeddings", "pad_token_id")
    numbers = {name: content[name] for name in names if isinstance(content.get(name), int)}
    if content.get("model_type") in COUNTED_FROM_PADDING and "pad_token_id" not in numbers:
        return None
    return positions(SimpleNamespace(model_type=content.get("model_type"), **numbers))


def fitting(tokenizer: Any, config: Any) -> dict[str, Any]:
    """The attributes to set in `tokenizer` so that it gives the model no more than that takes.

    A tokenizer with token types that the model has no embedding for was not what gave it token types in training.
    """
    limit, types = positions(config), getattr(config, "type_vocab_size", None)
    names, settings = tokenizer.model_input_names, dict[str, Any]()
    if limit is not None and tokenizer.model_max_length > limit:
        settings["model_max_length"] = limit
    if types and "token_type_ids" in names:
        pair = tokenizer("a", "a", return_token_type_ids=True)
        if max(pair["token_type_ids"]) >= types:
            settings["model_input_names"] = [name for name in names if name != "token_type_ids"]
    return settings
