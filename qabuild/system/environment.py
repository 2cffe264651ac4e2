"""Environment variables that are set, but cannot be used: checked before a library fails on them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from qabuild.errors import MissingEnvironment

_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


def require_usable() -> None:
    """Raise MissingEnvironment where a variable of huggingface_hub has a value that it cannot use."""
    for name in _NUMBERS:
        if os.environ.get(name):
            integer(name, 0)
    if (endpoint := os.environ.get("HF_ENDPOINT")) and not _is_url(endpoint):
        raise _unusable("HF_ENDPOINT", endpoint, "a URL, such as https://huggingface.co")
    if not re.fullmatch(r"[!-~]*", os.environ.get("HF_TOKEN", "").strip()):
        raise MissingEnvironment("HF_TOKEN holds characters that no token has", "set it again, or unset it")


def integer(name: str, default: int, environment: Mapping[str, str] | None = None, *, least: int = 0) -> int:
    """The variable's value. Raises MissingEnvironment unless it is an integer of at least `least`."""
    text = (os.environ if environment is None else environment).get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or int(text) < least:
        raise _unusable(name, text, f"an integer of at least {least}")
    return int(text)


def _unusable(name: str, value: str, wanted: str) -> MissingEnvironment:
    return MissingEnvironment(f"the environment variable {name} is {value!r}, not {wanted}", "correct it, or unset it")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
