"""`tune`: find the best artifact of a checkpoint on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import goes_on, print_error
from qabuild.cli.options import common, data_option, offline_option
from qabuild.errors import VerificationFailed

if TYPE_CHECKING:
    from qabuild.tuning.result import Tuned


@click.command()
@click.argument("checkpoint", metavar="CHECKPOINT|TARGET")
@data_option
@click.option(
    "--train-data",
    "train_dataset",
    metavar="SOURCE",
    help="Questions to calibrate int8 and to prune on.  [rajpurkar/squad, or the target's]",
)
@click.option(
    "--max-f1-drop",
    type=float,
    metavar="POINTS",
    help="Most points of F1 that may be lost from the original checkpoint.  [0.5, or the target's]",
)
@click.option(
    "--objective",
    type=click.Choice(["throughput", "latency", "size"]),
    default="throughput",
    show_default=True,
    help="What is best: questions/s in batches, median latency of single questions, or bytes.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), help="Where it runs.  [cuda where there is one, else cpu]"
)
@click.option(
    "--backend",
    "backends",
    metavar="NAME",
    multiple=True,
    help="Try this backend only; may be repeated.  [all]",
)
@click.option("--budget", default="30m", show_default=True, metavar="TIME", help="Time: 90s, 30m, 1h30m.")
@click.option(
    "--samples",
    type=int,
    default=1024,
    show_default=True,
    metavar="N",
    help="Questions of the final comparison, at least 256.",
)
@click.option("--allow", type=click.Choice(["prune"]), multiple=True, help="Try narrower models, too.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tuned"),
    show_default=True,
    help="Folder for all that it writes.",
)
@offline_option
@common
def tune(
    checkpoint: str, console: Console, dataset: str | None, allow: Sequence[str], output: Path, **options: Any
) -> None:
    """Find the fastest artifact of a checkpoint that keeps its answers on this machine.

    CHECKPOINT is a folder, a Hub id, `sample`, or a TARGET to start from. Every backend, dtype and option that this
    machine can run is built and screened on few questions. The best are verified on all questions; those that lose at
    most --max-f1-drop take turns, and the fastest wins. Of several that cannot be told apart, the simplest wins.

    Writes OUTPUT/tuned.toml, a target like any other, with its lock, OUTPUT/artifacts/tuned and OUTPUT/report.html.
    If it is interrupted, the next run goes on from there. If no candidate passes, the exit status is 1.
    """
    from qabuild.tuning.request import tune as tune_checkpoint

    goes_on.append(True)
    tuned = tune_checkpoint(checkpoint, dataset=dataset, allow=allow, output=output, reporter=console, **options)
    console.result(tuned.to_dict(), lambda: _show(tuned))
    if tuned.winner is None:
        print_error(VerificationFailed(tuned.why, "the table says what each loses; --max-f1-drop allows more"))
        sys.exit(VerificationFailed.exit_status)


def _show(tuned: Tuned) -> None:
    table(*tuned.table())
    for remark in tuned.remarks:
        emit(f"note: {remark}")
    if tuned.winner is not None:
        emit(f"{tuned.winner}: {tuned.why}")
        emit(f"written: {', '.join(str(path) for path in (tuned.target, tuned.artifact, tuned.page) if path)}")
