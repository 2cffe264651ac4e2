"""Loads the model and the tokenizer of a resolved checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from qabuild.errors import UntrustedInput
from qabuild.models.checkpoint.inspect import (
    CONFIG,
    GENERIC_CLASS,
    TOKENIZER_CONFIG,
    examine_config,
    examine_tokenizer,
    own_file,
    read_object,
    refuse_ids_beyond,
)
from qabuild.models.checkpoint.resolve import (
    Checkpoint,
    _explained,
    _quiet,
    _refuse_fresh_weights,
    _refuse_non_finite_weights,
    _refuse_slow_class,
    _refuse_unmapped,
    _slow,
)
from qabuild.models.checkpoint.weights import examine_weights, head_of


def load_model(
    checkpoint: Checkpoint,
    *,
    attention: Literal["eager", "sdpa"] | None = None,
    fresh_head: bool = False,
    config: Any = None,
) -> Any:
    """Load the checkpoint as an `AutoModelForQuestionAnswering`: eager fp32 on the CPU, in eval mode.

    `attention` overrides transformers' choice of implementation, and `config` the checkpoint's own. With `fresh_head`,
    a checkpoint that has no question-answering head gets a random one, for training. Raises BadTarget for an
    architecture without a question-answering model; MissingEnvironment if it needs a package that is not installed;
    UntrustedInput if weights are missing, of a wrong shape, infinite or NaN.
    """
    import torch
    from transformers import AutoModelForQuestionAnswering

    # Inspect again: the files may have changed since `resolve`.
    examine_config(checkpoint.directory)
    examine_weights(checkpoint.directory)
    _refuse_unmapped(checkpoint)
    with _quiet(), _explained(checkpoint.directory, "model"):
        model, report = AutoModelForQuestionAnswering.from_pretrained(
            checkpoint.directory,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            # Otherwise a wrong shape raises an exception that lists every tensor; so it is reported like a missing one.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            config=config,
            **({} if attention is None else {"attn_implementation": attention}),
        )
    _refuse_fresh_weights(report, checkpoint.directory, head_of(checkpoint.config) if fresh_head else None)
    _refuse_non_finite_weights(model, checkpoint.directory)
    return model.eval()


def load_config(directory: Path) -> Any:
    """transformers' config in the folder of a checkpoint or an artifact. Raises as `examine_config` does."""
    from transformers import AutoConfig

    examine_config(directory)
    with _quiet(), _explained(directory, "config"):
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_tokenizer(directory: Path) -> Any:
    """Load the fast tokenizer (a `PreTrainedTokenizerFast`) of a checkpoint's or an artifact's folder.

    Raises UntrustedInput if there is none, if it is unsafe to load or slow, lacks a padding token, or has token ids
    beyond the vocabulary size in the folder's `config.json`.
    """
    examine_tokenizer(directory, None)
    _refuse_slow_class(directory)
    with _quiet(), _explained(directory, "tokenizer"):
        loader, settings = _tokenizer_loader(directory)
        tokenizer = loader.from_pretrained(
            directory, use_fast=True, trust_remote_code=False, local_files_only=True, **settings
        )
    if not tokenizer.is_fast:
        raise _slow(directory, type(tokenizer).__name__)
    if tokenizer.pad_token_id is None:
        raise UntrustedInput(
            f"{directory}: the tokenizer has no padding token, and questions are answered in batches",
            f"state 'pad_token' in {TOKENIZER_CONFIG}, one that the model was trained with",
        )
    rows = read_object(directory, CONFIG).get("vocab_size") if own_file(directory, CONFIG) else None
    if isinstance(rows, int):
        refuse_ids_beyond(directory, tokenizer.get_vocab(), rows)
    return tokenizer


def _tokenizer_loader(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The class that loads the tokenizer, and settings of its own.

    transformers 4.57 does not read all that 5 writes: the class `TokenizersBackend`, which names no token types as
    inputs of the model unless the config does, and a list of further special tokens.
    """
    import transformers

    if hasattr(transformers, GENERIC_CLASS):
        return transformers.AutoTokenizer, {}
    config = read_object(directory, TOKENIZER_CONFIG) if own_file(directory, TOKENIZER_CONFIG) else {}
    settings: dict[str, Any] = {}
    if isinstance(config.get("extra_special_tokens"), list):
        settings = {"extra_special_tokens": {}, "additional_special_tokens": config["extra_special_tokens"]}
    if config.get("tokenizer_class") != GENERIC_CLASS:
        return transformers.AutoTokenizer, settings
    settings["model_input_names"] = config.get("model_input_names", ["input_ids", "attention_mask"])
    return transformers.PreTrainedTokenizerFast, settings


def copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy the tokenizer's files into `directory`, byte for byte."""
    for name in examine_tokenizer(checkpoint.directory, None):
        shutil.copyfile(checkpoint.directory / name, directory / name)
