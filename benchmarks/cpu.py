"""Compare the CPU backends with each other and with the stock pipeline on the eager fp32 model.

    python benchmarks/cpu.py --checkpoint CHECKPOINT --train train-v1.1.json --data dev-v1.1.json

compiles every contestant, including those of a distilled --student, and prints four tables:

- speed: end-to-end pipelines taking turns on the same questions, qabuild's with the compiled model, transformers' own
  at batch 8 with the checkpoint, in a process and an environment of its own (see `stock.py`). A figure is the median of
  the rounds' ratios, with their range in brackets. The upper bound by the processor's matrix products follows;
- EM, F1 and changed answers, on all questions;
- latency of single questions;
- loading time and memory, each contestant in its own process.

int8 is calibrated on questions of --train. Run nothing else on the machine. If that is impossible, `taskset -c 0 python
benchmarks/cpu.py --cpu-time ...` gives every contestant one core and measures its CPU time.
--questions, --f1-questions and --latency-questions 0 omit a table. --rivals adds optimum's models, optimum-intel's and
a compiled one, all in the stock pipeline.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from stock import Stock, add_environment_option
from transformers import logging
from turns import seconds_by_round, speedup

from qabuild.models import calibration
from qabuild.models.backends import backend
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime
from qabuild.qa import data, squad_metric
from qabuild.qa.ask import Answered, Ask
from qabuild.qa.data import Question
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.qa.pipeline.windows import WindowMaker
from qabuild.system import machine, packages

STOCK = "stock, eager"
RIVALS = ("compile", "onnxruntime", "openvino", "openvino-int8")


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
    Contestant("torch_export"),
    Contestant("torch_export", "fp32", {"aot": True}),
    Contestant("torch_export", "bf16", {"aot": True}),
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
    contestants = [one for one in contestants if getattr(arguments, one.of) and compiled(one, arguments, folder)]
    questions = data.load(data.DatasetRef(arguments.data)).questions
    asks = {contestant.name: answerer(contestant, arguments, folder) for contestant in contestants}
    with stock_pipelines(arguments) as stock:
        rivals = {name: ask for name, ask in stock.items() if name != STOCK}
        if arguments.questions:
            subset = data.subset(questions, arguments.questions)
            speed({**stock, **asks}, subset, arguments.rounds)
            limits("checkpoint", arguments.checkpoint, subset)
            if arguments.student:
                limits("student", arguments.student, subset)
        if arguments.f1_questions:
            count = min(arguments.f1_questions, len(questions))
            accuracy({**asks, **rivals}, data.subset(questions, count), arguments.reference)
        if arguments.latency_questions:
            latency({**stock, **asks}, data.subset(questions, arguments.latency_questions), arguments.clock)
    print("\nloading, in its own process")
    for contestant in contestants:
        print(f"  {contestant.name:<32} {load_in_process(contestant, folder)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--student", type=Path, help="a checkpoint distilled from it, compiled, too")
    parser.add_argument("--train", type=Path, required=True, help="SQuAD layout; calibrates int8")
    parser.add_argument("--data", type=Path, required=True, help="SQuAD layout; the questions to answer")
    parser.add_argument("--questions", type=int, default=320, help="for speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--f1-questions", type=int, default=10**9, help="for EM and F1; all of them")
    parser.add_argument("--latency-questions", type=int, default=100)
    parser.add_argument(
        "--reference", type=int, default=0, metavar="N", help="contestant to count changed answers against"
    )
    parser.add_argument("--artifacts", type=Path, help="folder that caches compiled models for the next run")
    parser.add_argument(
        "--cpu-time",
        dest="clock",
        action="store_const",
        const="process_time",
        default="perf_counter",
        help="measure CPU time instead of wall-clock time",
    )
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers of the contestants to run, from 0")
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=[], help="models to run the stock pipeline with, beside eager"
    )
    add_environment_option(parser)
    parser.add_argument("--load", type=int, nargs=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def compiled(contestant: Contestant, arguments: argparse.Namespace, folder: Path) -> bool:
    """Compile it unless cached. Prints what is missing on this machine, and returns False, if it cannot run."""
    module, options, runtime = contestant.settings(arguments.train)
    if lacks := packages.missing(dict.fromkeys(module.PACKAGES, ()), "cpu") or module.missing(options, runtime):
        print(f"  {contestant.name}: skipped, {'; '.join(lacks)}")
        return False
    directory = folder / contestant.name
    if not directory.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as staged:
            module.compile(resolve(getattr(arguments, contestant.of)), options, runtime, Path(staged))
            Path(staged).rename(directory)
    return True


def answerer(contestant: Contestant, arguments: argparse.Namespace, folder: Path) -> Ask:
    module, options, runtime = contestant.settings(arguments.train)
    directory = folder / contestant.name
    answer: Any = QuestionAnsweringPipeline(module.load(directory, options, runtime), load_tokenizer(directory))
    clock = getattr(time, arguments.clock)

    def ask(questions: Sequence[Question]) -> Answered:
        begin = clock()
        results = answer([{"question": question.question, "context": question.context} for question in questions])
        seconds = clock() - begin
        results = results if isinstance(results, list) else [results]
        answers = {question.id: result["answer"] for question, result in zip(questions, results, strict=True)}
        return Answered(answers=answers, seconds=seconds)

    return ask


@contextmanager
def stock_pipelines(arguments: argparse.Namespace) -> Iterator[dict[str, Ask]]:
    """The stock pipeline over the eager model and those of --rivals. int8 is calibrated as qabuild's OpenVINO is."""
    options = backend("openvino").Options(calibration=str(arguments.train))
    with ExitStack() as stack:
        asks: dict[str, Ask] = {}
        for model in ("eager", *arguments.rivals):
            sample = calibration.draw(options, calibration.questions(options)).questions if "int8" in model else ()
            stock = Stock(
                arguments.checkpoint,
                model,
                environment=arguments.environment,
                calibration=sample,
                clock=arguments.clock,
            )
            asks[f"stock, {model}"] = stack.enter_context(stock)
        yield asks


