"""Frozen pydantic models: no unknown keys, no change afterwards, no silent conversion."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that is read once: no unknown keys, no change afterwards, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
