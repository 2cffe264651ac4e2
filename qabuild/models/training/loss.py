"""Training losses: cross entropy of the answer positions, and the distance from a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


SMALLEST = 1e-3
"""The least mean square that a token's error is divided by."""


def answer_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of start and end, averaged. Logits and `mask` are [rows, length], positions [rows]."""
    return answer_losses(start_logits, end_logits, starts, ends, mask).mean()


def answer_losses(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor, mask: Tensor) -> Tensor:
    """The same for each row, [rows]."""
    from torch.nn.functional import cross_entropy

    start = cross_entropy(_unpadded(start_logits, mask), starts, reduction="none")
    end = cross_entropy(_unpadded(end_logits, mask), ends, reduction="none")
    return (start + end) / 2


def distillation_loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened distributions over the tokens that `mask` marks, times temperature squared.

    Logits and mask are [rows, length]; the mean over the rows is taken ('batchmean'). Hinton et al. 2015, arXiv
    1503.02531, section 2: the square keeps the gradients' size as the temperature changes.
    """
    from torch.nn.functional import kl_div, log_softmax

    log_student = log_softmax(_unpadded(student / temperature, mask), dim=-1)
    log_teacher = log_softmax(_unpadded(teacher / temperature, mask), dim=-1)
    return kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Relative squared error of hidden states, [rows, length, width], averaged over the tokens that `mask` marks.

    Each token's error is divided by the teacher's mean square: a few tokens, such as separators, are larger by orders
    of magnitude, and would decide the mean alone.
    """
    student, teacher = student.float(), teacher.float()
    errors = (student - teacher).square().mean(-1) / teacher.square().mean(-1).clamp_min(SMALLEST)
    return (errors * mask).sum() / mask.sum()


def _unpadded(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits in fp32, with those of padding set to the lowest finite value: their softmax is 0.

    Not -inf: the KL divergence subtracts them from each other, which would give NaN.
    """
    import torch

    return logits.float().masked_fill(mask == 0, torch.finfo(torch.float32).min)
