"""Compare exported programs, plain and compiled by AOTInductor, with TorchScript and eager PyTorch on the CPU.

    python benchmarks/torch_export.py --checkpoint CHECKPOINT --data dev-v1.1.json

compiles every contestant in fp32 and bf16, lets them take turns on the same questions in qabuild's pipeline, and prints
questions/s, the ratio to eager PyTorch of the same dtype (median of the rounds' ratios, with their range in brackets),
answers that differ from eager fp32, seconds of compiling, and size. `aot without freezing` keeps the weights as inputs
of the compiled code; `aot with max_autotune` measures kernels while it compiles.

Run nothing else on the machine. If that is impossible, `taskset -c 0 python benchmarks/torch_export.py --cpu-time ...`
gives every contestant one core and measures its CPU time.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from qabuild.models.backends import backend
from qabuild.models.backends.torch_export import program
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.runtime import Dtype, Runtime
from qabuild.qa import data
from qabuild.qa.data import Question
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.system import machine, packages

Clock = Callable[[], float]
Ask = Callable[[Sequence[Question]], list[str]]


@dataclass(frozen=True)
class Contestant:
    """One way to compile the checkpoint; `inductor` are AOTInductor's settings if not those of the backend."""

    name: str
    backend: str
    dtype: Dtype
    options: Mapping[str, Any] = field(default_factory=dict)
    inductor: Mapping[str, Any] = field(default_factory=lambda: program.INDUCTOR)


AOT = {"aot": True}


def contestants(dtype: Dtype) -> list[Contestant]:
    return [
        Contestant(f"eager {dtype}", "eager", dtype),
        Contestant(f"torchscript {dtype}", "torchscript", dtype),
        Contestant(f"torch_export {dtype}", "torch_export", dtype),
        Contestant(f"torch_export {dtype} aot", "torch_export", dtype, AOT),
        Contestant(f"torch_export {dtype} aot without freezing", "torch_export", dtype, AOT, {"freezing": False}),
        Contestant(
            f"torch_export {dtype} aot with max_autotune",
            "torch_export",
            dtype,
            AOT,
            {**program.INDUCTOR, "max_autotune": True},
        ),
    ]


def main() -> None:
    arguments = parse()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if arguments.cpu_time:
        torch.set_num_threads(1)
    versions = packages.versions(["torch", "transformers"])
    print(f"{machine.cpu()}: {', '.join(machine.instruction_sets())}; {torch.get_num_threads()} threads; {versions}")
    checkpoint = resolve(arguments.checkpoint)
    questions = data.subset(data.load(data.DatasetRef(str(arguments.data))).questions, arguments.questions)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    expected: list[str] = []
    with tempfile.TemporaryDirectory(prefix="qabuild-torch-export-") as folder:
        for dtype in arguments.dtypes:
            entries = contestants(dtype)
            asks, details = {}, {}
            for number, contestant in enumerate(entries):
                if arguments.brief and number > 3:
                    continue
                directory = Path(folder, contestant.name)
                seconds = compiled(contestant, checkpoint, directory)
                size = sum(path.stat().st_size for path in directory.iterdir()) / 2**20
                details[contestant.name] = f"compiled in {seconds:4.0f} s, {size:4.0f} MB"
                asks[contestant.name] = answerer(contestant, directory)
            answers = {name: ask(questions) for name, ask in asks.items()}
            expected = expected or answers[entries[0].name]
            for name, own in answers.items():
                changed = sum(one != other for one, other in zip(own, expected, strict=True))
                details[name] += f", {changed} answers changed"
            measure(asks, details, questions, arguments.rounds, clock)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="SQuAD layout; the questions to answer")
    parser.add_argument("--questions", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--brief", action="store_true", help="without the variants of AOTInductor's settings")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall-clock time")
    return parser.parse_args()


def compiled(contestant: Contestant, checkpoint: Checkpoint, directory: Path) -> float:
    """Compile it into the new folder `directory`; returns the seconds."""
    module, runtime = backend(contestant.backend), Runtime(dtype=contestant.dtype)
    directory.mkdir()
    begin = time.perf_counter()
    with mock.patch.object(program, "INDUCTOR", dict(contestant.inductor)):
        module.compile(checkpoint, module.Options(**contestant.options), runtime, directory)
    return time.perf_counter() - begin


def answerer(contestant: Contestant, directory: Path) -> Ask:
    module, runtime = backend(contestant.backend), Runtime(dtype=contestant.dtype)
    model = module.load(directory, module.Options(**contestant.options), runtime)
    answer: Any = QuestionAnsweringPipeline(model, load_tokenizer(directory))

    def ask(questions: Sequence[Question]) -> list[str]:
        results = answer([{"question": question.question, "context": question.context} for question in questions])
        return [result["answer"] for result in results]

    return ask


def measure(
    asks: Mapping[str, Ask], details: Mapping[str, str], questions: Sequence[Question], rounds: int, clock: Clock
) -> None:
    """Time every contestant in every round, rotating the order; the first is the baseline."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    names = list(asks)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = clock()
            asks[name](questions)
            seconds[name].append(clock() - begin)
    print(f"\n{len(questions)} questions, {rounds} rounds")
    for name, own in seconds.items():
        ratios = sorted(other / mine for other, mine in zip(seconds[names[0]], own, strict=True))
        rate = len(questions) / statistics.median(own)
        times = f"{statistics.median(ratios):5.2f} times eager ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {name:<42} {rate:7.1f} questions/s {times}; {details[name]}", flush=True)


if __name__ == "__main__":
    main()
