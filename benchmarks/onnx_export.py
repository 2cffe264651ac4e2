"""What the exporters of the ONNX Runtime backend make of every architecture.

    python benchmarks/onnx_export.py [--layers 2] [--level 2] [--device cpu] [--checkpoint CHECKPOINT ...]

exports and optimises a tiny random checkpoint of each architecture, or the given ones, with each exporter that is
installed. It prints a table of fused operators, seconds of both steps, and the largest difference of a logit of the
optimised graph from PyTorch. The first export of a process takes longer: one is done before the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qabuild.errors import QABuildError
from qabuild.models import support
from qabuild.models.backends import onnxruntime
from qabuild.models.backends.onnxruntime import session
from qabuild.models.backends.onnxruntime.options import Options
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.runtime import Runtime
from qabuild.system import machine, packages

HEADER = ("model type", "exporter", "fused", "export, s", "optimise, s", "largest difference")


def main() -> None:
    arguments = parse()
    exporters = ["torch"] if packages.missing({"optimum": (), "optimum-onnx": ()}, "cpu") else ["torch", "optimum"]
    versions = packages.versions(("torch", "transformers", "onnx", "onnxruntime", "optimum", "optimum-onnx"))
    print(f"{machine.cpu()}, {machine.cores()} cores; {', '.join(f'{name} {v}' for name, v in versions.items())}\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    with tempfile.TemporaryDirectory() as folder, session.quiet():
        for exporter in exporters:
            options = Options(exporter=exporter, level=arguments.level)
            runtime = Runtime(device=arguments.device)
            warmed_up = False
            for checkpoint in checkpoints(arguments, Path(folder, exporter)):
                try:
                    support.check(checkpoint.config, options, runtime)
                except QABuildError:
                    show(checkpoint, exporter, "refused", "", "", "")
                    continue
                if not warmed_up:
                    measure(checkpoint, options, runtime)
                    warmed_up = True
                show(checkpoint, exporter, *measure(checkpoint, options, runtime))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2, help="layers of the tiny checkpoints")
    parser.add_argument("--level", type=int, default=2, help="the target's backend.level: 1, 2 or 99")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the graphs are optimised for")
    parser.add_argument("--checkpoint", type=Path, nargs="+", default=[], help="checkpoints' folders")
    return parser.parse_args()


def checkpoints(arguments: argparse.Namespace, folder: Path) -> Iterator[Checkpoint]:
    """Those of the command line, or a tiny one of each architecture, written into `folder`."""
    yield from map(resolve, arguments.checkpoint)
    if not arguments.checkpoint:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
        import tiny

        for model_type in onnxruntime.EXPORTED.supported:
            yield resolve(tiny.make(folder / model_type, model_type, num_hidden_layers=arguments.layers))


def measure(checkpoint: Checkpoint, options: Options, runtime: Runtime) -> tuple[str, ...]:
    """The cells of a row, from `fused` on."""
    from qabuild.models.backends.onnxruntime import build
    from qabuild.models.backends.onnxruntime.fusions import count_fused
    from qabuild.models.backends.onnxruntime.graphs import FILE

    source = build.Source(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        exported = build.export_stage(source, options, Path(folder, "exported"))
        half = time.perf_counter()
        optimised = build.optimise_stage(exported, Path(folder, "optimised"), source, options, runtime)
        done = time.perf_counter()
        counts = ", ".join(f"{kind} {count}" for kind, count in count_fused(optimised / FILE).items())
        difference = build.Comparison(source, runtime).compare(optimised, "the optimised graph", "fp32")
        return counts or "nothing", f"{half - started:.1f}", f"{done - half:.1f}", f"{difference:.0e}"


def show(checkpoint: Checkpoint, exporter: str, *cells: Any) -> None:
    print("|", " | ".join((checkpoint.config["model_type"], exporter, *cells)), "|", file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
