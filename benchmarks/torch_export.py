"""Compare exported programs, plain and compiled by AOTInductor, with TorchScript and eager PyTorch.

    python benchmarks/torch_export.py --checkpoint CHECKPOINT --data dev-v1.1.json

compiles every contestant in fp32 and bf16, lets them take turns on the same questions in qabuild's pipeline, and prints
questions/s, the ratio to eager PyTorch of the same dtype (median of the rounds' ratios, with their range in brackets),
answers that differ from eager fp32, seconds of compiling, and size. `aot without freezing` keeps the weights as inputs
of the compiled code; `aot with max_autotune` measures kernels while it compiles. --device cuda also compiles with
AOTInductor for the GPU, which targets refuse, since it was not measured. --json FILE writes the rows, too.

Run nothing else on the machine. If that is impossible, `taskset -c 0 python benchmarks/torch_export.py --cpu-time ...`
gives every contestant one core and measures its CPU time.
"""

from __future__ import annotations

import argparse
import json
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
from turns import speedup

from qabuild.models.backends import backend, torch_export
from qabuild.models.backends.torch_export import program
from qabuild.models.checkpoint.load import load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.runtime import Device, Dtype, Runtime
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
    runtime: Runtime
    options: Mapping[str, Any] = field(default_factory=dict)
    inductor: Mapping[str, Any] = field(default_factory=lambda: program.INDUCTOR)


AOT = {"aot": True}


def contestants(dtype: Dtype, device: Device) -> list[Contestant]:
    runtime = Runtime(device=device, dtype=dtype)
    tuned = {**program.INDUCTOR, "max_autotune": True}
    return [
        Contestant(f"eager {dtype}", "eager", runtime),
        Contestant(f"torchscript {dtype}", "torchscript", runtime),
        Contestant(f"torch_export {dtype}", "torch_export", runtime),
        Contestant(f"torch_export {dtype} aot", "torch_export", runtime, AOT),
        Contestant(f"torch_export {dtype} aot without freezing", "torch_export", runtime, AOT, {"freezing": False}),
        Contestant(f"torch_export {dtype} aot with max_autotune", "torch_export", runtime, AOT, tuned),
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
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="qabuild-torch-export-") as folder:
        for dtype in arguments.dtypes:
            entries = contestants(dtype, arguments.device)
            asks, details = {}, {}
            for contestant in entries[: 5 if arguments.brief else None]:
                directory = Path(folder, contestant.name)
                try:
                    seconds = compiled(contestant, checkpoint, directory)
                    asks[contestant.name] = answerer(contestant, directory)
                except Exception as error:  # what AOTInductor raises for a GPU, nobody has seen
                    print(f"  {contestant.name}: {error}", flush=True)
                    rows.append({"name": contestant.name, "error": str(error)[:500]})
                    continue
                size = sum(path.stat().st_size for path in directory.iterdir()) / 2**20
                details[contestant.name] = {"compile_seconds": seconds, "megabytes": size}
            answers = {name: ask(questions) for name, ask in asks.items()}
            expected = expected or answers[entries[0].name]
            for name, own in answers.items():
                details[name]["changed"] = sum(one != other for one, other in zip(own, expected, strict=True))
            rows += measure(asks, details, questions, arguments.rounds, clock)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows), encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="SQuAD layout; the questions to answer")
    parser.add_argument("--questions", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    parser.add_argument("--brief", action="store_true", help="without max_autotune, which takes long")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall-clock time")
    return parser.parse_args()


def compiled(contestant: Contestant, checkpoint: Checkpoint, directory: Path) -> float:
    """Compile it into the new folder `directory`; returns the seconds."""
    module = backend(contestant.backend)
    directory.mkdir()
    begin = time.perf_counter()
    with (
        mock.patch.object(program, "INDUCTOR", dict(contestant.inductor)),
        mock.patch.object(torch_export, "check"),  # which refuses AOTInductor on a GPU
    ):
        module.compile(checkpoint, module.Options(**contestant.options), contestant.runtime, directory)
    return time.perf_counter() - begin


def answerer(contestant: Contestant, directory: Path) -> Ask:
    module = backend(contestant.backend)
    model = module.load(directory, module.Options(**contestant.options), contestant.runtime)
    answer: Any = QuestionAnsweringPipeline(model, load_tokenizer(directory))

    def ask(questions: Sequence[Question]) -> list[str]:
        results = answer([{"question": question.question, "context": question.context} for question in questions])
        return [result["answer"] for result in results]

    return ask


def measure(
    asks: Mapping[str, Ask],
    details: Mapping[str, dict[str, Any]],
    questions: Sequence[Question],
    rounds: int,
    clock: Clock,
) -> list[dict[str, Any]]:
    """Time every contestant in every round, rotating the order; the first is the baseline. Prints and returns rows."""
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    names = list(asks)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = clock()
            asks[name](questions)
            seconds[name].append(clock() - begin)
    print(f"\n{len(questions)} questions, {rounds} rounds")
    rows = []
    for name, own in seconds.items():
        median, least, greatest = speedup(seconds[names[0]], own)
        row = {"name": name, "per_second": len(questions) / statistics.median(own), **details[name]}
        rows.append({**row, "speedup": [median, least, greatest]})
        print(
            f"  {name:<42} {row['per_second']:7.1f} questions/s {median:5.2f} times eager ({least:.2f} to "
            f"{greatest:.2f}); compiled in {row['compile_seconds']:4.0f} s, {row['megabytes']:4.0f} MB, "
            f"{row['changed']} answers changed",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
