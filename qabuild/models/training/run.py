"""The steps of a training, as they are carried out in its own process."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from qabuild.errors import QABuildError
from qabuild.models import sdpa_kernels
from qabuild.models.checkpoint.load import copy_tokenizer, load_model, load_tokenizer
from qabuild.models.training import curves, examples
from qabuild.models.training import teacher_logits as teaching
from qabuild.models.training.collate import Collator
from qabuild.models.training.examples import Examples
from qabuild.models.training.request import Request
from qabuild.models.training.student import make_student, restore_dropout
from qabuild.models.training.trainer import drop_torn_states, last_state, make_trainer
from qabuild.models.training.vocabulary import require_same_tokens
from qabuild.system.process import Tell


def logits(request: Request, tell: Tell) -> Mapping[str, Any]:
    """Let the teacher answer every window, once."""
    assert request.teacher
    tokenizer, found = _examples(request)
    model = load_model(request.teacher).to(request.device)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell({"step": done, "steps": len(found)})

    with sdpa_kernels.of_any_shape(request.device):
        teaching.make(model, tokenizer.model_input_names, found, request.directory, _autocast(request), advance)
    return {"examples": found.counts}


def search(request: Request, tell: Tell) -> Mapping[str, Any]:
    """Look for the alpha and the temperature of the best student."""
    from qabuild.models.training.search import search as try_all

    tokenizer, found = _examples(request)
    return try_all(request, found, lambda tried, part: fit(tried, part, tokenizer, tell))


def train(request: Request, tell: Tell) -> Mapping[str, Any]:
    """Train, from the last saved state where there is one, and write the checkpoint."""
    tokenizer, found = _examples(request)
    record = fit(request, found, tokenizer, tell)
    weights = request.distill and {"alpha": request.distill.alpha, "temperature": request.distill.temperature}
    return {"examples": found.counts, "distill": weights, **record}


def _examples(request: Request) -> tuple[Any, Examples]:
    """Tokenizer and examples; with a teacher those of the teacher, which must be the student's as well."""
    tokenizer = load_tokenizer((request.teacher or request.start).directory)
    found = examples.load(request.train, tokenizer, offline=request.offline)
    if request.teacher:
        require_same_tokens(
            (request.teacher.name, tokenizer),
            (request.start.name, load_tokenizer(request.start.directory)),
            found.questions,
            examples.cut_of(request.train, tokenizer),
        )
    return tokenizer, found


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


def _autocast(request: Request) -> Any:
    import torch

    if request.dtype == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(request.device, torch.bfloat16 if request.dtype == "bf16" else torch.float16)


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
