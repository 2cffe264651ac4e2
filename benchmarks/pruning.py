"""Measure what width pruning costs and gains: F1, EM, size and speed of pruned artifacts beside the unpruned ones.

    python benchmarks/pruning.py --checkpoint CHECKPOINT --train train-v1.1.json --data dev-v1.1.json --work FOLDER

prunes the checkpoint to several widths, compiles each for every backend, asks all questions of --data, and then lets
the artifacts of each backend take turns on --timed of them. It prints a table with the loss of F1 from the unpruned
artifact of the same backend, and the ratio of speeds (median of the rounds' ratios, with their range in brackets).
Checkpoints, artifacts and scores stay in FOLDER: a run that is interrupted, or given further --recovered checkpoints,
goes on from there. "at most" is the speed that the smaller matrix products would allow if they took all of the time.
`--stock` lets the artifacts take turns with transformers' own pipeline over the checkpoint, too (see `stock.py`).
`--ideas` compares the parts of the method instead, in fp32: without refit, unweighted, by weight
norms. `--picture FILE` draws speed against F1 from the scores that are there.

Run nothing else on the machine. If that is impossible, `taskset -c 0 python benchmarks/pruning.py --cpu-time ...` gives
every contestant one core and measures its CPU time.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from stock import Stock

from qabuild.evaluation.report import plots
from qabuild.models.backends import backend
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.pruning import importance, refit
from qabuild.models.pruning.compact import load_compact
from qabuild.models.pruning.options import Prune
from qabuild.models.pruning.prune import prune
from qabuild.models.pruning.structure import Layer, Part, layers
from qabuild.models.runtime import Dtype, Runtime
from qabuild.qa import data, squad_metric
from qabuild.qa.ask import Ask, answerer, chunks
from qabuild.qa.data import Question
from qabuild.system import machine, packages

UNPRUNED = "unpruned"
WIDTHS: Mapping[str, Mapping[str, float]] = {
    "ffn 0.75": {"ffn": 0.75},
    "ffn 0.65": {"ffn": 0.65},
    "ffn 0.5": {"ffn": 0.5},
    "ffn 0.4": {"ffn": 0.4},
    "ffn 0.65, heads 0.75": {"ffn": 0.65, "heads": 0.75},
}
FORMS: Mapping[str, tuple[str, Dtype, Mapping[str, Any]]] = {
    "openvino int8": ("openvino", "int8", {}),
    "openvino int8, rest bf16": ("openvino", "int8", {"rest": "bf16"}),
    "openvino bf16": ("openvino", "bf16", {}),
    "onnxruntime int8": ("onnxruntime", "int8", {}),
}
RECOVERED = ", recovered"
"""The end of the name of a checkpoint that was trained after it was pruned."""
SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Bench:
    """The folder of a run, its data, and the scores that are there."""

    work: Path
    train: str
    questions: Sequence[Question]
    timed: Sequence[Question]

    def scores(self, **wanted: Any) -> list[dict[str, Any]]:
        path = self.work / SCORES
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]

    def keep(self, **score: Any) -> dict[str, Any]:
        with (self.work / SCORES).open("a") as file:
            file.write(json.dumps(score) + "\n")
        print(score, flush=True)
        return score


def main() -> None:
    arguments = parse()
    logging.disable(logging.WARNING)
    if arguments.cpu_time:
        torch.set_num_threads(1)
    if arguments.picture:
        draw(arguments.work, arguments.picture)
        return
    questions = data.load(data.DatasetRef(str(arguments.data))).questions
    arguments.work.mkdir(parents=True, exist_ok=True)
    asked = data.subset(questions, arguments.questions) if arguments.questions else questions
    bench = Bench(arguments.work, str(arguments.train), asked, data.subset(questions, arguments.timed))
    versions = packages.versions(["torch", "openvino", "onnxruntime"])
    print(f"{machine.cpu()}: {', '.join(machine.instruction_sets())}; {versions}")
    checkpoint = resolve(arguments.checkpoint)
    if arguments.ideas:
        ideas(bench, checkpoint)
        return
    checkpoints = {UNPRUNED: checkpoint}
    checkpoints |= {name: pruned(bench, name, checkpoint, WIDTHS[name]) for name in arguments.widths}
    checkpoints |= {name: resolve(folder) for name, folder in (each.split("=", 1) for each in arguments.recovered)}
    for form in arguments.forms:
        asks = {name: artifact(bench, name, form, each) for name, each in checkpoints.items()}
        speeds = measure(
            asks, bench.timed, arguments.rounds, time.process_time if arguments.cpu_time else time.perf_counter
        )
        for name, speed in speeds.items():
            bench.keep(form=form, name=name, speed=speed)
        if arguments.stock:
            with Stock(arguments.checkpoint) as stock:
                against = measure({"stock": stock, **asks}, bench.timed, arguments.rounds, time.perf_counter)
            for name in asks:
                bench.keep(form=form, name=name, times_stock=against[name])
        print("\n".join(table(bench, form, list(checkpoints))), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="the folder for checkpoints, artifacts and scores")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint fine-tuned on SQuAD")
    parser.add_argument("--train", type=Path, help="SQuAD layout; what importance is measured on")
    parser.add_argument("--data", type=Path, help="SQuAD layout; the questions to answer")
    parser.add_argument("--questions", type=int, help="how many of them; all where absent")
    parser.add_argument("--timed", type=int, default=320, help="questions of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--widths", nargs="*", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--recovered", nargs="*", default=[], metavar="NAME=FOLDER", help="further checkpoints")
    parser.add_argument("--stock", action="store_true", help="compare with transformers' own pipeline as well")
    parser.add_argument("--ideas", action="store_true", help="compare the parts of the method instead")
    parser.add_argument("--picture", type=Path, help="draw the scores that are there instead, into this file")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time instead of wall-clock time")
    arguments = parser.parse_args()
    if not arguments.picture and not (arguments.checkpoint and arguments.train and arguments.data):
        parser.error("--checkpoint, --train and --data are needed, but for --picture")
    return arguments


@contextmanager
def made(directory: Path) -> Iterator[Path]:
    """An empty folder, which becomes `directory` when the block ends."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=directory.parent))
    yield partial
    partial.rename(directory)


