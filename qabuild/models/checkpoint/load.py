"""Loads the model and the tokenizer of a resolved checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput
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
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.checkpoint.weights import examine_weights, head_of
from qabuild.system import hub, panic
from qabuild.system.quiet import quiet_transformers

_SHOWN = 5  # tensors that a message names; of the others it gives the count


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
    with quiet_transformers(), _explained(checkpoint.directory, "model"):
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
    with quiet_transformers(), _explained(directory, "config"):
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)


def load_tokenizer(directory: Path) -> Any:
    """Load the fast tokenizer (a `PreTrainedTokenizerFast`) of a checkpoint's or an artifact's folder.

    Raises UntrustedInput if there is none, if it is unsafe to load or slow, lacks a padding token, or has token ids
    beyond the vocabulary size in the folder's `config.json`.
    """
    examine_tokenizer(directory, None)
    _refuse_slow_class(directory)
    with quiet_transformers(), _explained(directory, "tokenizer"):
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
    """The class that loads the tokenizer, and settings of its own: those of `_on_both_lines`."""
    import transformers

    if hasattr(transformers, GENERIC_CLASS):
        return transformers.AutoTokenizer, {}
    config = read_object(directory, TOKENIZER_CONFIG) if own_file(directory, TOKENIZER_CONFIG) else {}
    settings = _on_both_lines(config)
    if settings.pop("tokenizer_class", None):
        return transformers.PreTrainedTokenizerFast, settings
    return transformers.AutoTokenizer, settings


def _on_both_lines(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings to change in a tokenizer config of transformers 5, so that 4.57 reads it as well; the meaning stays.

    4.57 knows neither the class `TokenizersBackend`, which names no token types as inputs of the model unless the
    config does, nor a list of further special tokens.
    """
    settings: dict[str, Any] = {}
    if isinstance(config.get("extra_special_tokens"), list):
        settings = {"extra_special_tokens": {}, "additional_special_tokens": config["extra_special_tokens"]}
    if config.get("tokenizer_class") == GENERIC_CLASS:
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_input_names"] = config.get("model_input_names", ["input_ids", "attention_mask"])
    return settings


def copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy the tokenizer's files into `directory`, byte for byte.

    Only a config that transformers 4.57 cannot read is written anew: a sealed handler loads it with `AutoTokenizer`.
    """
    for name in examine_tokenizer(checkpoint.directory, None):
        shutil.copyfile(checkpoint.directory / name, directory / name)
        if name == TOKENIZER_CONFIG and (settings := _on_both_lines(config := read_object(directory, name))):
            text = json.dumps({**config, **settings}, indent=2, sort_keys=True, ensure_ascii=False)
            (directory / name).write_text(f"{text}\n", encoding="utf-8")


def _refuse_unmapped(checkpoint: Checkpoint) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES as KNOWN

    model_type = checkpoint.config["model_type"]
    if model_type not in KNOWN:
        raise BadTarget(
            f"{checkpoint.name}: transformers has no question-answering model of type {model_type!r}",
            "name a plain text encoder fine-tuned for extractive question answering, such as a BERT or RoBERTa",
        )


def _refuse_fresh_weights(report: Mapping[str, Any], directory: Path, fresh: str | None = None) -> None:
    """Refuse a model with weights that the checkpoint lacks, since transformers initialises them randomly.

    Weights whose names begin with `fresh` may be random.
    """
    missing = [key for key in report["missing_keys"] if fresh is None or not key.startswith(fresh)]
    # transformers 4.57 reports names, other versions tuples that begin with the name.
    misshapen = [item if isinstance(item, str) else item[0] for item in report["mismatched_keys"]]
    for random, problem in ((missing, "missing"), (misshapen, "of another shape than config.json says")):
        if random:
            shown = ", ".join(map(repr, sorted(random)[:_SHOWN])) + (", ..." if len(random) > _SHOWN else "")
            raise UntrustedInput(
                f"{directory}: {len(random)} weights of the model are {problem}: {shown}",
                "they would be random: name a complete checkpoint fine-tuned for question answering",
            )


def _refuse_non_finite_weights(model: Any, directory: Path) -> None:
    import torch

    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise UntrustedInput(
            f"{directory}: {len(broken)} tensors hold NaN or infinite values, {broken[0]!r} among them",
            "its training diverged, or the file is damaged: use another checkpoint",
        )


def _refuse_slow_class(directory: Path) -> None:
    """Refuse, before it is constructed, a tokenizer class that has no fast version in transformers."""
    from transformers import PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    names = (
        read_object(directory, file).get("tokenizer_class")
        for file in (TOKENIZER_CONFIG, CONFIG)
        if own_file(directory, file) is not None
    )
    name = next((name for name in names if name is not None), None)
    if name in (None, GENERIC_CLASS):
        return
    fast = tokenizer_class_from_name(name.removesuffix("Fast") + "Fast") if isinstance(name, str) else None
    if fast is None or not issubclass(fast, PreTrainedTokenizerFast):  # transformers 5 finds the slow class instead
        raise _slow(directory, str(name))


def _slow(directory: Path, class_name: str) -> UntrustedInput:
    return UntrustedInput(
        f"{directory}: its tokenizer ({class_name!r}) has no fast version in transformers",
        "only a fast tokenizer gives the character offsets of answers: use a checkpoint that has one",
    )


@contextmanager
def _explained(directory: Path, part: str) -> Iterator[None]:
    """Turn whatever transformers raises on damaged files into one clear error, with the original as its cause."""
    try:
        with panic.explained(directory):
            yield
    except (QABuildError, MemoryError):
        raise
    except ImportError as error:
        raise MissingEnvironment(
            f"{directory}: the {part} needs a package that is not installed: {hub.first_line(error)}",
            "install it, or use a checkpoint that does not need it (a tokenizer.json needs no further package)",
        ) from error
    except Exception as error:
        raise UntrustedInput(
            f"{directory}: the {part} cannot be loaded: {hub.first_line(error)}",
            "the files are damaged or do not belong together: download the checkpoint again",
        ) from error
