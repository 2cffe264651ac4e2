"""Typed access to fields of untrusted JSON values; errors name the place of a missing or mistyped field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from qabuild.errors import UntrustedInput

_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
Kind = TypeVar("Kind")


def items(parent: Any, key: str, where: str, at: str) -> Iterator[tuple[Any, str]]:
    """The entries of the list `parent[key]`, each with its place."""
    place = f"{at}.{key}" if at else key
    for index, item in enumerate(field(parent, key, list, where, at)):
        yield item, f"{place}[{index}]"


def field(parent: Any, key: str, kind: type[Kind], where: str, at: str) -> Kind:
    """`parent[key]`; raises UntrustedInput unless it exists and is of type `kind`."""
    place = at or "the top level"
    if not isinstance(parent, dict):
        raise wrong_layout(where, f"{place} is not an object")
    if key not in parent:
        raise wrong_layout(where, f"{place} has no '{key}'")
    value = parent[key]
    # bool is a subclass of int in Python, not in JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong_layout(where, f"{f'{at}.{key}' if at else key} is not {_JSON_NAMES[kind]}")
    return value


def wrong_layout(where: str, problem: str) -> UntrustedInput:
    """The error for data that is not in the layout of SQuAD."""
    return UntrustedInput(
        f"{where}: not in the layout of SQuAD: {problem}",
        "a file holds {data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]}, "
        "a table on the Hub the columns id, question, context and answers {text, answer_start}",
    )
