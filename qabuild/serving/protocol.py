"""The body of `POST /answer`: JSON, parsed once into typed values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qabuild.qa.pipeline.inputs import Pair
from qabuild.serving.refusal import Refusal
from qabuild.serving.request_parameters import PARAMETERS, require_allowed

TEXTS = ("question", "context")
FIELDS = (*TEXTS, "items", "model", *PARAMETERS)


@dataclass(frozen=True, kw_only=True)
class Request:
    """The questions of a request."""

    pairs: Sequence[Pair]
    is_list: bool
    """Whether they were asked as `items`, and are answered by a list."""
    parameters: Mapping[str, Any]
    """Parameters of the pipeline, with values that some models take."""
    model: str | None = None


def read(body: bytes, max_characters: int) -> Request:
    """Parse the body of a request. Raises Refusal."""
    document = read_object(body)
    require_known(document, FIELDS, "")
    is_list = "items" in document
    if is_list and (mixed := [name for name in TEXTS if name in document]):
        raise Refusal(422, f"{mixed[0]}: give `items`, or `question` and `context`, not both")
    if is_list and not isinstance(document["items"], list):
        raise Refusal(422, 'items: give a list of {"question": "...", "context": "..."}')
    if is_list:
        pairs = [_item(item, f"items[{index}]", max_characters) for index, item in enumerate(document["items"])]
    else:
        pairs = [pair(document, "", max_characters)]
    model = document.get("model")
    if model is not None and not isinstance(model, str):
        raise Refusal(422, "model: give the name of an artifact")
    parameters = {name: document[name] for name in PARAMETERS if name in document}
    require_allowed(parameters, PARAMETERS)
    return Request(pairs=pairs, is_list=is_list, parameters=parameters, model=model)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body in UTF-8.

    Raises Refusal where it is damaged, nested too deeply, repeats a key or holds NaN or Infinity: readers differ on
    these. Unlike `documents.read_json`, it takes time in proportion to the body, whoever wrote it.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is not UTF-8: byte {error.start} is invalid") from None
    except RecursionError:
        raise Refusal(400, "the body is JSON that is nested too deeply") from None
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error).partition(';')[0]}") from None
    if not isinstance(document, dict):
        raise Refusal(422, "the body is not a JSON object")
    return document


def require_known(document: Mapping[str, Any], known: Collection[str], at: str) -> None:
    """Raise Refusal for a field that is none of the `known`; `at` is where in the request the object stands."""
    for name in document:
        if name not in known:
            raise Refusal(422, f"{at}{'.' if at else ''}{name[:50]}: unknown field; known are {', '.join(known)}")


def pair(document: Mapping[str, Any], at: str, max_characters: int) -> Pair:
    """The texts `question` and `context` of an object. Raises Refusal."""
    question, context = (_text(document, name, f"{at}{'.' if at else ''}{name}", max_characters) for name in TEXTS)
    return question, context


def require_text(value: Any, at: str, max_characters: int) -> str:
    """The text of a question or context that the pipeline answers. Raises Refusal."""
    text = require_string(value, at)
    if not text:
        raise Refusal(422, f"{at}: empty")
    if len(text) > max_characters:
        raise Refusal(413, f"{at}: {len(text)} characters; this server takes {max_characters}")
    require_encodable(text, at)
    return text


def require_string(value: Any, at: str) -> str:
    """The value, if it is a string. Raises Refusal."""
    if not isinstance(value, str):
        raise Refusal(422, f"{at}: not a string")
    return value


def require_encodable(text: str, at: str) -> None:
    """Raise Refusal for a string that JSON can hold and UTF-8 cannot, so that no response could repeat it."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise Refusal(422, f"{at}: not valid text (lone surrogates)") from None


def _item(item: Any, at: str, max_characters: int) -> Pair:
    if not isinstance(item, dict):
        raise Refusal(422, f'{at}: give {{"question": "...", "context": "..."}}')
    require_known(item, TEXTS, at)
    return pair(item, at, max_characters)


def _text(document: Mapping[str, Any], name: str, at: str, max_characters: int) -> str:
    if name not in document:
        raise Refusal(422, f"{at}: missing")
    return require_text(document[name], at, max_characters)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the key {name[:50]!r} is there twice")
        members[name] = value
    return members


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
