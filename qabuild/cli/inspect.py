"""`cache`, `targets`, `doctor` and `schema`: what is here, and what can be done with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.options import AGES, SIZES, Quantity, common
from qabuild.cli.units import size_of
from qabuild.errors import BadTarget, UntrustedInput

if TYPE_CHECKING:
    from qabuild.builder.store.gc import Kept

KEPT = ["key", "step", "what", "size", "unused for"]


@click.group()
def cache() -> None:
    """What is kept of earlier builds: list it, make room, look whether it is whole."""


@cache.command("list")
@common
def cache_list(console: Console) -> None:
    """List the results in the cache, the longest unused first."""
    from qabuild.builder.store import gc as keeping
    from qabuild.builder.store.local import Store

    store = Store()
    found = keeping.contents(store)
    console.say(str(store.root))
    console.result([_kept_document(kept) for kept in found], lambda: table(KEPT, _kept_rows(found)))


@cache.command("prune")
@click.option("--older-than", metavar="AGE", type=Quantity(AGES), help="Drop what was not used for so long: 30d, 12h.")
@click.option("--max-size", metavar="SIZE", type=Quantity(SIZES), help="Then the longest unused, down to: 5GB, 500MB.")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@common
def cache_prune(older_than: float | None, max_size: float | None, dry_run: bool, console: Console) -> None:
    """Drop results by age and size, and what is damaged or was left half-made. Artifacts are not touched."""
    from qabuild.builder.store import gc as keeping
    from qabuild.builder.store.local import Store

    size = None if max_size is None else int(max_size)
    gone = keeping.prune(Store(), older_than=older_than, max_size=size, dry_run=dry_run)
    console.say("would be dropped:" if dry_run else "dropped:")
    console.result([_kept_document(kept) for kept in gone], lambda: table(KEPT, _kept_rows(gone)))


@cache.command("verify")
@common
def cache_verify(console: Console) -> None:
    """Hash every file of every result; what is damaged is dropped, and made anew when it is next wanted."""
    from qabuild.builder.store import gc as keeping
    from qabuild.builder.store.local import Store

    whole, damaged = keeping.verify(Store())
    document = {"whole": len(whole), "damaged": [_kept_document(kept) for kept in damaged]}
    console.result(document, lambda: emit(f"{len(whole)} results are whole, {len(damaged)} were damaged"))
    if damaged:
        click.echo("the next build that wants them makes them anew; if this comes again, look at the disk", err=True)
        sys.exit(UntrustedInput.exit_status)


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@common
def targets(folder: Path | None, console: Console) -> None:
    """List the targets in FOLDER (./targets, or here), with what each makes."""
    from qabuild.system.hub import is_path
    from qabuild.target.read import load

    folder = folder or (Path("targets") if Path("targets").is_dir() else Path())
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise BadTarget(f"{folder}: no targets here (*.toml)", "name a folder that has some: qabuild targets FOLDER")
    rows, documents = [], []
    for file in files:
        try:
            target = load(file)
        except BadTarget as error:
            first = " ".join(error.message.split("\n")[:2])  # of several mistakes, how many and the first
            rows.append([str(file), "-", "-", "-", f"error: {first.removeprefix(f'{file}: ')}"])
            documents.append({"target": str(file), "error": error.message})
            continue
        made = f"{target.runtime.device} {target.runtime.dtype}"
        model = target.checkpoint.model
        if is_path(model):
            model = os.path.relpath(model)
        rows.append([str(file), model, target.backend.name, made, target.description])
        documents.append({"target": str(file), **target.model_dump(mode="json")})
    console.result(documents, lambda: table(["target", "checkpoint", "backend", "runtime", "what it makes"], rows))


@click.command()
@click.argument("targets", nargs=-1, type=click.Path(path_type=Path), metavar="[TARGET...]")
@common
def doctor(targets: Sequence[Path], console: Console) -> None:
    """Say what this machine can build and run, and what it lacks for each TARGET (all of ./targets)."""
    from qabuild.target.read import load

    read = [load(path) for path in targets or sorted(Path("targets").glob("*.toml"))]
    from qabuild.cli.doctor_report import report

    found = report(read)

    def show() -> None:
        table(["part", "found", "remark"], [[f["subject"], f["found"], f["note"]] for f in found["machine"]])
        table(["backend", "here"], [[name, "; ".join(lacks) or "ready"] for name, lacks in found["backends"].items()])
        rows = [[t["target"], "; ".join(t["missing"]) or t["slow"] or "ready"] for t in found["targets"]]
        if rows:
            table(["target", "here"], rows)

    console.result(found, show)


@click.command()
@common
def schema(console: Console) -> None:
    """Print the JSON Schema of a target, for editors."""
    from qabuild.target.model import json_schema

    document = json_schema()
    console.result(document, lambda: emit(json.dumps(document, indent=2)))


def _kept_document(kept: Kept) -> dict[str, Any]:
    return {**asdict(kept), "age": round(kept.age)}


def _kept_rows(everything: Sequence[Kept]) -> list[list[str]]:
    """The longest unused first, and a last row that sums up."""
    rows = [[k.key[:12], k.step, k.what, size_of(k.size), _days(k.age)] for k in everything]
    return [*rows, [f"{len(rows)} results", "", "", size_of(sum(k.size for k in everything)), ""]]


def _days(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"
