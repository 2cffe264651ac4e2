"""Parses the arguments of a call into (question, context) pairs.

Forms and errors are those of transformers' question-answering pipeline, version 4.57.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Pair = tuple[str, str]

FORMS = frozenset({"question", "context", "X", "data"})
"""The keywords of a call that hold examples; `X` and `data` are old names for a list of examples."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The pairs of a call, and whether it returns one result, a list of results or a stream of them."""

    pairs: Iterable[Pair]
    shape: Literal["one", "list", "stream"]


class DatasetPairs:
    """The pairs of a torch Dataset, which can be read again and again; its length is the Dataset's, if that has one."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Pair]:
        return map(_stream_pair, _items(self._dataset))


class NotText(TypeError, ValueError):
    """A question or context that is no text. For one or the other, transformers' pipeline raises either."""


def read(args: Sequence[Any], named: Mapping[str, Any]) -> Inputs:
    """Parse the arguments of a call.

    Raises ValueError for invalid arguments or a question or context that is empty or None; NotText if it is no text;
    KeyError if an example lacks one of the two; TypeError if it has other keys. A generator or a torch Dataset is a
    stream: its examples are read one by one, and may have other keys.
    """
    from torch.utils.data import Dataset

    data = _data(args, named)
    if isinstance(data, types.GeneratorType):
        return Inputs(map(_stream_pair, data), "stream")
    if isinstance(data, Dataset):
        return Inputs(DatasetPairs(data), "stream")
    if isinstance(data, Mapping):
        data = [data]
    elif not isinstance(data, Iterable):
        raise ValueError(f"Invalid arguments {dict(named)}")
    examples = [_example(item) for item in data]
    if len(examples) != 1:
        return Inputs([_single(example) for example in examples], "list")
    return Inputs(examples[0], "list") if isinstance(examples[0], list) else Inputs(examples, "one")  # type: ignore


def _data(args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The examples, from positional or keyword arguments."""
    if len(args) == 1:
        return args[0]
    if len(args) == 2 and all(type(arg) is str for arg in args):
        return {"question": args[0], "context": args[1]}
    if args:
        return list(args)
    for alias in ("X", "data"):
        if alias in named:
            return named[alias]
    if "question" in named and "context" in named:
        return _zip_examples(named["question"], named["context"])
    for given, other in (("question", "context"), ("context", "question")):
        if given in named:
            raise ValueError(f"`{given}` is given without `{other}`")
    raise ValueError(f"Unknown arguments {dict(named)}: give `question` and `context`")


def _zip_examples(question: Any, context: Any) -> list[dict[str, Any]]:
    if isinstance(question, str) and isinstance(context, str):
        return [{"question": question, "context": context}]
    if isinstance(question, list) and isinstance(context, str):
        return [{"question": text, "context": context} for text in question]
    if not (isinstance(question, list) and isinstance(context, list)):
        kinds = f"{type(question).__name__} and {type(context).__name__}"
        accepted = "two texts, two lists of texts, or a list of questions and one text"
        raise ValueError(f"`question` and `context` are {kinds}: give {accepted}")
    if len(question) != len(context):
        raise ValueError("Questions and contexts don't have the same lengths")
    return [{"question": q, "context": c} for q, c in zip(question, context, strict=True)]


def _example(item: Any) -> Pair | list[Pair]:
    """The pair of an example, or the pairs of an example that holds lists."""
    if not isinstance(item, Mapping):
        return _squad_example(item)
    _require_keys(item)
    for key in ("question", "context"):
        _check(key, item[key])
    if len(item) > 2:
        others = ", ".join(repr(key) for key in item if key not in FORMS)
        raise TypeError(f"unexpected keys in an example: {others}; it holds `question` and `context` and nothing else")
    question, context = item["question"], item["context"]
    if not isinstance(question, list):
        return _text("question", question), _text("context", context)
    return [_single(_example(pair)) for pair in _zip_examples(question, context)]


def _squad_example(item: Any, error: type[Exception] = ValueError) -> Pair:
    """The pair of transformers' SquadExample; anything else raises `error`."""
    if hasattr(item, "question_text") and hasattr(item, "context_text"):
        return item.question_text, item.context_text
    raise error(f"an example is a dictionary with `question` and `context`, not {type(item).__name__}")


def _require_keys(item: Mapping[str, Any]) -> None:
    for key in ("question", "context"):
        if key not in item:
            raise KeyError(f"an example has no `{key}`: give a dictionary with `question` and `context`")


def _single(example: Pair | list[Pair]) -> Pair:
    if isinstance(example, list):
        raise ValueError("An example among others holds one question, not a list of them")
    return example


def _check(key: str, value: Any) -> None:
    if value is None:
        raise ValueError(f"`{key}` cannot be None")
    if isinstance(value, str) and not value:
        raise ValueError(f"`{key}` cannot be empty")


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise NotText(f"`{key}` must be a string, not {type(value).__name__}")
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError:
        raise NotText(f"`{key}` holds characters that are not valid text (lone surrogates)") from None
    return value


def _items(dataset: Any) -> Iterator[Any]:
    """The items of a Dataset; one with a length but no iterator is indexed."""
    if hasattr(dataset, "__iter__") or not hasattr(dataset, "__len__"):
        return iter(dataset)
    return (dataset[index] for index in range(len(dataset)))


def _stream_pair(item: Any) -> Pair:
    """The pair of a stream's item; extra keys and empty texts are allowed, so that they do not stop a long run."""
    if isinstance(item, Mapping):
        _require_keys(item)
        return _text("question", item["question"]), _text("context", item["context"])
    return _squad_example(item, AttributeError)  # as the stock pipeline raises for a stream
