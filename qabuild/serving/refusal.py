"""What a client asks for and does not get."""

from __future__ import annotations

from collections.abc import Mapping

LONGEST = 300
"""Characters of a message: it may quote the request."""


class Refusal(Exception):
    """A request that is not answered: the status of the response, one line for its body, and its headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
        self.headers = headers
