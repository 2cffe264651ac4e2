"""Check `qabuild tune` against a comparison of everything: the same winner, and in which share of the time?

    python benchmarks/tuning.py CHECKPOINT --data dev-v1.1.json --train-data train-v1.1.json --work FOLDER

tunes the checkpoint first, then builds and verifies every candidate on all questions and lets all that pass take turns
on --timed of them, each with a cache of its own in FOLDER, so that neither profits from the other. It prints both
winners, how they compare in the full comparison, and both times. Run nothing else on the machine: it takes hours.

`--minutes N` begins no further candidate once verifying has taken that long; what comes first is expected to be
faster. The share of the time is then an upper bound. A second run with the same FOLDER goes on from what is there, so
that its times say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from math import inf
from pathlib import Path
from typing import Any

from qabuild.cli.console import Console
from qabuild.errors import QABuildError
from qabuild.evaluation.compare import compare
from qabuild.system import machine
from qabuild.tuning import child
from qabuild.tuning import start as starts
from qabuild.tuning.candidates import candidates
from qabuild.tuning.ranking import Timings, ranked, times_better
from qabuild.tuning.request import tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--train-data", required=True)
    parser.add_argument("--max-f1-drop", type=float, default=0.5)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--timed", type=int, default=1024)
    parser.add_argument("--minutes", type=float, default=inf)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    given: dict[str, Any] = {
        "dataset": arguments.data,
        "train_dataset": arguments.train_data,
        "max_f1_drop": arguments.max_f1_drop,
        "reporter": Console(),
    }

    os.environ["QABUILD_CACHE"] = str(work / "cache of the tuning")
    began = time.monotonic()
    tuned = tune(arguments.checkpoint, **given, output=work / "tuned")
    tuning = time.monotonic() - began

    os.environ["QABUILD_CACHE"] = str(work / "cache of the comparison")
    began = time.monotonic()
    passed, left = verify_all(arguments.checkpoint, work / "all", 60 * arguments.minutes, **given)
    timings = take_turns(passed, arguments.timed, arguments.data, given["reporter"])
    comparing = time.monotonic() - began

    best = ranked(timings, "throughput")[0]
    print(f"{machine.cpu()}, {machine.cores()} cores")
    print(f"tuning: {tuned.winner} in {tuning / 60:.1f} min; full comparison: {best} in {comparing / 60:.1f} min")
    print(f"share of the time: {'less than ' * bool(left)}{tuning / comparing:.0%}")
    if left:
        print(f"not verified: {', '.join(left)}")
    if tuned.winner in timings:
        ratio, (low, high) = times_better(timings[best], timings[tuned.winner], "throughput")
        print(f"{best} is {ratio:.3f} [{low:.3f}, {high:.3f}] times as fast as {tuned.winner} in the full comparison")
    print(json.dumps({name: rounds_per_second(timing) for name, timing in timings.items()}, indent=1))


def verify_all(
    checkpoint: str, folder: Path, seconds: float, *, max_f1_drop: float, reporter: Console, **data: str
) -> tuple[list[Path], list[str]]:
    """The artifacts of all candidates that pass on all questions, and the names of those that there was no time for."""
    start = starts.read(checkpoint, device="cpu", max_f1_drop=max_f1_drop, offline=True, reporter=reporter, **data)
    passed, left = [], []
    began = time.monotonic()
    for candidate in candidates(start, folder / "candidates")[0]:
        if time.monotonic() - began > seconds:
            left.append(candidate.name)
            continue
        try:
            made = child.build(candidate.file, [], folder, offline=True, seconds=None, reporter=reporter)
        except QABuildError as error:
            reporter.say(f"{candidate.name}: {error}")
            continue
        reporter.say(str(made.directory))
        if made.directory.name == candidate.name:  # else NAME.failed
            passed.append(made.directory)
    return passed, left


def take_turns(artifacts: list[Path], samples: int, dataset: str, reporter: Console) -> dict[str, Timings]:
    comparison = compare(artifacts, samples=samples, dataset=dataset, allow_native=True, reporter=reporter)
    return {measured.name: Timings.of(measured) for measured in comparison.measured}


def rounds_per_second(timing: Timings) -> float:
    """Of 32 questions each."""
    return round(len(timing.seconds) / sum(timing.seconds), 2)


if __name__ == "__main__":
    main()
