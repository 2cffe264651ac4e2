"""Requests a second and latencies of `qabuild serve`, under load, over time and at its end.

    python benchmarks/serving.py ARTIFACT --checkpoint CHECKPOINT --data dev-v1.1.json --json serving.json

has wrk ask questions, one a request, over 1, 8, 32 and 128 connections in turn. In each round the same questions go to

- `qabuild serve` (with `--max-wait-ms 0 2 5`: one server for each);
- with --checkpoint, FastAPI over the stock pipeline, which answers one question at a time, in the environment of
  transformers 4.57 that `stock.py` describes (--model runs the stock pipeline over one of optimum's models);
- the pipeline of `qabuild.load` in this process, without a server: in order, as many questions at once as the server
  takes; and a stream, as `qabuild answer` gives it, of which it sorts some hundred at a time by length.

The table has the median of the rounds' rates and of wrk's percentiles, and how many cores wrk and the server took: they
share the machine. Questions come in random order, so that those of any few seconds are alike.

    python benchmarks/serving.py ARTIFACT --data dev-v1.1.json --soak 60 --json soak.json

measures with wrk how much the server answers, and then asks 80 % of it for so many minutes, as users do who do not wait
for each other. It prints requests, errors, latencies and the server's memory for each minute.

    python benchmarks/serving.py ARTIFACT --data dev-v1.1.json --stop 100 --json stop.json

sends SIGTERM while at least so many requests wait, and counts those that get no answer. Needs wrk (`apt-get install
wrk`), but for --stop. The options after --serve are those of `qabuild serve`. Run nothing else on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import serving_servers as servers
import stock
from serving_client import Connection
from serving_servers import Server

import qabuild
from qabuild.artifact.manifest import open_artifact
from qabuild.qa import sample
from qabuild.serving.settings import Settings
from qabuild.system import machine, packages

Example = dict[str, str]
Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "starlette", "uvicorn")
SOAK_SHARE = 0.8
SOAK_CLIENTS = 32
"""Connections by which the capacity is measured."""


def main() -> None:
    arguments = parse()
    examples = read(arguments.data)
    random.Random(0).shuffle(examples)
    about = {
        "cpu": machine.cpu(),
        "cores": machine.cores(),
        "versions": packages.versions(PACKAGES),
        "artifact": open_artifact(Path(arguments.artifact)).digest,
        "serve": arguments.serve,
    }
    print(f"{about['cpu']}, {about['cores']} cores; {len(examples)} questions", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        arguments.bodies = Path(folder, "bodies.jsonl")
        arguments.bodies.write_text("".join(f"{json.dumps(example)}\n" for example in examples))
        measure = stop if arguments.stop else soak if arguments.soak else load
        results = measure(arguments, examples)
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, **results}, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact")
    parser.add_argument("--data", type=Path, default=sample.HELDOUT, help="questions in SQuAD's JSON layout")
    parser.add_argument("--checkpoint", help="of the artifact: FastAPI serves it, as the baseline")
    parser.add_argument("--model", default="eager", help="the stock pipeline's model, see stock_worker.py")
    stock.add_environment_option(parser)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--max-wait-ms", type=float, nargs="+", help="measure `qabuild serve` with each of these")
    parser.add_argument("--seconds", type=float, default=20, help="of each run of wrk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--stop", type=int, metavar="REQUESTS")
    parser.add_argument("--json", type=Path, help="where to write all measurements")
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="last: options of qabuild serve")
    arguments = parser.parse_args()
    if not arguments.stop and not shutil.which("wrk"):
        parser.error("wrk is not installed: apt-get install wrk")
    return arguments


def read(path: Path) -> list[Example]:
    paragraphs = [p for article in json.loads(path.read_text(encoding="utf-8"))["data"] for p in article["paragraphs"]]
    return [{"question": qa["question"], "context": p["context"]} for p in paragraphs for qa in p["qas"]]


# --- under load -------------------------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace, examples: list[Example]) -> Row:
    """Contestants take turns, in a random order of each round."""
    runs: dict[tuple[str, int], list[Row]] = defaultdict(list)
    with ExitStack() as stack:
        contestants = _contestants(arguments, stack)
        for number in range(arguments.rounds):
            for name, clients, run in random.Random(number).sample(contestants, len(contestants)):
                first = number * len(examples) // arguments.rounds
                runs[name, clients].append({"round": number, **run(first)})
                print(f"round {number + 1}, {name}, {clients}: {runs[name, clients][-1]}", file=sys.stderr, flush=True)
    rows = [_summary(name, clients, runs[name, clients]) for name, clients, _ in contestants]
    print(_table(rows))
    return {"seconds": arguments.seconds, "rows": rows}


Contestant = tuple[str, int, Callable[[int], Row]]
"""Name, connections, and what measures it on the questions from a given one on."""


def _contestants(arguments: argparse.Namespace, stack: ExitStack) -> list[Contestant]:
    pipeline = qabuild.load(arguments.artifact)
    examples = [json.loads(line) for line in arguments.bodies.read_text().splitlines()]
    batch = _batch(arguments)
    started: dict[str, Server] = {}
    for wait in [["--max-wait-ms", f"{wait:g}"] for wait in arguments.max_wait_ms or ()] or [[]]:
        server = servers.qabuild(arguments.artifact, *arguments.serve, *wait)
        started[" ".join(["qabuild serve", *wait])] = stack.enter_context(server)
    if arguments.checkpoint:
        server = servers.fastapi(arguments.checkpoint, arguments.model, arguments.environment)
        started[f"FastAPI, stock pipeline ({arguments.model})"] = stack.enter_context(server)

    def batches(first: int) -> Row:
        given = _from(examples, first)

        def answer() -> int:
            pipeline(list(islice(given, batch)))
            return batch

        return _timed(answer, arguments.seconds)

    def stream(first: int) -> Row:
        def until(end: float) -> Iterator[Example]:
            for example in _from(examples, first):
                if time.perf_counter() > end:
                    return
                yield example

        def answer() -> int:
            return sum(1 for _ in pipeline(until(time.perf_counter() + arguments.seconds)))

        return _timed(answer, 0)

    return [
        (f"qabuild.load, batches of {batch} in order", 0, batches),
        ("qabuild.load, a stream sorted by length", 0, stream),
        *(
            (name, clients, lambda first, server=server, clients=clients: wrk(server, clients, arguments, first))
            for name, server in started.items()
            for clients in arguments.clients
        ),
    ]


def _batch(arguments: argparse.Namespace) -> int:
    """Questions of a batch of the server."""
    options = arguments.serve
    if "--max-batch" in options:
        return int(options[options.index("--max-batch") + 1])
    return Settings().max_batch


def _from(examples: Sequence[Example], first: int) -> Iterator[Example]:
    return cycle([*examples[first:], *examples[:first]])


def _timed(answer: Callable[[], int], seconds: float) -> Row:
    """The rate of `answer`, which returns how many questions it answered, called for so long."""
    began, count = time.perf_counter(), answer()
    while time.perf_counter() - began < seconds:
        count += answer()
    return {"rate": count / (time.perf_counter() - began)}


def wrk(server: Server, clients: int, arguments: argparse.Namespace, first: int) -> Row:
    """What wrk measures, and the processor time of both."""
    command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{max(1, round(arguments.seconds))}s", "--timeout", "60s"]
    command += ["-s", str(Path(__file__).with_name("serving.lua")), f"http://127.0.0.1:{server.port}/answer"]
    names = ("qabuild_batch_questions_sum", "qabuild_batch_questions_count")
    before, cpu, own = [server.metric(name) for name in names], server.cpu_seconds, _children_seconds()
    began = time.perf_counter()
    said = subprocess.run([*command, "--", str(arguments.bodies), str(first)], capture_output=True, text=True)
    wall = time.perf_counter() - began
    if said.returncode:
        sys.exit(f"{' '.join(command)}: {said.stdout}{said.stderr}")
    run = json.loads(said.stdout.splitlines()[-1])
    shares = {"wrk_cores": (_children_seconds() - own) / wall, "server_cores": (server.cpu_seconds - cpu) / wall}
    server.wait_until_idle()
    if None not in before:
        questions, batches = (server.metric(name) - earlier for name, earlier in zip(names, before, strict=True))
        shares["batch"] = questions / max(1, batches)
    return {"rate": run["requests"] / run["seconds"], **run, **shares}


def _children_seconds() -> float:
    """Processor time of the children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _summary(name: str, clients: int, runs: Sequence[Row]) -> Row:
    """The medians of the rounds, the range of the rates, and the sum of the errors."""
    summary: Row = {"name": name, "clients": clients}
    for key in ("rate", "p50", "p99", "wrk_cores", "server_cores", "batch"):
        if key in runs[0]:
            summary[key] = statistics.median(run[key] for run in runs)
    if clients:
        summary["errors"] = sum(run["failed"] + run["broken"] + run["timeouts"] for run in runs)
    rates = [run["rate"] for run in runs]
    return {**summary, "least_rate": min(rates), "greatest_rate": max(rates), "runs": list(runs)}


