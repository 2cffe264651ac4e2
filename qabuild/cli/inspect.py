"""`cache`, `doctor` and `schema`: what this machine holds and can do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, print_message, table
from qabuild.cli.options import AGES, SIZES, Quantity, common
from qabuild.errors import UntrustedInput
from qabuild.system.units import count_of, size_of

if TYPE_CHECKING:
    from qabuild.builder.store.gc import CachedResult

COLUMNS = ["key", "step", "what", "size", "unused for"]


@click.group()
def cache() -> None:
    """Manage the cache of step results: list, prune or verify them."""


@cache.command("list")
@common
def cache_list(console: Console) -> None:
    """List the cached results, least recently used first."""
    from qabuild.builder.store import gc
    from qabuild.builder.store.local import Store

    store = Store()
    results = gc.contents(store)
    console.say(str(store.root))
    console.result([_document(result) for result in results], lambda: table(COLUMNS, _rows(results)))


@cache.command("prune")
@click.option("--older-than", metavar="AGE", type=Quantity(AGES), help="Drop results unused for this long: 30d, 12h.")
@click.option(
    "--max-size",
    metavar="SIZE",
    type=Quantity(SIZES),
    help="Then drop the least recently used, down to 5GB, 500MB.",
)
@click.option("--dry-run", is_flag=True, help="List what would be dropped; drop nothing.")
@common
def cache_prune(older_than: float | None, max_size: float | None, dry_run: bool, console: Console) -> None:
    """Drop results by age and size, and damaged or partial ones. Artifacts are not touched."""
    from qabuild.builder.store import gc
    from qabuild.builder.store.local import Store

    size = None if max_size is None else int(max_size)
    dropped = gc.prune(Store(), older_than=older_than, max_size=size, dry_run=dry_run)
    console.say("nothing to drop" if not dropped else "would be dropped:" if dry_run else "dropped:")
    console.result([_document(result) for result in dropped], lambda: table(COLUMNS, _rows(dropped)))


@cache.command("verify")
@common
def cache_verify(console: Console) -> None:
    """Check the digest of every cached file, and drop damaged results. The next build that needs them rebuilds them."""
    from qabuild.builder.store import gc
    from qabuild.builder.store.local import Store

    intact, damaged = gc.verify(Store())
    document = {"intact": len(intact), "damaged": [_document(result) for result in damaged]}
    console.result(document, lambda: emit(f"{count_of(len(intact), 'result')} intact, {len(damaged)} damaged"))
    if damaged:
        print_message("the next build that needs them rebuilds them; if this happens again, check the disk")
        sys.exit(UntrustedInput.exit_status)


@click.command()
@click.argument("targets", nargs=-1, type=click.Path(path_type=Path), metavar="[TARGET...]")
@common
def doctor(targets: Sequence[Path], console: Console) -> None:
    """Report what this machine can build and run, and what is missing for each TARGET (by default all of ./targets)."""
    from qabuild.target.read import load

    loaded = [load(path) for path in targets or sorted(Path("targets").glob("*.toml"))]
    from qabuild.cli.doctor_report import report

    findings = report(loaded)

    def show() -> None:
        table(["part", "found", "remark"], [[f["subject"], f["found"], f["note"]] for f in findings["machine"]])
        backends = findings["backends"].items()
        table(["backend", "status"], [[name, "; ".join(missing) or "ready"] for name, missing in backends])
        rows = [[t["target"], "; ".join(t["missing"]) or t["slow"] or "ready"] for t in findings["targets"]]
        if rows:
            table(["target", "status"], rows)

    console.result(findings, show)


@click.command()
@common
def schema(console: Console) -> None:
    """Print the JSON Schema of a target, for editors."""
    from qabuild.target.model import json_schema

    document = json_schema()
    console.result(document, lambda: emit(json.dumps(document, indent=2)))


def _document(result: CachedResult) -> dict[str, Any]:
    return {**asdict(result), "age": round(result.age)}


def _rows(results: Sequence[CachedResult]) -> list[list[str]]:
    """One row per result, and a last row with the totals."""
    rows = [[r.key[:12], r.step, r.what, size_of(r.size), _duration(r.age)] for r in results]
    return [*rows, [count_of(len(rows), "result"), "", "", size_of(sum(r.size for r in results)), ""]]


def _duration(seconds: float) -> str:
    if seconds < 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"
