"""The record that a backend of torch writes beside its program: which inputs it takes, and on which device."""

from __future__ import annotations

from typing import Literal

from pydantic import with_config
from typing_extensions import TypedDict

from qabuild.system.documents import OPEN

Inputs = list[Literal["input_ids", "attention_mask", "token_type_ids"]]


@with_config(OPEN)
class Program(TypedDict):
    """What loading the program needs of its record."""

    inputs: Inputs
    refused: Inputs
    """Inputs that the architecture takes and the program does not."""
    device: Literal["cpu", "cuda"]
