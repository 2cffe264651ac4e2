"""Human-readable sizes."""

from __future__ import annotations


def size_of(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 10**6 else f"{size / 1e3:.1f} KB"
