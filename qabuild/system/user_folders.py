"""Folders of this user: the cache, and the state, which is never shared."""

from __future__ import annotations

import os
from pathlib import Path

from qabuild.errors import MissingEnvironment


def cache() -> Path:
    """QABUILD_CACHE, or qabuild's folder in the platform's cache folder. Raises MissingEnvironment without a home."""
    if root := os.environ.get("QABUILD_CACHE"):
        return Path(os.path.expanduser(root)).absolute()
    _require_home("QABUILD_CACHE", "XDG_CACHE_HOME")
    from platformdirs import user_cache_path

    return user_cache_path("qabuild")


def state() -> Path:
    """qabuild's folder in the platform's state folder. Raises MissingEnvironment without a home."""
    _require_home("XDG_STATE_HOME")
    from platformdirs import user_state_path

    return user_state_path("qabuild")


def require_hub_cache() -> None:
    """Raise MissingEnvironment where huggingface_hub would cache in a folder named "~", for want of a home."""
    _require_home("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")


def _require_home(*instead: str) -> None:
    """Raise MissingEnvironment for a user without a home folder, as in many containers.

    The variables in `instead` name a folder to use instead.
    """
    if os.path.expanduser("~") == "~" and not any(map(os.environ.get, instead)):
        raise MissingEnvironment(
            "this user has no home folder", f"name a folder in HOME, or in {instead[0]}, that this user may write to"
        )
