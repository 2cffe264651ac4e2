"""Refuses an OpenVINO graph that holds more than operators of OpenVINO's own operator sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

_OPERATOR_SET = re.compile(r"opset\d+", re.ASCII)
"""The version of an operator; those of extensions and plugins have other names."""
_HEAD = re.compile(rb'(<\?xml version="1\.0"( encoding="utf-8")?\?>\s*)?<net[\s>]')
_DEEPEST = 50
"""Levels of nesting; graphs have about ten."""


def problems(path: Path) -> Iterator[str]:
    """Whatever the graph's XML holds besides layers of known operators. Raises ParseError where it is damaged.

    OpenVINO's parser reads other encodings, and no namespaces: the text must be UTF-8 and have none, so that both
    parsers read the same.
    """
    content = path.read_bytes()
    content.decode("utf-8")
    if not _HEAD.match(content) or b"\0" in content:
        yield "it is not a graph in UTF-8"
    if b"<!" in content or content.count(b"<?") > 1:  # so no entity can be declared
        yield "it holds a declaration or a comment"
    depth = 0
    for event, element in ElementTree.iterparse(BytesIO(content), ("start", "end")):
        depth += 1 if event == "start" else -1
        if depth > _DEEPEST:
            yield f"its elements are nested more than {_DEEPEST} levels deep"
        if "}" in "".join((element.tag, *element.keys())):
            yield f"it has a namespace: {element.tag[:80]!r}"
        kind, version = element.get("type", ""), element.get("version", "")
        if event == "start" and element.tag == "layer" and not _OPERATOR_SET.fullmatch(version):
            yield f"the operator {kind[:80]!r} of {version[:80]!r} is none of OpenVINO's own"