def pruned(bench: Bench, name: str, checkpoint: Checkpoint, options: Mapping[str, Any]) -> Checkpoint:
    directory = bench.work / "checkpoints" / name
    if not directory.exists():
        begin = time.perf_counter()
        with made(directory) as partial:
            record = prune(checkpoint, Prune(dataset=bench.train, **options), partial)
        bench.keep(name=name, seconds=round(time.perf_counter() - begin, 1), **record)
    return resolve(directory)


def artifact(bench: Bench, name: str, form: str, checkpoint: Checkpoint) -> Ask:
    """Compile and score it, unless that was done before; returns a function that asks it."""
    (kind, dtype, given), directory = FORMS[form], bench.work / form / name
    module, runtime = backend(kind), Runtime(dtype=dtype)
    options = module.Options(**given, **({"calibration": bench.train} if kind == "openvino" else {}))
    if not directory.exists():
        with made(directory) as partial:
            module.compile(checkpoint, options, runtime, partial)
    ask = answerer(module.load(directory, options, runtime), load_tokenizer(directory))
    if not any("f1" in score for score in bench.scores(form=form, name=name)):
        size = sum(path.stat().st_size for path in directory.rglob("*") if path.suffix in (".bin", ".onnx"))
        bench.keep(form=form, name=name, megabytes=round(size / 1e6, 1), **score(ask, bench.questions))
    return ask


def score(ask: Ask, questions: Sequence[Question]) -> dict[str, float]:
    answers = dict(ask(questions).answers)
    scores = squad_metric.score(answers, {question.id: list(question.answers) for question in questions})
    return {"em": round(scores.exact_match, 3), "f1": round(scores.f1, 3)}


def measure(
    asks: Mapping[str, Ask], questions: Sequence[Question], rounds: int, clock: Callable[[], float]
) -> dict[str, tuple[float, float, float]]:
    """The speed of each, as a ratio to the first: median, least and greatest of the rounds.

    They take turns after every few questions, in rotating order, so that a busy machine slows down all alike.
    """
    names, ratios = list(asks), {name: [] for name in asks}  # type: dict[str, list[float]]
    for number in range(rounds + 1):
        seconds = dict.fromkeys(names, 0.0)
        for turn, chunk in enumerate(chunks(questions)):
            first = (number + turn) % len(names)
            for name in names[first:] + names[:first]:
                begin = clock()
                asks[name](chunk)
                seconds[name] += clock() - begin
        if number:  # the first round warms up
            for name in names:
                ratios[name].append(seconds[names[0]] / seconds[name])
    return {
        name: (round(statistics.median(own), 3), round(min(own), 3), round(max(own), 3)) for name, own in ratios.items()
    }


