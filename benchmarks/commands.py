"""Time the commands that compute nothing: help, a bad target, a plan, a cached build.

    python benchmarks/commands.py [--checkpoint CHECKPOINT] [--data dev-v1.1.json]

builds one eager artifact in a temporary folder, by default of the embedded sample. It then runs the commands, each in
its own process, taking turns in every round. It prints median and range in seconds, and the heavy packages that each
command imports. The last lines compare opening an artifact, with every digest checked, with sha256sum on its files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qabuild.system import machine

HEAVY = ("torch", "transformers", "numpy", "onnxruntime", "datasets", "huggingface_hub")

TARGET = """
[checkpoint]
model = {model}
[backend]
name = "eager"
[verify]
dataset = {data}
samples = 8
"""

Command = Callable[[], object]


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QABUILD_CACHE"] = str(Path(folder, "cache"))
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # pip installs compiled bytecode, so measure with it
        target, bad, output = Path(folder, "target.toml"), Path(folder, "bad.toml"), Path(folder, "artifacts")
        target.write_text(
            TARGET.format(model=json.dumps(arguments.checkpoint), data=json.dumps(arguments.data)), encoding="utf-8"
        )
        bad.write_text('[checkpoint]\nmodle = "sample"\n', encoding="utf-8")
        build = ["build", str(target), "--output", str(output)]
        subprocess.run([*qabuild(), *build], check=True, capture_output=True)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "qabuild --help": [*qabuild(), "--help"],
            "qabuild BAD_TARGET": [*qabuild(), str(bad)],
            "qabuild plan TARGET": [*qabuild(), "plan", str(target), "--output", str(output)],
            "qabuild TARGET, nothing to do": [*qabuild(), *build],
        }
        print(f"{machine.cpu()}, {machine.cores()} cores")
        runs = {name: as_command(command) for name, command in commands.items()}
        for name, seconds in race(runs, arguments.rounds).items():
            print(f"{name:32} {describe(seconds)}  {imported(commands[name])}")
        against_sha256sum(output / "target", arguments.rounds)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="sample", help="a checkpoint's folder")
    parser.add_argument("--data", default="sample", help="questions in SQuAD's JSON layout")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    for name in ("checkpoint", "data"):
        if (source := getattr(arguments, name)) != "sample":
            setattr(arguments, name, str(Path(source).absolute()))
    return arguments


def qabuild() -> list[str]:
    return [str(Path(sys.executable).with_name("qabuild"))]


def as_command(command: list[str]) -> Command:
    return lambda: subprocess.run(command, capture_output=True, check=False)


def race(commands: dict[str, Command], rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round; the first round only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name, run in commands.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def describe(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


def imported(command: list[str]) -> str:
    """The heavy packages that the command imports, by `-X importtime`."""
    if command[0] == sys.executable:
        return ""
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False
    )
    names = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines() if line.startswith("import time:")}
    return "imports " + (", ".join(sorted(names & set(HEAVY))) or "nothing heavy")


def against_sha256sum(artifact: Path, rounds: int) -> None:
    from qabuild.artifact.manifest import open_artifact

    files = [str(artifact / name) for name in open_artifact(artifact).manifest.files]
    size = sum(os.path.getsize(name) for name in files) / 1e6
    seconds = race(
        {"open": lambda: open_artifact(artifact), "sha256sum": as_command(["sha256sum", *files])},
        rounds,
    )
    ratio = statistics.median(own / other for own, other in zip(seconds["open"], seconds["sha256sum"], strict=True))
    print(f"{'open an artifact':32} {describe(seconds['open'])}  {len(files)} files, {size:.0f} MB")
    print(f"{'sha256sum of its files':32} {describe(seconds['sha256sum'])}")
    print(f"{'ratio':32} {ratio:.2f}")


if __name__ == "__main__":
    main()
