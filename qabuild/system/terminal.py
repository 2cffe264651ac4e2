"""Text of others on a terminal, which obeys control characters and reorders text by bidirectional ones."""

from __future__ import annotations

import re

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]|\r(?!\n)"
)
"""C0 except tab and line feed, DEL, C1, and the characters that change the direction of text (Unicode, UAX #9)."""


def visible(text: str) -> str:
    r"""The text with control and bidirectional characters escaped, as in `\u001b`; JSON keeps its meaning."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
