"""What a training minimises on each batch: functions of a model and a batch of `Collator`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qabuild.models.training.loss import answer_loss, distillation_loss, hidden_loss

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ("start_positions", "end_positions", "teacher_start_logits", "teacher_end_logits")
"""The tensors of a batch that are not inputs of the model."""


class Answers:
    """The loss of the answers and, with `alpha` below 1, of the teacher's logits, which the batches then hold.

    alpha * student loss + (1 - alpha) * (KD_start + KD_end) / 2; Sanh et al. 2019, arXiv 1910.01108.
    """

    def __init__(self, alpha: float = 1.0, temperature: float = 1.0) -> None:
        self._alpha, self._temperature = alpha, temperature

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        output = model(**_inputs(batch))
        teacher = (batch["teacher_start_logits"], batch["teacher_end_logits"]) if self._alpha < 1 else None
        return _answers(output, batch, teacher, self._alpha, self._temperature)


class Recovery:
    """The same with the logits of `teacher`, which sees each batch, and the error of all layers' hidden states.

    Layerwise distillation as in Xia et al. 2022, "Structured Pruning Learns Compact and Accurate Models", arXiv
    2204.00408, section 3.2; since the width of the hidden states is not pruned, each layer learns from the same one.
    """

    def __init__(self, teacher: Any, *, alpha: float, temperature: float, hidden_states: float) -> None:
        self._teacher, self._alpha, self._temperature = teacher.eval(), alpha, temperature
        self._hidden_states = hidden_states

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        import torch

        inputs, hidden = _inputs(batch), self._hidden_states > 0
        with torch.no_grad():
            taught = self._teacher.to(batch["input_ids"].device)(**inputs, output_hidden_states=hidden)
        output = model(**inputs, output_hidden_states=hidden)
        loss = _answers(output, batch, (taught.start_logits, taught.end_logits), self._alpha, self._temperature)
        if hidden:
            pairs = list(zip(output.hidden_states, taught.hidden_states, strict=True))[1:]  # the first: embeddings
            errors = [hidden_loss(student, teacher, batch["attention_mask"]) for student, teacher in pairs]
            loss = loss + self._hidden_states * torch.stack(errors).mean()
        return loss


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name not in TARGETS}


def _answers(
    output: Any, batch: Mapping[str, Tensor], teacher: tuple[Tensor, Tensor] | None, alpha: float, temperature: float
) -> Tensor:
    start, end, mask = output.start_logits, output.end_logits, batch["attention_mask"]
    loss = answer_loss(start, end, batch["start_positions"], batch["end_positions"], mask)
    if teacher is None:
        return loss
    kd_start = distillation_loss(start, teacher[0], mask, temperature)
    kd_end = distillation_loss(end, teacher[1], mask, temperature)
    return alpha * loss + (1 - alpha) * (kd_start + kd_end) / 2
