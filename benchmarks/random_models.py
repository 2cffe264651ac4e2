"""Models that cost nothing, with random logits that are the same in every process."""

from __future__ import annotations

from types import SimpleNamespace

import torch


class EmptyModel(torch.nn.Module):  # type: ignore[misc]
    """A model of negligible cost: every window gets the first logits of one random row."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="bert")  # which the pipeline pads
        self.logits = torch.randn(2, 1 << 20, generator=torch.Generator().manual_seed(0)) * 3

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        start, end = self.logits[:, : input_ids.numel()].view(2, *input_ids.shape)
        return {"start_logits": start, "end_logits": end}


class HashingModel(EmptyModel):
    """Pseudo-random logits that depend only on the window's tokens and their positions, not on padding."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.randn(2, 1 << 23, generator=torch.Generator().manual_seed(0)) * 3

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        position = attention_mask.cumsum(1)
        window = (input_ids * attention_mask * position).sum(1, keepdim=True)
        entry = (input_ids * 2654435761 + position * 40503 + window * 7919) % self.logits.shape[1]
        return {"start_logits": self.logits[0][entry], "end_logits": self.logits[1][entry]}
