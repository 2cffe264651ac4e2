"""The parameters of a request: what the server takes, as the description of the API states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qabuild.qa.parameter_values import BATCHING, CHOICES, COUNTS
from qabuild.serving.refusal import Refusal

MOST = {"top_k": 100}
MOST_TOKENS = 4096
"""Largest values of a request: time and memory grow with them."""


@dataclass(frozen=True)
class Count:
    """Whole numbers in a range. As in JSON Schema, 1.0 is one, and true is none."""

    least: int
    most: int
    why: str = ""
    """Why there are no others."""

    def takes(self, value: Any) -> bool:
        is_whole = type(value) is int or (type(value) is float and value.is_integer())
        return is_whole and self.least <= value <= self.most

    @property
    def schema(self) -> dict[str, Any]:
        described = {"description": self.why} if self.why else {}
        return {"type": ["integer", "null"], "minimum": self.least, "maximum": self.most, **described}

    def __str__(self) -> str:
        numbers = f"a whole number from {self.least} to {self.most}" if self.least < self.most else str(self.least)
        return f"{numbers}; {self.why}" if self.why else numbers


@dataclass(frozen=True)
class Choice:
    """Some words and flags. As in JSON Schema, 1 is not true."""

    values: tuple[bool | str, ...]

    def takes(self, value: Any) -> bool:
        return type(value) in (bool, str) and value in self.values

    @property
    def schema(self) -> dict[str, Any]:
        return {"enum": [*self.values, None]}

    def __str__(self) -> str:
        words = [str(value).lower() for value in self.values]
        return f"{', '.join(words[:-1])} or {words[-1]}"


Allowed = Mapping[str, Count | Choice]

PARAMETERS: Allowed = {
    **{name: Count(least, MOST.get(name, MOST_TOKENS)) for name, least in COUNTS.items() if name not in BATCHING},
    **{name: Choice(values) for name, values in CHOICES.items() if name not in BATCHING},
}
"""Those of the pipeline that change what is answered; the server chooses how it batches."""


def require_allowed(parameters: Mapping[str, Any], allowed: Allowed, at: str = "") -> None:
    """Raise Refusal for a value that is not allowed, for any model; null leaves a parameter as it is.

    `at` is where in the request the parameters stand.
    """
    for name, value in parameters.items():
        if value is not None and not allowed[name].takes(value):
            raise Refusal(422, f"{at}{name}: give {allowed[name]}")


def schemas(allowed: Allowed) -> dict[str, Any]:
    """The JSON Schema of each parameter."""
    return {name: values.schema for name, values in allowed.items()}
