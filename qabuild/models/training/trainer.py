"""transformers' Trainer with length-grouped batches and a check for a non-finite loss."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainingArguments

from qabuild.errors import QABuildError
from qabuild.models.training.collate import Collator
from qabuild.models.training.cpu_attention import frugal_attention
from qabuild.models.training.examples import Examples
from qabuild.models.training.sampler import LengthGroupedSampler
from qabuild.system.environment import integer

if TYPE_CHECKING:
    from torch import Tensor

    from qabuild.models.training.options import Fit
    from qabuild.models.training.request import Request

Objective = Callable[[Any, Mapping[str, Any]], "Tensor"]
"""Passes a batch of `Collator` through the model, and returns the loss."""
STATES = 2
"""Number of saved states to keep: the newest may be partial if the process is killed."""


@dataclass
class Arguments(TrainingArguments):  # type: ignore[misc]
    """Arguments whose warm-up is a share of the steps; transformers 4 and 5 have different fields for that."""

    warmup_share: float = 0.0

    def get_warmup_steps(self, num_training_steps: int) -> int:
        return math.ceil(num_training_steps * self.warmup_share)


class QuestionAnsweringTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that minimises `objective` on `examples`."""

    def __init__(self, *, examples: Examples, objective: Objective, train: Fit, **options: Any) -> None:
        super().__init__(train_dataset=examples, **options)
        self._objective, self._seed, self._table = objective, train.seed, train.table

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        # The global batch: each process and accumulation part takes its share.
        size = self.args.per_device_train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps
        examples = self.train_dataset
        return LengthGroupedSampler(examples.windows.length[examples.rows], size, self._seed)

    def compute_loss(self, model: Any, inputs: dict[str, Any], **_: Any) -> Tensor:
        with frugal_attention() if self.args.use_cpu else contextlib.nullcontext():
            return self._objective(model, inputs)

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        import torch

        loss: Tensor = super().training_step(*args, **options)
        if not torch.isfinite(loss):
            rate = self.lr_scheduler.get_last_lr()[0]
            last = last_state(Path(self.args.output_dir))
            raise QABuildError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps}, at a "
                f"learning rate of {rate:.3g}{f'; the last good state is {last}' if last else ''}",
                f"lower {self._table}.learning_rate, let it rise first ({self._table}.warmup_ratio), or train in fp32",
            )
        return loss


def make_trainer(
    request: Request,
    model: Any,
    examples: Examples,
    collate: Collator,
    *,
    objective: Objective,
    callbacks: Sequence[Any],
) -> QuestionAnsweringTrainer:
    """Configure the Trainer for `request`; it saves its states to `request.work`."""
    train = request.train
    processes = integer("WORLD_SIZE", 1, least=1)
    parts = train.gradient_accumulation_steps * processes
    if train.batch_size % parts:
        raise QABuildError(
            f"batches of {train.batch_size} windows cannot be split among {processes} processes in "
            f"{train.gradient_accumulation_steps} parts each",
            f"choose numbers whose product divides {train.table}.batch_size",
        )
    arguments = Arguments(
        output_dir=str(request.work),
        per_device_train_batch_size=train.batch_size // parts,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        warmup_share=train.warmup_ratio,
        weight_decay=train.weight_decay,
        optim="adamw_torch_fused",
        bf16=request.dtype == "bf16",
        fp16=request.dtype == "fp16",
        use_cpu=request.device == "cpu",
        ddp_timeout=24 * 3600,  # other ranks wait while rank 0 evaluates the held-out questions
        ddp_backend=None if processes == 1 else "gloo" if request.device == "cpu" else "nccl",
        deepspeed=train.deepspeed,
        seed=train.seed,
        save_strategy="steps",
        save_steps=train.save_steps,
        save_total_limit=STATES,
        logging_steps=10,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=request.device == "cuda",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # with several GPUs in one process, each would get a full batch
    return QuestionAnsweringTrainer(
        model=model,
        args=arguments,
        examples=examples,
        data_collator=collate,
        callbacks=list(callbacks),
        objective=objective,
        train=train,
    )


def last_state(work: Path) -> Path | None:
    """The newest intact state in `work`; None if there is none."""
    states = {int(path.name.rpartition("-")[2]): path for path in work.glob("checkpoint-*")}
    return next((path for step, path in sorted(states.items(), reverse=True) if _is_intact(path, step)), None)


def _is_intact(state: Path, step: int) -> bool:
    """Whether a saved state is complete, with no file truncated by a kill or a power cut.

    The Trainer writes trainer_state.json last. torch's files are zip archives, with the directory at the end; a
    safetensors file has its size in the header.
    """
    try:
        if json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))["global_step"] != step:
            return False
        for path in state.rglob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
        return all(zipfile.is_zipfile(path) for kind in ("*.pt", "*.pth") for path in state.rglob(kind))
    except (OSError, ValueError, KeyError, SafetensorError):
        return False


def remove_partial_states(work: Path) -> None:
    """Remove states newer than the last intact one: the Trainer would count them among those it keeps."""
    intact = last_state(work)
    newest = int(intact.name.rpartition("-")[2]) if intact else -1
    for path in work.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > newest:
            shutil.rmtree(path)
