"""Answer a Parquet file of a million questions into parts of Parquet: one process, two shards, Ray, and a killed run.

    python benchmarks/bulk.py --data dev-v1.1.json --json bulk.json

answers the same questions with one process and with two shards, in turns for some --rounds, with two workers of Ray,
and with one process that is killed with SIGKILL at a quarter, half and three quarters of the parts and started again.
It prints the questions per second of each, from the start of the first process to the end of the last, the memory of
each process at a tenth, half and the end of its life, how many times as fast the shards are in each round, Ray's
overhead over them, and whether all runs gave each id the same answer, once. Of several rounds, the median one is shown.
The model returns the same random logits for any window, so that the figures are those of reading, tokenising, decoding
and writing. Each worker has one thread. The questions are those of --data, over and over, with ids of their own. Run
nothing else on the machine, which needs two cores; --questions 10000 checks in minutes that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from qabuild.artifact.artifact_ref import LoadedArtifact
from qabuild.qa import data
from qabuild.qa.bulk import answer_dataset
from qabuild.system import machine, packages

PARTS = 20
"""At least: the two shards have as many each."""
MAX_PART_ROWS = 100_000
WORKERS = 2
KILLS = (0.25, 0.5, 0.75)
"""Shares of the parts that are complete at each kill."""
SAMPLE_SECONDS = 1.0
POLL_SECONDS = 0.1
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(kw_only=True)
class Measurement:
    """One run, of one process or several."""

    seconds: float = 0.0
    memory: dict[int, list[float]] = field(default_factory=dict)
    """Resident megabytes of each process, every `SAMPLE_SECONDS`."""
    titles: dict[int, str] = field(default_factory=dict)
    """Those of the processes, as they were last."""


def main() -> None:
    arguments = parse()
    if arguments.input:
        answer(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="qabuild-bulk-", dir=arguments.folder) as name:
        folder = Path(name)
        arguments.input = folder / "questions.parquet"
        write_questions(arguments.input, arguments.data, arguments.questions)
        size = arguments.input.stat().st_size / 1e6
        print(f"{machine.cpu()}, {machine.cores()} cores; {arguments.questions} questions, {size:.0f} MB", flush=True)
        turns: dict[str, list[Measurement]] = {"one process": [], "two shards": []}
        for _ in range(arguments.rounds):
            for output in ("one", "shards"):
                shutil.rmtree(folder / output, ignore_errors=True)
            turns["one process"].append(measure(arguments, folder / "one", ["0/1"]))
            shards = [f"{number}/{WORKERS}" for number in range(WORKERS)]
            turns["two shards"].append(measure(arguments, folder / "shards", shards))
        runs = {name: sorted(each, key=lambda run: run.seconds)[len(each) // 2] for name, each in turns.items()}
        outputs = ["shards"]
        if packages.versions(["ray"]):
            runs["Ray, two workers"] = measure(arguments, folder / "ray", ["ray"])
            outputs.append("ray")
        runs["killed three times"] = measure_killed(arguments, folder / "killed")
        times = [one.seconds / two.seconds for one, two in zip(*turns.values(), strict=True)]
        report(arguments.questions, runs, times)
        for output in (*outputs, "killed"):
            require_same(folder / output, folder / "one", arguments.questions)
        print(f"{', '.join(outputs)}, killed: each of {arguments.questions} ids once, each answer as of one process")
        if arguments.json:
            measured = {name: asdict(run) for name, run in runs.items()}
            arguments.json.write_text(json.dumps({"times": times, "runs": measured}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample", help="questions in SQuAD's JSON layout")
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write the questions and answers, for a while")
    parser.add_argument("--json", type=Path, help="where to write all measurements")
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_questions(path: Path, source: str, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    dataset = source if source == "sample" else Path(source)
    questions = cycle(data.load(data.DatasetRef(dataset, split="train")).questions)
    schema = pyarrow.schema({"id": pyarrow.int64(), "question": pyarrow.string(), "context": pyarrow.string()})
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, count, MAX_PART_ROWS):
            rows = [
                {"id": number, "question": question.question, "context": question.context}
                for number, question in enumerate(islice(questions, min(MAX_PART_ROWS, count - first)), first)
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


# --- runs -----------------------------------------------------------------------------------------------------------


class NullArtifact:
    """Stands in for an artifact: a model that computes nothing, with the tokenizer of the embedded sample."""

    def load(self, parameters: Mapping[str, Any]) -> LoadedArtifact:
        import torch
        from random_models import EmptyModel

        from qabuild.models.checkpoint.load import load_tokenizer
        from qabuild.qa.pipeline import QuestionAnsweringPipeline
        from qabuild.qa.sample import CHECKPOINT

        if not hasattr(self, "loaded"):
            torch.set_num_threads(1)
            pipeline = QuestionAnsweringPipeline(EmptyModel(), load_tokenizer(Path(CHECKPOINT)))
            self.loaded = LoadedArtifact(directory=Path(CHECKPOINT), pipeline=pipeline)
        return self.loaded


def answer(arguments: argparse.Namespace) -> None:
    """Answer a share of the questions: a shard, as "0/2", or all with Ray."""
    answerer: Any
    shard = (0, 1)
    if arguments.share == "ray":
        from qabuild.artifact.ray_engine import RayEngine

        answerer = RayEngine(artifact=NullArtifact(), workers=WORKERS)  # type: ignore[arg-type]
    else:
        answerer = NullArtifact().load({}).pipeline
        index, count = map(int, arguments.share.split("/"))
        shard = index, count
    part_rows = min(MAX_PART_ROWS, max(1, arguments.questions // PARTS))
    answer_dataset(answerer, arguments.input, arguments.output, part_rows=part_rows, shard=shard)


def started(arguments: argparse.Namespace, output: Path, share: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--questions", str(arguments.questions), "--input", str(arguments.input)]
    return subprocess.Popen([*command, "--output", str(output), "--share", share], env={**os.environ, **ONE_THREAD})


def measure(arguments: argparse.Namespace, output: Path, shares: list[str]) -> Measurement:
    """Run one process for each share to its end."""
    measurement = Measurement()
    begin = time.monotonic()
    processes = [started(arguments, output, share) for share in shares]
    sampled = 0.0
    while any(process.poll() is None for process in processes):
        if time.monotonic() - sampled > SAMPLE_SECONDS:
            sample(measurement, processes)
            sampled = time.monotonic()
        time.sleep(POLL_SECONDS)
    assert not any(process.returncode for process in processes)
    measurement.seconds = time.monotonic() - begin
    return measurement


def measure_killed(arguments: argparse.Namespace, output: Path) -> Measurement:
    """One process, which is killed and started again."""
    measurement = Measurement()
    begin = time.monotonic()
    for share in (*KILLS, None):
        process = started(arguments, output, "0/1")
        while process.poll() is None:
            sample(measurement, [process])
            if share and len(list(output.glob("_parts/*.json"))) >= share * PARTS:
                process.kill()
            time.sleep(POLL_SECONDS)
        assert process.returncode == (-signal.SIGKILL if share else 0)
    measurement.seconds = time.monotonic() - begin
    return measurement


def sample(measurement: Measurement, processes: list[subprocess.Popen[bytes]]) -> None:
    """Add the memory of the processes and of those that they started."""
    parents = {int(path.name): parent_of(path) for path in Path("/proc").glob("[0-9]*")}
    for process in processes:
        for pid in (process.pid, *descendants(process.pid, parents)):
            try:
                title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (OSError, IndexError):  # it has ended
                continue
            measurement.titles[pid] = Path(title).name
            measurement.memory.setdefault(pid, []).append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def parent_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def descendants(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    for child in [child for child, parent in parents.items() if parent == pid]:
        yield child
        yield from descendants(child, parents)


# --- results --------------------------------------------------------------------------------------------------------


def report(questions: int, runs: Mapping[str, Measurement], times: Sequence[float]) -> None:
    for name, run in runs.items():
        print(f"{name:20} {questions / run.seconds:8.0f} questions/s, {run.seconds:.0f} s")
        for pid, megabytes in run.memory.items():
            shown = [megabytes[int(share * (len(megabytes) - 1))] for share in (0.1, 0.5, 1.0)]
            life = " ".join(f"{value:6.0f}" for value in shown)
            print(f"  {run.titles[pid]:30} {life} MB, peak {max(megabytes):.0f} MB")
    seconds = {name: run.seconds for name, run in runs.items()}
    rounds = ", ".join(f"{each:.2f}" for each in times)
    print(f"two shards are {median(times):.2f} times as fast as one process ({rounds})")
    if "Ray, two workers" in seconds:
        overhead = seconds["Ray, two workers"] / seconds["two shards"] - 1
        print(f"Ray takes {overhead:.1%} more time than two shards, with its start")


def require_same(output: Path, expected: Path, questions: int) -> None:
    """Fail unless the parts of both hold the same answers, of each id from 0 on, in order."""
    from pyarrow import parquet

    count = 0
    for part in sorted(expected.glob("part-*.parquet")):
        table = parquet.read_table(part)
        assert parquet.read_table(output / part.name).equals(table), part.name
        assert table["id"].to_pylist() == list(range(count, count + table.num_rows)), part.name
        count += table.num_rows
    assert count == questions
    assert len(list(output.glob("part-*"))) == len(list(expected.glob("part-*")))


if __name__ == "__main__":
    main()
