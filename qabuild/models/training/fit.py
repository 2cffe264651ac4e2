"""The step `train`: fits the model, in a subprocess."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from qabuild.errors import QABuildError
from qabuild.models import sdpa_kernels
from qabuild.models.checkpoint.interface import positions
from qabuild.models.checkpoint.load import copy_tokenizer, load_tokenizer
from qabuild.models.training import curves, teacher_logits
from qabuild.models.training.collate import Collator
from qabuild.models.training.examples import Examples, examples_of
from qabuild.models.training.objectives import Answers
from qabuild.models.training.options import Train
from qabuild.models.training.request import Request
from qabuild.models.training.student import make_student, restore_dropout
from qabuild.models.training.trainer import Objective, last_state, make_trainer, remove_partial_states
from qabuild.qa.model_inputs import input_names
from qabuild.system.process import Tell


def run(request: Request, tell: Tell) -> Mapping[str, Any]:
    """The step `train`: fit, resuming from the last saved state if there is one, and write the checkpoint."""
    _, examples = examples_of(request)
    record = fit(request, examples, tell)
    distill = request.distill and {"alpha": request.distill.alpha, "temperature": request.distill.temperature}
    return {"examples": examples.counts, "distill": distill, **record}


def fit(request: Request, examples: Examples, tell: Tell) -> Mapping[str, Any]:
    """Train on `examples`. In distributed training, only the process of rank 0 writes."""
    assert isinstance(request.train, Train)
    model = make_student(request.start, request.train)
    distill = request.distill
    objective = Answers(distill.alpha, distill.temperature) if distill else Answers()
    return train(request, model, examples, objective, tell)


def train(request: Request, model: Any, examples: Examples, objective: Objective, tell: Tell) -> Mapping[str, Any]:
    """Train `model` until `objective` is small, going on from the last saved state, and write it."""
    tokenizer = load_tokenizer(request.start.directory)  # a teacher's may give token types that the student lacks
    logits = teacher_logits.open_logits(request.logits, examples) if request.logits else None
    log = curves.Curves(request.work / curves.FILE, examples.held_out, tokenizer, tell)
    trainer = make_trainer(
        request,
        model,
        examples,
        Collator(examples, input_names(model, tokenizer), logits, positions(model.config)),
        objective=objective,
        callbacks=[log],
    )
    if trainer.is_world_process_zero():
        remove_partial_states(request.work)
    state = last_state(request.work)
    if state:
        tell({"resumed": int(state.name.rpartition("-")[2])})
    with _memory_explained(request), sdpa_kernels.of_any_shape(request.device):
        result = trainer.train(resume_from_checkpoint=str(state) if state else None)
    restore_dropout(model, request.start)
    trainer.save_model(str(request.directory))  # every rank calls it: with ZeRO each holds a part of the weights
    if trainer.is_world_process_zero():
        _finish_checkpoint(request)
    return {"steps": result.global_step}


def _finish_checkpoint(request: Request) -> None:
    """Add tokenizer and training curves to what the Trainer saved, and remove its pickle."""
    (request.directory / "training_args.bin").unlink(missing_ok=True)
    for path in request.directory.glob("*.safetensors"):
        path.chmod(0o644)  # the Trainer makes it readable by its owner only
    copy_tokenizer(request.start, request.directory)
    shutil.copyfile(request.work / curves.FILE, request.directory / curves.FILE)


@contextlib.contextmanager
def _memory_explained(request: Request) -> Iterator[None]:
    """Turn torch's out-of-memory errors into one that names the remedy."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        generic = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
        if generic and "allocate memory" not in str(error):
            raise
        parts = 2 * request.train.gradient_accumulation_steps
        raise QABuildError(
            f"too little memory to train on batches of {request.train.batch_size} windows "
            f"in {request.train.gradient_accumulation_steps} parts",
            f"split each batch into more parts: {request.train.table}.gradient_accumulation_steps = {parts}",
        ) from error
