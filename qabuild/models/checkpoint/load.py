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
    TOKENIZER,
    TOKENIZER_CONFIG,
    examine_config,
    examine_tokenizer,
    own_file,
    read_object,
    refuse_ids_beyond,
    tokenizer_packages,
)
from qabuild.models.checkpoint.interface import LEAST_TOKENS, fitting, forced, forced_content
from qabuild.models.checkpoint.resolve import Checkpoint
from qabuild.models.checkpoint.weights import examine_weights, head_of
from qabuild.qa.model_inputs import input_names
from qabuild.system import hub, packages, panic
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

    `attention` overrides transformers' choice of implementation, and `config` that of `load_config`. With `fresh_head`,
    a checkpoint that has no question-answering head gets a random one, for training. Raises BadTarget for an
    architecture without a question-answering model; MissingEnvironment if it needs a package that is not installed;
    UntrustedInput if weights are missing, of a wrong shape, infinite or NaN, or if the model does not run.
    """
    import torch
    from transformers import AutoModelForQuestionAnswering

    # Inspect again: the files may have changed since `resolve`.
    _refuse_unmapped(checkpoint)
    config = config or load_config(checkpoint.directory)
    examine_weights(checkpoint.directory)
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
    _refuse_relative_positions(report, checkpoint)
    _refuse_non_finite_weights(model, checkpoint.directory)
    _refuse_failing(model.eval(), checkpoint.directory)
    return model


def load_config(directory: Path) -> Any:
    """transformers' config in the folder of a checkpoint or an artifact, with what `interface.forced` says.

    Raises as `examine_config` does.
    """
    from transformers import AutoConfig

    examine_config(directory)
    with quiet_transformers(), _explained(directory, "config"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        for key, value in forced(config).items():
            setattr(config, key, value)
    return config


def load_tokenizer(directory: Path) -> Any:
    """Load the fast tokenizer (a `PreTrainedTokenizerFast`) of a checkpoint's or an artifact's folder.

    It gives the model of the folder's `config.json` no more than that takes: tokens, and token types. Raises
    UntrustedInput if there is none, if it is unsafe to load or slow, lacks a padding token, or has token ids beyond the
    model's vocabulary size; MissingEnvironment if a package that it is read with is not installed.
    """
    tokenizer = _load_tokenizer(directory)
    config = load_config(directory) if own_file(directory, CONFIG) else None
    if config is not None:
        refuse_ids_beyond(directory, tokenizer.get_vocab(), config.vocab_size)
        with _explained(directory, "tokenizer", "does not fit the model"):
            for key, value in fitting(tokenizer, config).items():
                setattr(tokenizer, key, value)
    if tokenizer.model_max_length < LEAST_TOKENS:
        raise UntrustedInput(
            f"{directory}: the model reads {tokenizer.model_max_length} tokens at once, by {TOKENIZER_CONFIG} and "
            f"{CONFIG}: too few for a question and a context",
            f"correct model_max_length in {TOKENIZER_CONFIG}, or name a checkpoint that reads {LEAST_TOKENS} or more",
        )
    return tokenizer


def _load_tokenizer(directory: Path) -> Any:
    """The tokenizer as its files say, whatever the model takes."""
    examine_tokenizer(directory, None)
    packages.require(dict.fromkeys(tokenizer_packages(directory), ()), "cpu")
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


def copy_config(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy config.json into `directory`, byte for byte.

    Only one of a model that would not return its logits by name is written anew: a sealed handler loads it as it is.
    """
    content = read_object(checkpoint.directory, CONFIG)
    changed = forced_content(content, _class_name(checkpoint))
    if changed == content:
        shutil.copyfile(checkpoint.directory / CONFIG, directory / CONFIG)
    else:
        _write(directory / CONFIG, changed)


def copy_tokenizer(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy the tokenizer's files into `directory`, byte for byte.

    Only a config that transformers 4.57 cannot read, or that does not fit the model, is written anew: a sealed handler
    loads it with `AutoTokenizer`. A SentencePiece model gets a tokenizer.json, which needs no further package.
    """
    source = checkpoint.directory
    for name in examine_tokenizer(source, None):
        shutil.copyfile(source / name, directory / name)
    tokenizer = _load_tokenizer(source)
    if tokenizer_packages(source):
        tokenizer.backend_tokenizer.save(str(directory / TOKENIZER))
    config = read_object(source, TOKENIZER_CONFIG) if own_file(source, TOKENIZER_CONFIG) else {}
    if settings := _on_both_lines(config) | fitting(tokenizer, load_config(source)):
        _write(directory / TOKENIZER_CONFIG, {**config, **settings})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")


def _class_name(checkpoint: Checkpoint) -> str:
    """The name of transformers' question-answering model for the checkpoint's type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES as KNOWN

    _refuse_unmapped(checkpoint)
    return str(KNOWN[checkpoint.config["model_type"]])


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
    # transformers 4.57 reports names, other versions tuples that begin with the name.
    misshapen = [item if isinstance(item, str) else item[0] for item in report["mismatched_keys"]]
    for keys, problem in (
        (report["missing_keys"], "missing"),
        (misshapen, "of another shape than config.json says"),
    ):
        if random := [key for key in keys if fresh is None or not key.startswith(fresh)]:
            shown = ", ".join(map(repr, sorted(random)[:_SHOWN])) + (", ..." if len(random) > _SHOWN else "")
            raise UntrustedInput(
                f"{directory}: {len(random)} weights of the model are {problem}: {shown}",
                "they would be random: name a complete checkpoint fine-tuned for question answering",
            )


def _refuse_relative_positions(report: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Refuse learnt distances that transformers 5 ignores in BERT and its kin: another model would answer."""
    if any(key.endswith("distance_embedding.weight") for key in report["unexpected_keys"]):
        kind = checkpoint.config.get("position_embedding_type")
        raise MissingEnvironment(
            f"{checkpoint.name}: has relative positions (position_embedding_type {kind!r}), which the installed "
            "transformers leaves out",
            "pip install 'transformers>=4.57,<5', which computes them",
        )


def _refuse_failing(model: Any, directory: Path) -> None:
    """Refuse a model that fails on a short window of its tokenizer, for whatever reason: the checkpoint is at fault."""
    import torch

    tokenizer = load_tokenizer(directory)
    with torch.inference_mode(), quiet_transformers(), _explained(directory, "model", "fails on a question"):
        text = "a " * LEAST_TOKENS
        window = tokenizer("a", text, truncation="only_second", max_length=LEAST_TOKENS, return_tensors="pt")
        output = model(**{name: window[name] for name in input_names(model, tokenizer)})
        shapes = [list(output[name].shape) for name in ("start_logits", "end_logits")]
        if shapes != [list(window["input_ids"].shape)] * 2:
            raise ValueError(f"logits have shape {shapes[0]} and {shapes[1]}")


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
def _explained(directory: Path, part: str, problem: str = "cannot be loaded") -> Iterator[None]:
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
            f"{directory}: the {part} {problem}: {hub.first_line(error)}",
            "the files are damaged or do not belong together: download the checkpoint again",
        ) from error
