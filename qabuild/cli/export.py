"""`export`: artifacts in the layouts of other tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.options import common, signer_options, unverified_option
from qabuild.publishing import layouts
from qabuild.system.units import count_of, size_of


@click.command()
@click.argument("artifacts", nargs=-1, metavar="ARTIFACT...")
@click.option("--layout", type=click.Choice(list(layouts.LAYOUTS)), help="The layout to write.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="New folder for it.")
@click.option("--list", "lists", is_flag=True, help="List the layouts.")
@click.option("--revision", help="Branch, tag or commit of an artifact on the Hub.")
@click.option("--digest", metavar="SHA256", help="Required SHA-256 of the manifest.")
@signer_options
@unverified_option
@common
def export(
    artifacts: Sequence[str],
    layout: str | None,
    output: Path | None,
    lists: bool,
    revision: str | None,
    digest: str | None,
    signer: Any,
    allow_unverified: bool,
    console: Console,
) -> None:
    """Write ARTIFACT, a folder or a repository on the Hub (owner/name), to DIR in the layout of another tool.

    The README.md in DIR says how to use it, from which artifact it is, and in what its answers differ. Some layouts
    take several artifacts of one checkpoint. Replaces nothing, and refuses an artifact that did not pass its
    verification.
    """
    if lists:
        summaries = {name: layouts.layout(name).SUMMARY for name in layouts.LAYOUTS}
        console.result(summaries, lambda: table(["layout", "what it is"], list(summaries.items())))
        return
    if not artifacts or layout is None or output is None:
        raise click.UsageError("name an ARTIFACT, a --layout and a folder with -o; --list shows the layouts")
    from qabuild.publishing.export import export as export_artifact

    exported = export_artifact(
        artifacts,
        layout,
        output,
        revision=revision,
        digest=digest,
        key=signer,
        allow_unverified=allow_unverified,
        reporter=console,
    )
    summary = f"{exported.directory}: {layout}, {size_of(exported.size)} in {count_of(len(exported.files), 'file')}"
    console.result(exported.to_dict(), lambda: emit(summary))
