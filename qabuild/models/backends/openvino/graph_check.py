"""Refuses an OpenVINO graph that holds more than operators of OpenVINO's own operator sets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_OPERATOR_SET = re.compile(r"opset\d+", re.ASCII)
"""The version of an operator; those of extensions and plugins have other names."""


def problems(path: Path) -> Iterator[str]:
    """Whatever the graph's XML holds besides layers of known operators. Raises ParseError where it is damaged."""
    content = path.read_bytes()
    if b"<!" in content:  # so no entity can be declared
        yield "it holds a declaration or a comment"
    root = ElementTree.fromstring(content, ElementTree.XMLParser(encoding="utf-8"))
    if root.tag != "net":
        yield f"it is a {root.tag[:80]!r}, not a graph"
    for layer in root.iter("layer"):
        kind, version = layer.get("type", ""), layer.get("version", "")
        if not _OPERATOR_SET.fullmatch(version):
            yield f"the operator {kind[:80]!r} of {version[:80]!r} is none of OpenVINO's own"
