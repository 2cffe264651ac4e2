"""`compare` and `report`: artifacts side by side."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import complain
from qabuild.cli.options import BatchSizes, common, offline_option
from qabuild.errors import BadTarget, QABuildError, VerificationFailed

if TYPE_CHECKING:
    from qabuild.evaluation.compare import Comparison


def comparing(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `compare` and `report` have in common: the arguments and options that say what is measured."""

    @click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT|TARGET...")
    @click.option(
        "--baseline",
        metavar="NAME",
        help="Which of them the others are held against.  [the first that is eager fp32, or else the first]",
    )
    @click.option("--data", "dataset", metavar="SOURCE", help="Where the questions are: a SQuAD-layout file, a Hub id.")
    @offline_option
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    return wrapped


def batch_sizes_option(default: str) -> Callable[..., Any]:
    """Batch sizes beside that of the target."""
    return click.option(
        "--batch-sizes",
        type=BatchSizes(),
        default=default,
        show_default=bool(default),
        help="Measure at these batch sizes beside that of the target, as in 1,32.",
    )


@click.command()
@comparing
@batch_sizes_option("")
@click.option("--latency", is_flag=True, help="Ask questions one by one as well, at batch size 1.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["table", "json", "csv", "markdown"]),
    default="table",
    show_default=True,
    help="How to print it.",
)
@common
def compare(
    artifacts: Sequence[Path],
    baseline: str | None,
    batch_sizes: Sequence[int],
    latency: bool,
    dataset: str | None,
    offline: bool,
    layout: str,
    console: Console,
) -> None:
    """Measure artifacts side by side: speed, accuracy, latency, size.

    All are loaded, each in a process of its own, and answer the questions that they were verified on, taking turns.
    Of a target the artifact in ./artifacts is taken. In brackets stand 95 % intervals. The answers that are scored
    are those that were timed. The first 64, asked again in the batches of the verification, must be what they were
    then, and all together must pass its gates; the exit status is 1 where they do not.
    """
    from qabuild.evaluation.compare import compare as compare_artifacts
    from qabuild.evaluation.compare import tables
    from qabuild.target.read import absolute_source

    console.json |= layout == "json"
    found = compare_artifacts(
        artifacts,
        baseline=baseline,
        batch_sizes=batch_sizes,
        latency=latency,
        dataset=dataset and absolute_source(dataset, Path.cwd()),
        offline=offline,
        reporter=console,
    )
    shown = {
        "csv": lambda: emit(tables.comma_separated(found)),
        "markdown": lambda: emit(tables.markdown(found)),
        "table": lambda: table(tables.columns(found), tables.rows(found)),
    }
    console.say(tables.conditions(found))
    console.result(found.to_dict(), shown.get(layout, shown["table"]))
    _leave(found)


@click.command()
@comparing
@batch_sizes_option("1,32")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="Where the page goes.",
)
@click.option(
    "--png", type=click.Path(path_type=Path, dir_okay=False), help="Write speed against F1 as a picture, too."
)
@common
def report(
    artifacts: Sequence[Path],
    baseline: str | None,
    batch_sizes: Sequence[int],
    dataset: str | None,
    offline: bool,
    output: Path,
    png: Path | None,
    console: Console,
) -> None:
    """Measure artifacts as `compare` does, and make one page of all that was found, which needs no network.

    The page shows speed against accuracy, all figures, latency, speed by length and batch size, where each artifact
    comes from, and every answer that is not that of the baseline, in its context. The exit status is that of `compare`.
    """
    from qabuild.evaluation import report as reporting
    from qabuild.evaluation.compare import compare as compare_artifacts
    from qabuild.evaluation.compare import tables
    from qabuild.system import packages
    from qabuild.target.read import absolute_source

    packages.require(dict.fromkeys(reporting.PACKAGES, ("report",)), "cpu")
    if output.suffix.lower() not in (".html", ".htm"):
        raise BadTarget(f"{output}: the page is written as HTML only", "name a file that ends in .html")
    if png and png.suffix.lower() != ".png":
        raise BadTarget(f"{png}: the picture is written as PNG only", "name a file that ends in .png")
    for path in filter(None, (output, png)):
        _require_place(path)
    found = compare_artifacts(
        artifacts,
        baseline=baseline,
        batch_sizes=batch_sizes,
        latency=True,
        dataset=dataset and absolute_source(dataset, Path.cwd()),
        offline=offline,
        reporter=console,
    )
    reporting.write_page(found, output.resolve())  # a symbolic link stays one
    if png:
        reporting.write_picture(found, png.resolve())
    console.say(tables.conditions(found))
    console.say(f"written: {', '.join(str(path) for path in (output, png) if path)}")
    console.result(found.to_dict(), lambda: table(tables.columns(found), tables.rows(found)))
    _leave(found)


def _require_place(path: Path) -> None:
    """Refuse what cannot be written to `path`, before minutes are spent on measuring."""
    import tempfile

    from qabuild.artifact import manifest

    if path.exists() and not path.is_file():  # a device, for one, which would be gone for all that use it
        raise BadTarget(f"{path}: is no file, and would be replaced by one", "name another file")
    place = path.resolve()
    manifest.require_outside(place)
    if not place.parent.exists():
        raise BadTarget(f"{path}: there is no folder {place.parent}", "make it, or name another file")
    try:
        tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise BadTarget(f"{path}: cannot be written: {error.strerror}", "name another file") from error


def _leave(found: Comparison) -> None:
    """Tell what failed in a comparison, and leave with the status of the first failure."""
    from qabuild.artifact.evidence import describe

    for failure in found.failures:
        complain(QABuildError(failure.error, failure.hint))
    for each in found.measured:
        for gate in each.failed_gates:
            complain(VerificationFailed(f"{each.name} does not answer as it was verified\n  {describe(gate)}"))
    statuses = [failure.status for failure in found.failures]
    if not found.passed:
        sys.exit(statuses[0] if statuses else VerificationFailed.exit_status)
