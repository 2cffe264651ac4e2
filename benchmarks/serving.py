"""Requests a second and latencies of `qabuild serve`, beside the rate of `qabuild.load` on the same questions.

    python benchmarks/serving.py ARTIFACT --data dev-v1.1.json

asks the questions one a request, by 1, 8, 32 and 128 clients at a time that run in a process of their own; each round
starts with a stream of the same questions through the pipeline of `qabuild.load`, as `qabuild answer` asks it. It
prints the median of the rounds' rates, the latencies of all rounds, and the share of a core that the clients took: they
share the machine with the server, whose rate would be higher without them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qabuild
from qabuild.qa import sample
from qabuild.system import machine

Example = dict[str, str]
STREAM = "a stream, qabuild.load"


def main() -> None:
    arguments = parse()
    examples = read(arguments.data)[: arguments.questions]
    pipeline = qabuild.load(arguments.artifact)
    list(pipeline(iter_of(examples[:8])))
    rates: dict[str, list[float]] = defaultdict(list)
    latencies: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    with server(arguments.artifact, arguments.options) as port:
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            list(pipeline(iter_of(examples)))
            rates[STREAM].append(len(examples) / (time.perf_counter() - started))
            for clients in arguments.clients:
                name = f"{clients} clients"
                run = load(port, clients, examples)
                rates[name].append(len(examples) / run["seconds"])
                latencies[name] += run["latencies"]
                shares[name].append(run["cpu_seconds"] / run["seconds"])
    print(f"{machine.cpu()}, {machine.cores()} cores; {len(examples)} questions, {arguments.rounds} rounds")
    for name, values in rates.items():
        line = f"{name:24} {statistics.median(values):8.1f} questions/s"
        if name in latencies:
            times = [1000 * seconds for seconds in latencies[name]]
            line += f"  p50 {percentile(times, 50):8.1f} ms  p99 {percentile(times, 99):8.1f} ms"
            line += f"  clients took {statistics.median(shares[name]):.0%} of a core"
        print(line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact")
    parser.add_argument("--data", type=Path, default=sample.HELDOUT, help="questions in SQuAD's JSON layout")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: options of qabuild serve")
    return parser.parse_args()


def read(path: Path) -> list[Example]:
    paragraphs = [p for article in json.loads(path.read_text(encoding="utf-8"))["data"] for p in article["paragraphs"]]
    return [{"question": qa["question"], "context": p["context"]} for p in paragraphs for qa in p["qas"]]


def iter_of(examples: list[Example]) -> Iterator[Example]:
    """A generator: the pipeline answers it as a stream."""
    yield from examples


@contextmanager
def server(artifact: str, options: list[str]) -> Iterator[int]:
    """The port of a server that is ready."""
    command = [sys.executable, "-m", "qabuild", "serve", artifact, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = re.search(r":(\d+): loading", process.stderr.readline())
        if port is None or not process.stderr.readline().endswith("ready\n"):
            sys.exit(process.stderr.read())
        try:
            yield int(port[1])
        finally:
            process.terminate()


def load(port: int, clients: int, examples: list[Example]) -> dict[str, Any]:
    """What the clients measured."""
    command = [sys.executable, str(Path(__file__).with_name("serving_client.py")), str(port), str(clients)]
    run = subprocess.run(command, input=json.dumps(examples), stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(run.stdout))


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that is not exceeded by that share of the values."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


if __name__ == "__main__":
    main()
