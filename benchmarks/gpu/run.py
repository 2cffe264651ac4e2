"""Measure qabuild on a GPU in minutes: one script, in sections, the most important first.

    python benchmarks/gpu/run.py --output FOLDER --checkpoint CHECKPOINT --data dev-v1.1.json --train train-v1.1.json

runs each section of `sections.py` in a process of its own, which is killed at the section's limit, and none beyond
--seconds, with which the limits grow. It appends every measurement to FOLDER/results.jsonl as it comes; what is printed
goes to FOLDER/log.txt as well. A section whose material is missing is skipped, and the results say so. A further run
with the same --work goes on with the sections that did not finish. --material FOLDER is what `unpack.py` made.

    python benchmarks/gpu/run.py --device cpu --quick --output FOLDER

runs everything on the embedded sample, to test the script.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bench import RESULTS, ROOT, Bench, latest, mend
from sections import SECTIONS, Section

from qabuild.qa import sample
from qabuild.system import machine, packages

FINISHED, SKIPPED, TIMED_OUT, FAILED = "finished", "skipped", "timed out", "failed"
VERSIONS = ("torch", "transformers", "onnxruntime", "deepspeed", "tokenizers", "numpy", "triton")
SECONDS = 530.0
"""Of a whole run. The limits of the sections are meant for it, and grow with --seconds."""
EXTENSIONS = "torch_extensions"
"""The folder for DeepSpeed's kernels, which are compiled once for all sections."""
LEAST = 10.0
"""Seconds below which no section is begun."""


def main() -> None:
    arguments = parse()
    bench = bench_of(arguments)
    for folder in (bench.work, bench.output):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.section:
        section = next(section for section in SECTIONS if section.name == arguments.section)
        section.measure(bench)
        return
    mend(earlier := bench.work / RESULTS)
    if earlier.exists() and bench.output != bench.work:
        shutil.copyfile(earlier, bench.output / RESULTS)
    run(bench, [section for section in SECTIONS if section.name in arguments.sections], arguments.seconds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="where the results go")
    parser.add_argument("--work", type=Path, help="artifacts and cached results  [OUTPUT]")
    parser.add_argument("--material", type=Path, help="a folder that unpack.py made")
    parser.add_argument("--checkpoint", type=Path, help="fine-tuned on SQuAD")
    parser.add_argument("--data", type=Path, help="SQuAD layout; the questions to answer")
    parser.add_argument("--train", type=Path, help="SQuAD layout; the questions to train on")
    parser.add_argument("--environment", type=Path, help="of transformers 4.57, as benchmarks/stock.py makes it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a few questions, by default of the embedded sample")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the whole run  [530]")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--sections", nargs="+", choices=names, default=names, help="only these")
    parser.add_argument("--section", choices=names, help=argparse.SUPPRESS)  # run in this process
    return parser.parse_args()


def bench_of(arguments: argparse.Namespace) -> Bench:
    """The material that was named, else that of --material, else with --quick the embedded sample."""
    defaults = {"checkpoint": sample.CHECKPOINT, "data": sample.HELDOUT, "train": sample.TRAIN}
    in_material = {"checkpoint": "checkpoint", "data": "dev.json", "train": "train.json", "environment": "stock"}

    def find(name: str) -> Path | None:
        given: Path | None = getattr(arguments, name)
        unpacked = arguments.material and arguments.material / in_material[name]
        fallback = defaults.get(name) if arguments.quick else None
        path = given or (unpacked if unpacked and unpacked.exists() else fallback)
        return path and path.resolve()

    return Bench(
        device=arguments.device,
        quick=arguments.quick,
        **{name: find(name) for name in in_material},
        work=(arguments.work or arguments.output).resolve(),
        output=arguments.output.resolve(),
    )


def run(bench: Bench, sections: Sequence[Section], seconds: float) -> None:
    """Run the sections that have not finished in an earlier run, as long as there is time."""
    ends = time.monotonic() + seconds
    done = {name for name, line in latest(bench.lines(), "sections").items() if line["status"] == FINISHED}
    bench.add(
        "run",
        "environment",
        machine=machine.describe(),
        versions=packages.versions(VERSIONS),
        stock=versions_in(bench.environment),
        command=shlex.join(sys.argv),
        quick=bench.quick,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    for section in sections:
        if section.name in done:
            continue
        left = ends - time.monotonic()
        if lacking := bench.lacks(section.needs):
            bench.add("sections", section.name, status=SKIPPED, why=f"no {', '.join(lacking)}")
        elif left < LEAST:
            bench.add("sections", section.name, status=SKIPPED, why="no time left")
        else:
            begin = time.monotonic()
            status = run_in_child(bench, section, min(left, section.seconds * seconds / SECONDS))
            bench.add("sections", section.name, status=status, seconds=round(time.monotonic() - begin, 1))


def run_in_child(bench: Bench, section: Section, seconds: float) -> str:
    """Run the section in a process group of its own, and kill all of it at the limit."""
    command = [sys.executable, *sys.argv, "--section", section.name]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONUNBUFFERED": "1",
        "QABUILD_CACHE": str(bench.work / "cache"),
        "TORCH_EXTENSIONS_DIR": str(bench.work / EXTENSIONS),
    }
    with (bench.output / "log.txt").open("ab") as log:
        print(f"== {section.name}, at most {seconds:.0f} s", flush=True)
        log.write(f"== {section.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            return FINISHED if follow(process, log, seconds) == 0 else FAILED
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for lock in (bench.work / EXTENSIONS).rglob("lock"):  # of a compilation that was killed: others would wait
                lock.unlink()


def follow(process: subprocess.Popen[bytes], log: IO[bytes], seconds: float) -> int:
    """Copy the output to the log and to stdout until the process ends. Raises TimeoutExpired after the seconds."""
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    ends = time.monotonic() + seconds
    while True:
        status = process.poll()
        while text := process.stdout.read(1 << 16):
            log.write(text)
            log.flush()
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        if status is not None:
            return status
        if time.monotonic() > ends:
            raise subprocess.TimeoutExpired(process.args, seconds)
        time.sleep(0.1)


def versions_in(environment: Path | None) -> dict[str, str]:
    """The packages of the stock pipeline's environment; empty where there is none."""
    if environment is None:
        return {}
    names = ("transformers", "optimum", "onnxruntime", "onnxruntime-gpu")
    code = (
        "import importlib.metadata as m\n"
        f"for name in {names}:\n"
        "    try: print(name, m.version(name))\n"
        "    except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([environment / "bin" / "python", "-c", code], capture_output=True, text=True, check=False)
    return dict(line.split() for line in done.stdout.splitlines())


if __name__ == "__main__":
    main()
