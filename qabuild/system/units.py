"""Sizes and counts as people read them."""

from __future__ import annotations


def size_of(size: int) -> str:
    """A number of bytes, in KB or MB of the decimal system."""
    return f"{size / 1e6:.1f} MB" if size >= 10**6 else f"{size / 1e3:.1f} KB"


def count_of(count: int, noun: str) -> str:
    """A number of things, as in "1 core" and "2 cores"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