def table(bench: Bench, form: str, names: Iterable[str]) -> Iterable[str]:
    yield f"\n{form}\n\n| | F1 | EM | F1 lost | MB | times unpruned | at most | times stock |\n{'|---' * 8}|"
    base = next(each["f1"] for each in bench.scores(form=form, name=UNPRUNED) if "f1" in each)
    for name in names:
        found = bench.scores(form=form, name=name)
        own = next(each for each in found if "f1" in each)
        figures = f"{own['f1']:.2f} | {own['em']:.2f} | {base - own['f1']:.2f} | {own['megabytes']:.0f}"
        speeds = [latest(found, "speed"), most(bench, name), latest(found, "times_stock")]
        yield f"| {name} | {figures} | {' | '.join(speeds)} |"


def latest(found: Sequence[Mapping[str, Any]], key: str) -> str:
    """The last ratio that was measured, with its range."""
    median, least, most = next((each[key] for each in reversed(found) if key in each), (0, 0, 0))
    return f"{median:.2f} ({least:.2f} to {most:.2f})" if median else "-"


def most(bench: Bench, name: str) -> str:
    """The speed if matrix products took all of the time; a recovered checkpoint has the widths it was pruned to."""
    shares = [each["flops"] for each in bench.scores(name=name.removesuffix(RECOVERED)) if "flops" in each]
    return f"{1 / shares[-1]:.2f}" if shares else "-"


# --- what each idea gives -------------------------------------------------------------------------------------------


def weight_norms(model: Any, *_: Any) -> importance.Scores:
    """The importance of each unit as the squared norm of the weights that read it: no data, no gradients."""

    def norms(layer: Layer, part: Part) -> torch.Tensor:
        weight = layer.output(part).weight.detach().double()
        return weight.square().sum(0).view(layer.count(part), -1).sum(1)

    return [{part: norms(layer, part) for part in ("ffn", "heads")} for layer in layers(model)]


def ideas(bench: Bench, checkpoint: Checkpoint) -> None:
    """Half of the FFN neurons, with parts of the method replaced."""
    replaced: Mapping[str, Mapping[str, Any]] = {
        "all ideas": {},
        "without refit": {"refit": lambda self, kept: None},
        "refit, unweighted": {"SMALLEST": 1e9},
        "by weight norms": {"fisher": weight_norms},
        "by weight norms, without refit": {"fisher": weight_norms, "refit": lambda self, kept: None},
    }
    owners = {"refit": refit.Moments, "SMALLEST": refit, "fisher": importance}
    bench.keep(
        idea=UNPRUNED, **score(answerer(load_model(checkpoint), load_tokenizer(checkpoint.directory)), bench.questions)
    )
    for name, changes in replaced.items():
        with ExitStack() as stack:
            for attribute, value in changes.items():
                stack.enter_context(mock.patch.object(owners[attribute], attribute, value))
            smaller = pruned(bench, f"idea {name}", checkpoint, {"ffn": 0.5})
        bench.keep(
            idea=name, **score(answerer(load_compact(smaller), load_tokenizer(smaller.directory)), bench.questions)
        )


# --- the picture ----------------------------------------------------------------------------------------------------


def draw(work: Path, path: Path) -> None:
    """Speed against F1 as a PNG, a colour for each backend."""
    import vl_convert

    points: dict[tuple[str, str], dict[str, Any]] = {}
    for line in Bench(work, "", (), ()).scores():
        if "form" in line:
            points.setdefault((line["form"], line["name"]), {}).update(line)
    whole = [point for point in points.values() if {"speed", "f1"} <= point.keys()]
    values = [{**point, "speed": point["speed"][0], "widths": point["name"]} for point in whole]
    speed = {"field": "speed", "title": "speed, times the unpruned artifact of the same backend"}
    encoding = {
        "x": {**speed, "type": "quantitative", "scale": {"zero": False, "padding": 30}},
        "y": {"field": "f1", "type": "quantitative", "title": "F1", "scale": {"zero": False, "padding": 20}},
        "color": {"field": "form", "type": "nominal", "title": None, "scale": {"range": plots.COLOURS["light"]}},
    }
    names = {"mark": {"type": "text", "align": "left", "dx": 7, "dy": -7}, "encoding": {"text": {"field": "widths"}}}
    layers = [{"mark": {"type": "point", "filled": True, "size": 90, "opacity": 1}}, names]
    spec = {"$schema": plots.SCHEMA, "width": 640, "height": 380, "background": "white", "padding": 12}
    spec |= {"data": {"values": values}, "encoding": encoding, "layer": layers}
    path.write_bytes(vl_convert.vegalite_to_png(spec, scale=1.5))


if __name__ == "__main__":
    main()
