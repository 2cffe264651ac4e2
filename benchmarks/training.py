"""Compare the training with the plain recipe of transformers' question-answering example: speed, EM and F1.

    python benchmarks/training.py CHECKPOINT TRAIN DEV --questions 512 --asked 500 [--layers 0,2,5] [--device cuda]

Each recipe trains the same checkpoint on the same questions for one epoch, in its own process:

    plain       transformers' Trainer with its defaults: windows padded to 384 tokens, fp32, dropout on
    grouped     qabuild's, in fp32 with the checkpoint's dropout: windows grouped by length, memory reused
    no dropout  the same without dropout
    qabuild     the same in the autocast dtype of train.dtype = "auto"

Prints windows per second of wall-clock time and of CPU time (which other work on the machine does not affect), their
ratios to the plain recipe, and EM and F1 on `--asked` questions of DEV. Before the clock starts, each recipe computes
its longest batch: memory is slow only at first touch, and real trainings take hours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qabuild.models import sdpa_kernels
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.training.allocator import keep_memory
from qabuild.models.training.conditions import device_and_dtype
from qabuild.models.training.options import Train
from qabuild.models.training.request import Request
from qabuild.qa import data
from qabuild.system import machine

RECIPES = ("plain", "grouped", "no dropout", "qabuild")
ROW = "{:<11}{:>8}{:>12}{:>8}{:>15}{:>8}{:>9}{:>8}"


def main() -> None:
    arguments = parse()
    if arguments.recipe:
        print(json.dumps(measure(arguments)))
        return
    print(f"{machine.cpu()}, {machine.cores()} cores, {', '.join(machine.instruction_sets())}", *machine.gpus())
    print(ROW.format("", "windows", "windows/s", "", "per CPU second", "", "EM", "F1"), flush=True)
    reference: dict[str, Any] = {}
    for recipe in arguments.recipes or RECIPES:
        command = [sys.executable, *sys.argv, "--recipe", recipe]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(process.stdout.splitlines()[-1])
        reference = reference or measured
        print(
            ROW.format(
                recipe,
                measured["windows"],
                f"{measured['per_second']:.3f}",
                f"{measured['per_second'] / reference['per_second']:.1f}x",
                f"{measured['per_cpu_second']:.3f}",
                f"{measured['per_cpu_second'] / reference['per_cpu_second']:.1f}x",
                f"{measured['exact_match']:.2f}",
                f"{measured['f1']:.2f}",
            ),
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "train", "dev"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--questions", type=int, default=512, help="questions of TRAIN for each recipe")
    parser.add_argument("--asked", type=int, default=500, help="questions of DEV for EM and F1")
    parser.add_argument("--layers", type=lambda text: tuple(map(int, text.split(","))), default=None)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, help="only these")
    parser.add_argument("--recipe", choices=RECIPES, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train by one recipe, and score the result."""
    if arguments.recipe != "plain":
        keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        request = make_request(arguments, Path(folder))
        trainer = plain_trainer(request) if arguments.recipe == "plain" else own_trainer(request)
        windows = len(trainer.train_dataset)
        trainer.args.set_save("no")
        touch_memory(trainer)
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        with sdpa_kernels.of_any_shape("cpu" if arguments.recipe == "plain" else arguments.device):
            trainer.train()
        seconds, cpu_seconds = time.perf_counter() - wall_start, time.process_time() - cpu_start
    from qabuild.models.training.curves import score

    dev = data.load(data.DatasetRef(arguments.dev.resolve(), samples=arguments.asked)).questions
    scores = score(trainer.model.eval(), load_tokenizer(request.start.directory), dev)
    return {
        "windows": windows,
        "per_second": windows / seconds,
        "per_cpu_second": windows / cpu_seconds,
        "exact_match": scores.exact_match,
        "f1": scores.f1,
    }


def touch_memory(trainer: Any) -> None:
    """Run a forward and a backward pass on the longest windows, without an optimizer step."""
    collate, model = trainer.data_collator, trainer.model.train()
    longest = sorted(trainer.train_dataset, key=lambda window: -collate([window])["input_ids"].shape[1])
    batch = {
        name: tensor.to(model.device) for name, tensor in collate(longest[: trainer.args.train_batch_size]).items()
    }
    trainer.compute_loss(model, batch).backward()
    model.zero_grad()


def make_request(arguments: argparse.Namespace, folder: Path) -> Request:
    auto = device_and_dtype(machine.describe(), Train())
    return Request(
        step="train",
        start=resolve(arguments.checkpoint),
        teacher=None,
        train=Train(
            dataset=str(arguments.train.resolve()),
            samples=arguments.questions,
            layers=arguments.layers,
            epochs=1,
            learning_rate=arguments.learning_rate,
            dropout=0.0 if arguments.recipe in ("no dropout", "qabuild") else None,
            save_steps=10**9,
        ),
        distill=None,
        device=arguments.device,
        dtype=auto["train.dtype"] if arguments.recipe == "qabuild" else "fp32",
        logits=None,
        work=folder,
        directory=folder,
        offline=True,
    )


def own_trainer(request: Request) -> Any:
    """The Trainer that a build uses."""
    from qabuild.models.training import collate, examples
    from qabuild.models.training.objectives import Answers
    from qabuild.models.training.student import make_student
    from qabuild.models.training.trainer import make_trainer

    tokenizer = load_tokenizer(request.start.directory)
    windows = examples.load(request.train, tokenizer)
    return make_trainer(
        request,
        make_student(request.start, request.train),
        windows,
        collate.Collator(windows, tokenizer.model_input_names),
        objective=Answers(),
        callbacks=(),
    )


def plain_trainer(request: Request) -> Any:
    """transformers' Trainer with its defaults, as run_qa.py uses it."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    from qabuild.models.checkpoint.load import load_model
    from qabuild.models.training.student import keep_layers

    train = request.train
    model = load_model(request.start)
    if train.layers is not None:
        keep_layers(model, train.layers, request.start.name)
    arguments = TrainingArguments(
        output_dir=str(request.work),
        per_device_train_batch_size=train.batch_size,
        num_train_epochs=train.epochs,
        learning_rate=train.learning_rate,
        use_cpu=request.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return Trainer(
        model=model, args=arguments, train_dataset=plain_features(request), data_collator=default_data_collator
    )


def plain_features(request: Request) -> list[dict[str, Any]]:
    """Windows as the example cuts them: by the tokenizer, each padded to 384 tokens."""
    tokenizer = load_tokenizer(request.start.directory)
    questions = data.load(
        data.DatasetRef(request.train.dataset, samples=request.train.samples, seed=request.train.seed)
    ).questions
    encoded = tokenizer(
        [question.question for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        max_length=request.train.max_seq_len,
        stride=request.train.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding="max_length",
    )
    features = []
    for row, number in enumerate(encoded["overflow_to_sample_mapping"]):
        question, offsets = questions[number], encoded["offset_mapping"][row]
        begin, end = question.answer_starts[0], question.answer_starts[0] + len(question.answers[0])
        columns = [column for column, part in enumerate(encoded.sequence_ids(row)) if part == 1]
        at = (0, 0)
        if offsets[columns[0]][0] <= begin and end <= offsets[columns[-1]][1]:
            at = (
                max(column for column in columns if offsets[column][0] <= begin),
                min(column for column in columns if offsets[column][1] >= end),
            )
        inputs = {name: encoded[name][row] for name in tokenizer.model_input_names}
        features.append({**inputs, "start_positions": at[0], "end_positions": at[1]})
    return features


if __name__ == "__main__":
    main()
