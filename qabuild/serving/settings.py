"""What a user chooses for a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and address of a server."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free port."""
    max_batch: int = 64
    """Questions that are answered together: the more, the more a second, but the first of them waits for the last."""
    max_wait: float = 0.0
    """Seconds that a question waits for others although the model is idle."""
    max_queue: int = 1024
    """Questions that wait, by artifact."""
    max_body: int = 4_000_000
    """Bytes."""
    max_characters: int = 100_000
    """Of a question or a context."""
    token: str | None = None
    """What clients must send as a Bearer token."""
