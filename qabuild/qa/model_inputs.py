"""The inputs of extractive question-answering models, and which of them a model takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs of extractive question-answering encoders, in the order of a trace's arguments."""


def input_names(model: Any, tokenizer: Any = None) -> tuple[str, ...]:
    """The `INPUTS` to give to `model`: those that its `forward` takes, without token types if `tokenizer` names none.

    A tokenizer may name inputs that its model lacks: DistilBERT's, saved without its class, names token types. A model
    whose signature does not tell (compiled code, or a wrapper that passes on what it gets) takes all.
    """
    produced = {"input_ids", "attention_mask", *(tokenizer.model_input_names if tokenizer is not None else INPUTS)}
    parameters = signature(model)
    rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    tells = "input_ids" in parameters and not (rest and "attention_mask" not in parameters)
    return tuple(name for name in INPUTS if name in produced and (name in parameters or not tells))


def signature(model: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of the model's `forward`, by name; empty if it has no signature, as compiled code."""
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    try:
        return inspect.signature(getattr(model, "forward", model)).parameters
    except (TypeError, ValueError):
        return {}