def speed(asks: Mapping[str, Ask], questions: Sequence[Question], rounds: int) -> None:
    """Let all contestants take turns, and print their rates and their speed over the stock pipeline's."""
    seconds = seconds_by_round(asks, questions, rounds)
    print(f"\nspeed, {len(questions)} questions, {rounds} rounds")
    for name, own in seconds.items():
        median, least, greatest = speedup(seconds[STOCK], own)
        rate = len(questions) / statistics.median(own)
        times = f"{median:6.2f} times stock ({least:.2f} to {greatest:.2f})"
        print(f"  {name:<32} {rate:8.1f} questions/s {times}", flush=True)


def limits(name: str, checkpoint: Path, questions: Sequence[Question]) -> None:
    """The upper bound on questions/s if matrix products, without padding, took all of the time.

    With int8 layers, attention is in bf16.
    """
    layers, attention = (count / len(questions) for count in matrix_operations(checkpoint, questions))
    total = (layers + attention) / 1e9
    print(f"\n{name}: matrix products take {total:.2f} GFLOP per question, so at most, on all cores")
    rates = {dtype: matrix_rate(dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)}
    for precision, of_layers, of_attention in (
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("int8, rest bf16", torch.int8, torch.bfloat16),
    ):
        seconds = layers / rates[of_layers] + attention / rates[of_attention]
        print(f"  {precision:<32} {1 / seconds:8.1f} questions/s, at {rates[of_layers] / 1e9:.0f} billion operations/s")


def matrix_operations(checkpoint: Path, questions: Sequence[Question]) -> tuple[float, float]:
    """Operations of the linear layers and of attention, for all windows without padding.

    Per token: two per weight of the linear layers and, in each layer, four times the hidden size per attended token.
    """
    tokenizer, model = load_tokenizer(checkpoint), load_model(resolve(checkpoint))
    pairs = [(question.question, question.context) for question in questions]
    lengths = WindowMaker(tokenizer)(pairs, Parameters().cut(tokenizer)).length.astype(float)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    attention = 4 * model.config.num_hidden_layers * model.config.hidden_size
    return float((2 * weights * lengths).sum()), float((attention * lengths**2).sum())


def matrix_rate(dtype: torch.dtype, size: int = 2048, times: int = 20) -> float:
    """Operations per second of a product of two square matrices, the best of `times`."""
    one, other = (torch.rand(size, size).mul(100).to(dtype) for _ in range(2))
    multiply = torch._int_mm if dtype == torch.int8 else torch.matmul  # matmul has no 8-bit product on a CPU
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        multiply(one, other)
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def accuracy(asks: Mapping[str, Ask], questions: Sequence[Question], reference: int) -> None:
    """EM and F1, and the number of answers that differ from those of contestant number `reference`."""
    gold = {question.id: question.answers for question in questions}
    print(f"\naccuracy, {len(questions)} questions")
    names = list(asks)
    standard: Mapping[str, str] = {}
    for name in [names[reference], *(name for name in names if name != names[reference])]:
        answers = asks[name](questions).answers
        standard = standard or answers
        scores = squad_metric.score(answers, gold)
        changed = sum(answers[key] != standard[key] for key in gold)
        print(f"  {name:<32} EM {scores.exact_match:6.2f}  F1 {scores.f1:6.2f}  {changed:5} changed", flush=True)


def latency(asks: Mapping[str, Ask], questions: Sequence[Question], clock: str) -> None:
    """Time single questions, the contestants taking turns question by question.

    Threads of a runtime may spin for a while after their work (ONNX Runtime's do), so each contestant waits first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in asks}
    for question in questions:
        for name, ask in asks.items():
            time.sleep(0.1)
            seconds[name].append(ask([question]).seconds)
    print(f"\nlatency of single questions, {len(questions)} questions: milliseconds by {clock}")
    for name, own in seconds.items():
        p99 = statistics.quantiles(own, n=100)[98]
        print(f"  {name:<32} median {1e3 * statistics.median(own):7.1f}  p99 {1e3 * p99:7.1f}", flush=True)


def load_in_process(contestant: Contestant, folder: Path) -> str:
    """Loading time and memory, measured in a fresh process."""
    number = CONTESTANTS.index(contestant)
    command = [sys.executable, __file__, *sys.argv[1:], "--artifacts", str(folder), "--load", str(number)]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return f"{measured['seconds']:6.2f} s  {measured['megabytes']:6.0f} MB more than before"


def loading(contestant: Contestant, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and memory from the files to the first answer, with torch and transformers already imported."""
    question = data.load(data.DatasetRef(arguments.data, samples=1)).questions
    load_tokenizer(arguments.artifacts / contestant.name)
    before, begin = megabytes(), time.perf_counter()
    answerer(contestant, arguments, arguments.artifacts)(question)
    return {"seconds": time.perf_counter() - begin, "megabytes": megabytes() - before}


def megabytes() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
