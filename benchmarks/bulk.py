"""Answer a Parquet file of a million questions into parts of Parquet, with one process and with two shards.

    python benchmarks/bulk.py

prints the questions per second of each, their ratio, and the peak memory of every process. The model returns the same
random logits for any window, so that the figures are those of reading, tokenising, decoding and writing. Each process
has one thread. The questions are those of the embedded sample, over and over. Run nothing else on the machine, which
needs two cores; --questions 10000 checks in a minute that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from qabuild.qa import data
from qabuild.qa.bulk import answer_dataset

PARTS = 20
"""At least: the two shards have as many each."""
MAX_PART_ROWS = 100_000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    arguments = parse()
    if arguments.shard:
        print(json.dumps(answer(arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="qabuild-bulk-", dir=arguments.folder) as folder:
        arguments.input = Path(folder) / "questions.parquet"
        write_questions(arguments.input, arguments.questions)
        size = arguments.input.stat().st_size / 1e6
        print(f"{arguments.questions} questions, {size:.0f} MB; {len(os.sched_getaffinity(0))} cores", flush=True)
        rates = [rate(arguments, Path(folder) / f"answers-{count}", count) for count in (1, 2)]
        print(f"ratio: {rates[1] / rates[0]:.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where to write the questions and answers, for a while")
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--shard", type=int, nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_questions(path: Path, count: int) -> None:
    import pyarrow
    from pyarrow import parquet

    questions = cycle(data.load(data.DatasetRef("sample", split="train")).questions)
    schema = pyarrow.schema({"id": pyarrow.int64(), "question": pyarrow.string(), "context": pyarrow.string()})
    with parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, count, MAX_PART_ROWS):
            rows = [
                {"id": number, "question": question.question, "context": question.context}
                for number, question in enumerate(islice(questions, min(MAX_PART_ROWS, count - first)), first)
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def rate(arguments: argparse.Namespace, output: Path, shards: int) -> float:
    """Questions per second of that many processes, from the start of the first to the end of the last."""
    command = [sys.executable, __file__, "--questions", str(arguments.questions), "--input", str(arguments.input)]
    processes = [
        subprocess.Popen(
            [*command, "--output", str(output), "--shard", str(number), str(shards)],
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
        )
        for number in range(shards)
    ]
    results: list[dict[str, Any]] = [json.loads(process.communicate()[0]) for process in processes]
    assert sum(result["rows"] for result in results) == arguments.questions
    seconds = max(result["end"] for result in results) - min(result["begin"] for result in results)
    memory = ", ".join(f"{result['megabytes']:.0f} MB" for result in results)
    print(f"processes: {shards}, {arguments.questions / seconds:.0f} questions/s, peak memory {memory}", flush=True)
    return float(arguments.questions / seconds)


def answer(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answer one shard in this process. Loading is not timed."""
    import torch
    from random_models import EmptyModel

    from qabuild.models.checkpoint.load import load_tokenizer
    from qabuild.qa.pipeline import QuestionAnsweringPipeline
    from qabuild.qa.sample import CHECKPOINT

    torch.set_num_threads(1)
    pipeline = QuestionAnsweringPipeline(EmptyModel(), load_tokenizer(Path(CHECKPOINT)))
    begin = time.time()
    summary = answer_dataset(
        pipeline,
        arguments.input,
        arguments.output,
        part_rows=min(MAX_PART_ROWS, max(1, arguments.questions // PARTS)),
        shard=tuple(arguments.shard),
    )
    end = time.time()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rows": summary.rows, "begin": begin, "end": end, "megabytes": kilobytes / 1024}


if __name__ == "__main__":
    main()
