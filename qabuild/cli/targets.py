"""`init` and `targets`: write a first target, copy a sample target, list targets."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.options import common, offline_option
from qabuild.errors import BadTarget

if TYPE_CHECKING:
    from qabuild.models.runtime import Device


@click.command()
@click.argument("checkpoint", default="sample", metavar="[CHECKPOINT]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file to write; the default is NAME.toml in the current folder, after the checkpoint.",
)
@click.option(
    "--data",
    metavar="SOURCE",
    help="The questions that verify: a file, or a Hub id; the default is rajpurkar/squad, or the sample's own.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where the artifact is to run; the default is cuda on a machine with an NVIDIA GPU, else cpu.",
)
@offline_option
@common
def init(
    checkpoint: str, output: Path | None, data: str | None, device: Device | None, offline: bool, console: Console
) -> None:
    """Write a target for CHECKPOINT: a path, a Hub id or `sample`, the embedded one.

    Among the backends that are ready on this machine and support the checkpoint, it takes what `qabuild doctor` expects
    to be fastest. Comments in the file say what to change. No file is overwritten.
    """
    from qabuild.target import scaffold
    from qabuild.target.read import load

    path = scaffold.write(checkpoint, output, data=data, device=device, offline=offline)
    target = load(path)
    console.say(f"{target.backend.name} in {target.runtime.dtype} on {target.runtime.device} is expected to be fastest")
    console.result({"target": str(path), **target.model_dump(mode="json")}, lambda: emit(str(path)))
    _say_next(path, console)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--copy",
    "sample",
    metavar="NAME",
    help="Copy a sample target and the files that it needs into FOLDER (by default the current folder).",
)
@common
def targets(folder: Path | None, sample: str | None, console: Console) -> None:
    """List the targets in FOLDER (by default ./targets or the current folder), and what each builds."""
    if sample is not None:
        _copy(sample, folder or Path(), console)
    else:
        _list(folder or (Path("targets") if Path("targets").is_dir() else Path()), console)


def _copy(sample: str, folder: Path, console: Console) -> None:
    from qabuild.target import sample_targets

    paths = [str(path) for path in sample_targets.copy(sample, folder)]
    console.result({"target": paths[0], "files": paths}, lambda: emit("\n".join(paths)))
    _say_next(paths[0], console)


def _list(folder: Path, console: Console) -> None:
    from qabuild.system.hub import is_path
    from qabuild.target.read import load

    files = sorted(folder.glob("*.toml"))
    if not files:
        raise BadTarget(
            f"{folder}: no targets here (*.toml)",
            "name a folder with targets; `qabuild init` writes one for a checkpoint, and `qabuild targets --copy NAME` "
            "copies a sample, such as quickstart",
        )
    rows, documents = [], []
    for file in files:
        try:
            target = load(file)
        except BadTarget as error:
            first = " ".join(error.message.split("\n")[:2])  # of several mistakes, their number and the first
            rows.append([str(file), "-", "-", "-", f"error: {first.removeprefix(f'{file}: ')}"])
            documents.append({"target": str(file), "error": error.message})
            continue
        runtime = f"{target.runtime.device} {target.runtime.dtype}"
        model = target.checkpoint.model
        if is_path(model):
            model = os.path.relpath(model)
        rows.append([str(file), model, target.backend.name, runtime, target.description])
        documents.append({"target": str(file), **target.model_dump(mode="json")})
    console.result(documents, lambda: table(["target", "checkpoint", "backend", "runtime", "what it builds"], rows))


def _say_next(target: str | Path, console: Console) -> None:
    name = shlex.quote(str(target))
    console.say(f"next: qabuild plan {name}, then qabuild build {name}")
