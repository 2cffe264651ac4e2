"""`compare` and `report`: measure artifacts side by side."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import exit_interrupted, print_error
from qabuild.cli.options import BatchSizes, common, data_option, native_option, offline_option, require_writable
from qabuild.errors import BadTarget, QABuildError, VerificationFailed

if TYPE_CHECKING:
    from qabuild.evaluation.compare import Comparison


def measured_artifacts(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options that `compare` and `report` share."""

    @click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT|TARGET...")
    @click.option(
        "--baseline",
        metavar="NAME",
        help="Artifact that the others are compared with.  [the first that is eager fp32, or else the first]",
    )
    @data_option
    @click.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        help="Ask about N of the questions, rounded up to whole rounds of 32.  [all]",
    )
    @native_option
    @offline_option
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return wrapped


def batch_sizes_option(default: str) -> Callable[..., Any]:
    """Batch sizes to measure beside the target's."""
    return click.option(
        "--batch-sizes",
        type=BatchSizes(),
        default=default,
        show_default=bool(default),
        help="Measure at these batch sizes, too, as in 1,32.",
    )


@click.command()
@measured_artifacts
@batch_sizes_option("")
@click.option("--latency", is_flag=True, help="Measure the latency of single questions, too.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "csv", "markdown"]),
    default="table",
    show_default=True,
    help="Output format.",
)
@common
def compare(
    artifacts: Sequence[Path],
    batch_sizes: Sequence[int],
    latency: bool,
    layout: str,
    console: Console,
    **measuring: Any,
) -> None:
    """Measure artifacts side by side: speed, accuracy, latency, size.

    Loads each artifact in its own process. They take turns answering the questions that they were verified on. A
    TARGET stands for its artifact in ./artifacts. Brackets hold 95 % intervals. EM and F1 are of the very answers that
    were timed. The first 64 questions are repeated in the batches of the verification and must give the same answers;
    all answers together must pass its gates, unless --samples asks for a part. Otherwise the exit status is 1. If you
    interrupt it after two rounds, what is complete by then is printed, and the exit status is 130.
    """
    from qabuild.evaluation.compare import tables

    if console.json and layout in ("csv", "markdown"):
        raise click.UsageError(f"--json and --format {layout} contradict each other: name one of them")
    console.json |= layout == "json"
    comparison = _measure(artifacts, console, batch_sizes=batch_sizes, latency=latency, **measuring)
    layouts = {
        "csv": lambda: emit(tables.to_csv(comparison)),
        "markdown": lambda: emit(tables.to_markdown(comparison)),
        "table": lambda: table(tables.columns(comparison), tables.rows(comparison)),
    }
    console.say(tables.conditions(comparison))
    console.result(comparison.to_dict(), layouts.get(layout, layouts["table"]))
    _exit_on_failure(comparison)


@click.command()
@measured_artifacts
@batch_sizes_option("1,32")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="File for the page.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the plot of speed against F1, too.",
)
@common
def report(
    artifacts: Sequence[Path],
    batch_sizes: Sequence[int],
    output: Path,
    png: Path | None,
    console: Console,
    **measuring: Any,
) -> None:
    """Measure artifacts as `compare` does, and write the results as one self-contained HTML page.

    The page shows speed against accuracy, all figures, latency, speed by length and batch size, the origin of each
    artifact, and every answer that differs from the baseline's, in its context. The exit status is that of `compare`.
    """
    from qabuild.evaluation.compare import tables
    from qabuild.evaluation.report import PACKAGES, write_page, write_picture
    from qabuild.system import packages

    packages.require(dict.fromkeys(PACKAGES, ("report",)), "cpu")
    if output.suffix.lower() not in (".html", ".htm"):
        raise BadTarget(f"{output}: the page is written as HTML only", "name a file that ends in .html")
    if png and png.suffix.lower() != ".png":
        raise BadTarget(f"{png}: the picture is written as PNG only", "name a file that ends in .png")
    for path in filter(None, (output, png)):
        require_writable(path)
    comparison = _measure(artifacts, console, batch_sizes=batch_sizes, latency=True, **measuring)
    write_page(comparison, output.resolve())  # a symbolic link stays one
    if png:
        write_picture(comparison, png.resolve())
    console.say(tables.conditions(comparison))
    console.say(f"written: {', '.join(str(path) for path in (output, png) if path)}")
    console.result(comparison.to_dict(), lambda: table(tables.columns(comparison), tables.rows(comparison)))
    _exit_on_failure(comparison)


def _measure(artifacts: Sequence[Path], console: Console, *, dataset: str | None, **measuring: Any) -> Comparison:
    """The comparison; if the user interrupts it, what had been measured."""
    from qabuild.evaluation.compare import InterruptedComparison
    from qabuild.evaluation.compare import compare as compare_artifacts
    from qabuild.target.read import absolute_source

    source = dataset and absolute_source(dataset, Path.cwd())
    try:
        return compare_artifacts(artifacts, dataset=source, reporter=console, **measuring)
    except InterruptedComparison as interrupted:
        return interrupted.comparison


def _exit_on_failure(comparison: Comparison) -> None:
    """Print the failures of a comparison, and exit with the status of the first; or as interrupted, if it was."""
    from qabuild.artifact.evidence import describe

    for failure in comparison.failures:
        print_error(QABuildError(failure.error, failure.hint))
    for artifact in comparison.measured:
        for gate in artifact.failed_gates:
            if gate.name == "verified":
                print_error(VerificationFailed(f"{artifact.name} failed its verification", "`qabuild show` says why"))
            else:
                print_error(
                    VerificationFailed(f"{artifact.name} does not answer as it was verified\n  {describe(gate)}")
                )
    if comparison.interrupted:
        exit_interrupted()
    statuses = [failure.status for failure in comparison.failures]
    if not comparison.passed:
        sys.exit(statuses[0] if statuses else VerificationFailed.exit_status)
