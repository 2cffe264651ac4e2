"""Where a checkpoint comes from, as a target declares it."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from qabuild.system.frozen import Frozen


class CheckpointSource(Frozen):
    """Where the weights come from. Once a target is read, `model` is always set."""

    model: str = Field(
        "",
        description="a Hub id (owner/name), a path that begins with ./, ../, / or ~, or 'sample', the embedded one; "
        "this or `target` is required",
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of a Hub id; its commit sha is recorded either way"
    )
    digest: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="what the checkpoint's digest must be, as its manifest states it"
    )
    target: str | None = Field(
        None, min_length=1, description="name or path of another target, whose checkpoint this one builds on"
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if bool(self.model) == bool(self.target):
            raise ValueError("name one of `model` and `target`")
        return self
