"""The step `train`: the training itself, in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from qabuild.errors import QABuildError
from qabuild.models import sdpa_kernels
from qabuild.models.checkpoint.load import copy_tokenizer
from qabuild.models.training import curves
from qabuild.models.training import teacher_logits as teaching
from qabuild.models.training.collate import Collator
from qabuild.models.training.examples import Examples, examples_of
from qabuild.models.training.request import Request
from qabuild.models.training.student import make_student, restore_dropout
from qabuild.models.training.trainer import drop_torn_states, last_state, make_trainer
from qabuild.system.process import Tell


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """The step `train`: train, from the last saved state where there is one, and write the checkpoint."""
    tokenizer, found = examples_of(request)
    record = fit(request, found, tokenizer, tell)
    weights = request.distill and {"alpha": request.distill.alpha, "temperature": request.distill.temperature}
    return {"examples": found.counts, "distill": weights, **record}


def fit(request: Request, found: Examples, tokenizer: Any, tell: Tell) -> Mapping[str, Any]:
    """Train on `found`; one process of those that take part writes."""
    model = make_student(request.start, request.train)
    opened = teaching.open_logits(request.logits, found) if request.logits else None
    watch = curves.Curves(request.work / curves.FILE, found.held_out, tokenizer, tell)
    trainer = make_trainer(
        request,
        model,
        found,
        Collator(found, tokenizer.model_input_names, opened),
        alpha=request.distill.alpha if request.distill else 1.0,
        temperature=request.distill.temperature if request.distill else 1.0,
        callbacks=[watch],
    )
    if trainer.is_world_process_zero():
        drop_torn_states(request.work)
    state = last_state(request.work)
    if state:
        tell({"resumed": int(state.name.rpartition("-")[2])})
    with _memory_explained(request), sdpa_kernels.of_any_shape(request.device):
        result = trainer.train(resume_from_checkpoint=str(state) if state else None)
    restore_dropout(model, request.start)
    trainer.save_model(str(request.directory))  # all take part: with ZeRO each holds a part of the weights
    if trainer.is_world_process_zero():
        _complete(request)
    return {"steps": result.global_step}


def _complete(request: Request) -> None:
    """Make a checkpoint of what the Trainer saved: with tokenizer and log, without its pickle."""
    (request.directory / "training_args.bin").unlink(missing_ok=True)
    for path in request.directory.glob("*.safetensors"):
        path.chmod(0o644)  # is written for its owner alone
    copy_tokenizer(request.start, request.directory)
    shutil.copyfile(request.work / curves.FILE, request.directory / curves.FILE)


@contextlib.contextmanager
def _memory_explained(request: Request) -> Iterator[None]:
    """Turn what torch raises where the memory does not suffice into an error that says what to do."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if plain and "allocate memory" not in str(error):
            raise
        parts = 2 * request.train.gradient_accumulation_steps
        raise QABuildError(
            f"too little memory to train on batches of {request.train.batch_size} windows "
            f"in {request.train.gradient_accumulation_steps} parts",
            f"put them through the model in more parts: train.gradient_accumulation_steps = {parts}",
        ) from error