def _table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    lines = [
        "| | clients | requests/s | p50, ms | p99, ms | questions a batch | errors | cores: server | wrk |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = f"{row['rate']:.1f} ({row['least_rate']:.1f} to {row['greatest_rate']:.1f})"
        cells = [row["name"], row["clients"] or "", rate]
        cells += [f"{1000 * row[key]:.1f}" if key in row else "" for key in ("p50", "p99")]
        cells += [f"{row['batch']:.1f}" if "batch" in row else "", row.get("errors", "")]
        cells += [f"{row[key]:.2f}" if key in row else "" for key in ("server_cores", "wrk_cores")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


# --- over time --------------------------------------------------------------------------------------------------------


def soak(arguments: argparse.Namespace, examples: list[Example]) -> Row:
    """The server's capacity, then each minute at a share of it."""
    with servers.qabuild(arguments.artifact, *arguments.serve) as server:
        first = server.megabytes
        capacity = statistics.median(
            wrk(server, SOAK_CLIENTS, arguments, number * len(examples) // arguments.rounds)["rate"]
            for number in range(arguments.rounds)
        )
        rate = SOAK_SHARE * capacity
        print(f"{capacity:.1f} requests/s at {SOAK_CLIENTS} clients; {rate:.1f} for {arguments.soak:g} minutes")
        print("\n| minute | asked | errors | p50, ms | p99, ms | in flight | memory, MB | cores: server | client |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        minutes: list[Row] = []
        latencies: list[float] = []
        cpu = server.cpu_seconds
        for interval in _intervals(server.port, rate, 60 * arguments.soak, arguments.bodies):
            latencies += interval["latencies"]
            minute = {
                **{key: interval[key] for key in ("seconds", "asked", "errors", "in_flight")},
                **percentiles(interval["latencies"]),
                "megabytes": server.megabytes,
                "server_cores": (server.cpu_seconds - cpu) / interval["seconds"],
                "client_cores": interval["cpu_seconds"] / interval["seconds"],
            }
            cpu = server.cpu_seconds
            minutes.append(minute)
            cells = [len(minutes), minute["asked"], sum(minute["errors"].values())]
            cells += [f"{1000 * minute[key]:.1f}" for key in ("p50", "p99")]
            cells += [minute["in_flight"], f"{minute['megabytes']:.0f}"]
            cells += [f"{minute[key]:.2f}" for key in ("server_cores", "client_cores")]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    asked = sum(minute["asked"] for minute in minutes)
    errors = sum(sum(minute["errors"].values()) for minute in minutes)
    whole = percentiles(latencies)
    memory = [first, minutes[0]["megabytes"], minutes[-1]["megabytes"]]
    print(
        f"\n{asked} asked, {errors} errors; p50 {1000 * whole['p50']:.1f} ms, p99 {1000 * whole['p99']:.1f} ms; memory "
        f"{memory[0]:.0f} MB when it was loaded, {memory[1]:.0f} after the first minute, {memory[2]:.0f} at the end"
    )
    results = {"capacity": capacity, "rate": rate, "asked": asked, "errors": errors, **whole}
    return {**results, "megabytes_loaded": first, "minutes": minutes}


def _intervals(port: int, rate: float, seconds: float, bodies: Path) -> Iterator[Row]:
    """What the clients report each minute."""
    client = Path(__file__).with_name("serving_client.py")
    command = [sys.executable, client, *map(str, (port, rate, seconds, bodies))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        sys.exit("the clients failed")


def percentiles(values: Sequence[float]) -> Mapping[str, float]:
    """The smallest value that is not exceeded by that share of the values; NaN if there are none."""
    ordered = sorted(values)
    return {
        f"p{percent}": ordered[-(-len(ordered) * percent // 100) - 1] if ordered else float("nan")
        for percent in (50, 99)
    }


# --- at its end -------------------------------------------------------------------------------------------------------


def stop(arguments: argparse.Namespace, examples: list[Example]) -> Row:
    """SIGTERM while requests wait, several times."""
    rounds = []
    for _ in range(arguments.rounds):
        with servers.qabuild(arguments.artifact, *arguments.serve) as server:
            rounds.append(asyncio.run(_stop(server, arguments.stop, _batch(arguments), examples)))
            rounds[-1]["exit_status"], _ = server.ended()
        print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in rounds[-1].items()), flush=True)
    return {"rounds": rounds}


async def _stop(server: Server, least: int, batch: int, examples: list[Example]) -> Row:
    """Send requests, more than `least` by two batches; stop the server once all of them are accepted."""
    count = least + 2 * batch
    connections = [await Connection.open(server.port) for _ in range(count)]
    before = _accepted(server)
    bodies = [json.dumps(example).encode() for example in islice(cycle(examples), count)]
    asked = [asyncio.create_task(each.answer(body)) for each, body in zip(connections, bodies, strict=True)]
    while await asyncio.to_thread(_accepted, server) < before + count:
        pass
    server.stop()
    stopped, in_flight = time.perf_counter(), sum(not task.done() for task in asked)
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    seconds = time.perf_counter() - stopped
    answered = sum(outcome == 200 for outcome in outcomes)
    return {"in_flight": in_flight, "answered": answered, "lost": count - answered, "seconds": round(seconds, 3)}


def _accepted(server: Server) -> float:
    """Questions in the queue and in batches."""
    return server.metric("qabuild_queue_questions") + server.metric("qabuild_questions_total")


if __name__ == "__main__":
    main()
