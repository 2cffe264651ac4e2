"""OpenVINO's targets beside the stock pipeline on the eager fp32 model, and beside the other CPU backends.

    python benchmarks/cpu.py --checkpoint CHECKPOINT --train train-v1.1.json --data dev-v1.1.json

compiles every contestant, those of a distilled --student too, then prints four tables: speed, whole pipelines taking
turns on the same questions (ours over what was compiled, transformers' own at batch 8 over the checkpoint; a figure is
the median of the rounds' ratios, in brackets the lowest and the highest), with what the processor's matrix products
would allow; EM, F1 and changed answers, on all questions; the time that one question takes, alone; and what loading
takes, each in a process of its own. int8 is calibrated on questions of --train.

Keep other work off the machine. Where that cannot be, `taskset -c 0 python benchmarks/cpu.py --cpu-time ...` gives
every contestant one core and counts what it computed, not how long it waited.
--questions, --f1-questions and --latency-questions 0 leave a table out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import logging, pipeline

from qabuild.models.backends import backend
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime
from qabuild.qa import data, squad_metric
from qabuild.qa.data import Question
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.qa.pipeline.windows import WindowMaker
from qabuild.system import machine, packages

STOCK = "stock, eager fp32"
Clock = Callable[[], float]
Ask = Callable[[Sequence[Question]], list[str]]


@dataclass(frozen=True)
class Contestant:
    """One way to compile a checkpoint."""

    backend: str
    dtype: Any = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    of: Literal["checkpoint", "student"] = "checkpoint"

    @property
    def name(self) -> str:
        what = [] if self.of == "checkpoint" else [self.of]
        return " ".join([*what, self.backend, self.dtype, *(f"{key}={value}" for key, value in self.options.items())])

    def settings(self, train: Path) -> tuple[Any, Any, Runtime]:
        """Module, options and runtime."""
        module = backend(self.backend)
        more = {"calibration": str(train)} if "calibration" in module.Options.model_fields else {}
        return module, module.Options(**{**more, **self.options}), Runtime(dtype=self.dtype)


CONTESTANTS = (
    Contestant("openvino"),
    Contestant("openvino", "bf16"),
    Contestant("openvino", "int8"),
    Contestant("openvino", "int8", {"rest": "bf16"}),
    Contestant("onnxruntime"),
    Contestant("onnxruntime", "int8"),
    Contestant("torchscript"),
    Contestant("torchscript", "bf16"),
    Contestant("deepspeed", "bf16"),
    Contestant("eager"),
    Contestant("eager", "bf16"),
    Contestant("openvino", "bf16", of="student"),
    Contestant("openvino", "int8", of="student"),
    Contestant("openvino", "int8", {"rest": "bf16"}, of="student"),
    Contestant("onnxruntime", "int8", of="student"),
    Contestant("torchscript", "bf16", of="student"),
)


def main() -> None:
    arguments = parse()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    if arguments.load:
        print(json.dumps(loading(CONTESTANTS[arguments.load[0]], arguments)))
        return
    versions = packages.versions(["torch", "transformers", "openvino", "nncf", "onnxruntime"])
    print(f"{machine.cpu()}: {', '.join(machine.instruction_sets())}; {machine.cores()} cores; {versions}")
    folder = arguments.artifacts or Path(tempfile.mkdtemp(prefix="qabuild-cpu-"))
    contestants = [CONTESTANTS[number] for number in arguments.only] if arguments.only else CONTESTANTS
    here = [each for each in contestants if getattr(arguments, each.of) and compiled(each, arguments, folder)]
    everything = data.load(data.DatasetRef(arguments.data)).questions
    asks = {each.name: asking(each, arguments, folder) for each in here}
    if arguments.questions:
        some = data.subset(everything, arguments.questions)
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        speed({STOCK: stock(arguments.checkpoint), **asks}, some, arguments.rounds, clock)
        limits("checkpoint", arguments.checkpoint, some)
        if arguments.student:
            limits("student", arguments.student, some)
    if arguments.f1_questions:
        count = min(arguments.f1_questions, len(everything))
        accuracy(asks, data.subset(everything, count), arguments.reference)
    if arguments.latency_questions:
        latency({STOCK: stock(arguments.checkpoint), **asks}, data.subset(everything, arguments.latency_questions))
    print("\nloading, in a process of its own")
    for each in here:
        print(f"  {each.name:<32} {apart(each, folder)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="a checkpoint distilled from it, which is compiled as well")
    parser.add_argument("--train", type=Path, required=True, help="SQuAD layout; int8 is calibrated on some of it")
    parser.add_argument("--data", type=Path, required=True, help="SQuAD layout; what is asked")
    parser.add_argument("--questions", type=int, default=320, help="for speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--f1-questions", type=int, default=10**9, help="for EM and F1; all of them")
    parser.add_argument("--latency-questions", type=int, default=100)
    parser.add_argument("--reference", type=int, default=0, metavar="N", help="whose answers count as unchanged")
    parser.add_argument("--artifacts", type=Path, help="where what was compiled is kept for the next run")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time, whatever else runs")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="contestants by their number, from 0")
    parser.add_argument("--load", type=int, nargs=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def compiled(contestant: Contestant, arguments: argparse.Namespace, folder: Path) -> bool:
    """Compile it, unless it was; False where this machine lacks what it needs, which is said."""
    module, options, runtime = contestant.settings(arguments.train)
    if lacks := packages.missing(module.PACKAGES, "cpu") or module.lacks(options, runtime):
        print(f"  {contestant.name}: left out, {'; '.join(lacks)}")
        return False
    directory = folder / contestant.name
    if not directory.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staged:
            module.compile(resolve(getattr(arguments, contestant.of)), options, runtime, Path(staged))
            Path(staged).rename(directory)
    return True


def asking(contestant: Contestant, arguments: argparse.Namespace, folder: Path) -> Ask:
    module, options, runtime = contestant.settings(arguments.train)
    directory = folder / contestant.name
    answer: Any = QuestionAnsweringPipeline(module.load(directory, options, runtime), load_tokenizer(directory))

    def ask(questions: Sequence[Question]) -> list[str]:
        found = answer([{"question": each.question, "context": each.context} for each in questions])
        return [each["answer"] for each in (found if isinstance(found, list) else [found])]

    return ask


def stock(checkpoint: Path) -> Ask:
    tokenizer = load_tokenizer(checkpoint)
    answer = pipeline("question-answering", model=load_model(resolve(checkpoint)), tokenizer=tokenizer, batch_size=8)

    def ask(questions: Sequence[Question]) -> list[str]:
        found = answer([{"question": each.question, "context": each.context} for each in questions])
        return [each["answer"] for each in (found if isinstance(found, list) else [found])]

    return ask


def timed(ask: Ask, questions: Sequence[Question], clock: Clock) -> float:
    begin = clock()
    ask(questions)
    return clock() - begin


def speed(asks: Mapping[str, Ask], questions: Sequence[Question], rounds: int, clock: Clock) -> None:
    """Every contestant in every round, each as often first as the others."""
    for ask in asks.values():
        ask(questions[:16])
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    names = list(asks)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(timed(asks[name], questions, clock))
    print(f"\nspeed, {len(questions)} questions, {rounds} rounds")
    for name, own in seconds.items():
        ratios = sorted(other / mine for other, mine in zip(seconds[STOCK], own, strict=True))
        rate = len(questions) / statistics.median(own)
        times = f"{statistics.median(ratios):6.2f} times stock ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {name:<32} {rate:8.1f} questions/s {times}", flush=True)


def limits(name: str, checkpoint: Path, questions: Sequence[Question]) -> None:
    """What could be answered if the products of matrices, of tokens without padding, took all of the time.

    Where the layers are in int8, attention is in bf16.
    """
    layers, attention = (each / len(questions) for each in matrix_operations(checkpoint, questions))
    total = (layers + attention) / 1e9
    print(f"\n{name}: products of matrices take {total:.2f} GFLOP a question, so at most, on all cores")
    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)}
    for numbers, of_layers, of_attention in (
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("int8, rest bf16", torch.int8, torch.bfloat16),
    ):
        seconds = layers / rates[of_layers] + attention / rates[of_attention]
        print(f"  {numbers:<32} {1 / seconds:8.1f} questions/s, by {rates[of_layers] / 1e9:.0f} billion operations/s")


def matrix_operations(checkpoint: Path, questions: Sequence[Question]) -> tuple[float, float]:
    """Operations of an encoder's products, in its linear layers and in attention, of all windows without padding.

    For each token that is twice as many as there are weights in linear layers and, in each layer, four by the hidden
    size for each token that it attends to.
    """
    tokenizer, model = load_tokenizer(checkpoint), load_model(resolve(checkpoint))
    pairs = [(each.question, each.context) for each in questions]
    lengths = WindowMaker(tokenizer)(pairs, Parameters().cut(tokenizer)).length.astype(float)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    attention = 4 * model.config.num_hidden_layers * model.config.hidden_size
    return float((2 * weights * lengths).sum()), float((attention * lengths**2).sum())


def matrix_rate(dtype: torch.dtype, size: int = 2048, times: int = 20) -> float:
    """Operations a second in the product of two square matrices, the best of some."""
    one, other = (torch.rand(size, size).mul(100).to(dtype) for _ in range(2))
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul  # which has no 8-bit product on a CPU
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        multiply(one, other)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def accuracy(asks: Mapping[str, Ask], questions: Sequence[Question], reference: int) -> None:
    """EM and F1; and how many answers are others than those of the contestant with the number `reference`."""
    gold = {question.id: question.answers for question in questions}
    print(f"\naccuracy, {len(questions)} questions")
    names = list(asks)
    standard: list[str] | None = None
    for name in [names[reference], *(each for each in names if each != names[reference])]:
        answers = asks[name](questions)
        standard = standard or answers
        scores = squad_metric.score(dict(zip(gold, answers, strict=True)), gold)
        changed = sum(one != other for one, other in zip(answers, standard, strict=True))
        print(f"  {name:<32} EM {scores.exact_match:6.2f}  F1 {scores.f1:6.2f}  {changed:5} others", flush=True)


def latency(asks: Mapping[str, Ask], questions: Sequence[Question]) -> None:
    """One question at a time, the contestants taking turns question by question.

    Threads of a runtime may spin for a while when their work is done (ONNX Runtime's do), so each waits for silence.
    """
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    for question in questions:
        for name, ask in asks.items():
            time.sleep(0.1)
            seconds[name].append(timed(ask, [question], time.perf_counter))
    print(f"\none question alone, {len(questions)} questions: milliseconds")
    for name, own in seconds.items():
        p99 = statistics.quantiles(own, n=100)[98]
        print(f"  {name:<32} median {1e3 * statistics.median(own):7.1f}  p99 {1e3 * p99:7.1f}", flush=True)


def apart(contestant: Contestant, folder: Path) -> str:
    """What a fresh process says of loading it."""
    number = CONTESTANTS.index(contestant)
    command = [sys.executable, __file__, *sys.argv[1:], "--artifacts", str(folder), "--load", str(number)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return f"{found['seconds']:6.2f} s  {found['megabytes']:6.0f} MB more than before"


def loading(contestant: Contestant, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and memory from the files to the first answer, torch and transformers being there already."""
    question = data.load(data.DatasetRef(arguments.data, samples=1)).questions
    load_tokenizer(arguments.artifacts / contestant.name)
    before, begin = megabytes(), time.perf_counter()
    asking(contestant, arguments, arguments.artifacts)(question)
    return {"seconds": time.perf_counter() - begin, "megabytes": megabytes() - before}


def megabytes() -> float:
    """Of memory that the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
