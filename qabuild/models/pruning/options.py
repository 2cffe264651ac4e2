"""The table `[prune]` of a target."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from qabuild.models.training.options import Recover
from qabuild.qa.data.dataset_ref import SOURCE, DatasetTable

PACKAGES = ("tokenizers", "torch", "transformers")

KeptShare = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Pair = Annotated[tuple[Count, Count], Field(strict=False)]  # a list in TOML and JSON


class Prune(DatasetTable):
    """Which FFN neurons and attention heads are left in each layer, and the questions that tell their importance."""

    ffn: KeptShare | None = Field(None, description="share of the FFN neurons that are kept")
    heads: KeptShare | None = Field(None, description="share of the attention heads that are kept")
    flops: KeptShare | None = Field(
        None, description="share of the operations of the layers' products that is kept; chooses both widths by layer"
    )
    speedup: float | None = Field(
        None,
        gt=1,
        description="how many times as fast the artifact becomes, by times measured on this machine; chooses both "
        "widths by layer",
    )
    widths: tuple[Pair, ...] | None = Field(
        None, strict=False, min_length=1, description="neurons and heads of each layer, as a build states them"
    )
    round_to: int = Field(32, ge=1, description="the number of neurons of a layer is a multiple of this")
    method: Literal["fisher"] = Field("fisher", description="how importance is measured: Fisher information")
    dataset: str = Field("rajpurkar/squad", min_length=1, description=f"what importance is measured on: {SOURCE}")
    samples: int = Field(256, ge=32, description="how many of its questions, drawn by `seed`; fewer tell too little")
    recover: Recover | None = Field(None, description="train it afterwards, to answer as before")

    @model_validator(mode="after")
    def _names_one_size(self) -> Self:
        given = [name for name in ("ffn", "heads", "flops", "speedup", "widths") if getattr(self, name) is not None]
        if len(given) != 1 and set(given) != {"ffn", "heads"}:
            named = f"{' and '.join(f'`{name}`' for name in given)} are given" if given else "none is given"
            raise ValueError(f"name one of `ffn` and `heads` (either or both), `flops`, `speedup`, `widths`; {named}")
        return self

    def prunes_heads(self, config: Mapping[str, Any]) -> bool:
        """Whether layers of a model with this config.json must be able to lose attention heads."""
        there = config.get("num_attention_heads", config.get("n_heads", inf))  # DistilBERT's key
        stated = any(heads < there for _, heads in self.widths or ())
        return stated or self.heads is not None or self.flops is not None
