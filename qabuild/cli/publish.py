"""`publish` and `build --publish`: push artifacts to the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import require_uninterrupted, to_qabuild_error
from qabuild.cli.options import common, data_option
from qabuild.cli.results import Outcome, describe_published
from qabuild.errors import BadTarget, QABuildError
from qabuild.system.units import size_of

if TYPE_CHECKING:
    from qabuild.builder.build import Built
    from qabuild.publishing.publish import Published
    from qabuild.target.model import Target


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--repo", metavar="OWNER/NAME", help="Repository to push to; by default the target's publish.repo.")
@click.option("--private", is_flag=True, help="Create the repository as private.")
@click.option("--revision", default="main", show_default=True, metavar="BRANCH", help="Branch to push to.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing to the branch.")
@click.option("--tag", metavar="NAME", help="Tag the commit, as in --tag v1.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="List the files that would be pushed, their sizes, and what they show of the questions; push nothing.",
)
@click.option("--verify-remote", is_flag=True, help="Run the verification on the fetched copy, too.")
@click.option("--sign", metavar="FILE", type=click.Path(path_type=Path), help="Sign it first, by that private key.")
@data_option
@common
def publish(artifact: Path, repo: str | None, dataset: str | None, console: Console, **options: Any) -> None:
    """Push a verified ARTIFACT to the Hugging Face Hub in one commit, fetch it back, and check it.

    Refuses an artifact that is unverified, changed since its verification, or would replace anything but an earlier
    build of its target. Verifies it again if it was not verified on this machine. After a failure, run it again: it
    completes what is left.
    """
    from qabuild.publishing.publish import publish as publish_artifact
    from qabuild.target.read import absolute_source

    source = dataset and absolute_source(dataset, Path.cwd())
    published = publish_artifact(artifact, repo, dataset=source, reporter=console, **options)
    console.result(published.to_dict(), lambda: _show_published(published))


def require_publishable(targets: Sequence[Target], console: Console) -> None:
    """Refuse, before any build starts, targets whose artifacts could not be published."""
    from qabuild.publishing.publish import require_ready

    repos = [target.publish.repo for target in targets if target.publish.repo]
    if twice := sorted({repo for repo in repos if repos.count(repo) > 1}):
        raise BadTarget(f"two targets are published to {', '.join(twice)}", "give each a publish.repo of its own")
    for target in targets:
        require_ready(target.publish.repo, f"target {target.name}", console)


def then_published(outcome: Outcome, built: Built, console: Console) -> Outcome:
    from qabuild.publishing.publish import publish as publish_artifact

    require_uninterrupted()
    try:
        target = built.plan.target
        dataset = str(target.verify.dataset)
        published = publish_artifact(built.directory, target.publish.repo, dataset=dataset, reporter=console)
    except (QABuildError, OSError, MemoryError) as error:
        require_uninterrupted(error)
        return replace(outcome, error=to_qabuild_error(error))
    return replace(outcome, published=published, document={**outcome.document, "published": published.to_dict()})


def _show_published(published: Published) -> None:
    if published.commit is None or published.changed:
        table(["file", "", "size"], [[c.name, c.does, size_of(c.size)] for c in published.changes])
    if published.commit is None:
        emit(f"shown {published.data}")
    emit(describe_published(published))
    if published.unchecked:
        emit(f"{published.repo}: not compared with the Hub: {published.unchecked}")
