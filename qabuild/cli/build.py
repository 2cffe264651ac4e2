"""`build`, `verify`, `plan` and `lock`: from targets to artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.options import (
    artifact_folders,
    common,
    data_option,
    locked_option,
    offline_option,
    output_option,
    set_option,
    target_files,
)
from qabuild.cli.publish import require_publishable, then_published
from qabuild.cli.results import Outcome, attempt_to, conclude, failure
from qabuild.errors import BadTarget, QABuildError

if TYPE_CHECKING:
    from qabuild.builder.build import Built
    from qabuild.builder.plan import PlanStep
    from qabuild.target.model import Target


@click.command()
@target_files
@output_option
@set_option
@locked_option
@offline_option
@click.option("--compile-only", is_flag=True, help="Seal without verifying, also for a device that is not here.")
@click.option("--publish", "then_publish", is_flag=True, help="Publish what passed to the target's publish.repo.")
@common
def build(
    targets: Sequence[Path],
    output: Path,
    overrides: Sequence[str],
    locked: bool,
    offline: bool,
    compile_only: bool,
    then_publish: bool,
    console: Console,
) -> None:
    """Build each TARGET, and prove it.

    What passes its verification is put at OUTPUT/NAME; what fails goes to OUTPUT/NAME.failed and leaves the NAME of
    an earlier build as it was.
    """
    from qabuild.models.training import distributed
    from qabuild.target.lock import load

    place = distributed.current()
    if place.rank > 0:
        place.follow()
        return
    read = [load(path, overrides, locked=locked) for path in targets]
    _require_distinct(read)
    if then_publish:
        if compile_only or offline:
            raise click.UsageError("--publish goes with neither --compile-only nor --offline")
        require_publishable(read, console)
    from qabuild.builder.build import build as build_target

    def attempt(target: Target) -> Outcome:
        if len(read) > 1:
            console.say(f"== {target.name}")
        built = attempt_to(
            lambda: build_target(target, output, compile_only=compile_only, offline=offline, reporter=console), console
        )
        if isinstance(built, QABuildError):
            return Outcome(shown=target.name, document={"target": target.name}, error=built)
        outcome = Outcome(
            shown=str(built.directory),
            document=_build_document(built),
            error=failure(built.verification, built.directory),
            verification=built.verification,
        )
        return then_published(outcome, built, console) if then_publish and not outcome.error else outcome

    try:
        outcomes = [attempt(target) for target in read]
    finally:
        place.announce(None)
    conclude(outcomes, console)


@click.command()
@artifact_folders
@data_option
@click.option("--checkpoint", metavar="SOURCE", help="The checkpoint it was built from, to measure the speedup.")
@click.option("--digest", metavar="SHA256", help="What the manifest's own digest must be.")
@offline_option
@common
def verify(
    artifacts: Sequence[Path],
    dataset: str | None,
    checkpoint: str | None,
    digest: str | None,
    offline: bool,
    console: Console,
) -> None:
    """Verify each ARTIFACT again, as it lies on disk, on this machine.

    Holds every file against the manifest, reloads the model, and puts the questions of the sealed reference through
    it. The evidence beside the manifest is replaced.
    """
    from qabuild.evaluation.verify import verify as verify_artifact
    from qabuild.target.read import absolute_source

    here = Path.cwd()

    def attempt(path: Path) -> Outcome:
        found = attempt_to(
            lambda: verify_artifact(
                path,
                dataset=dataset and absolute_source(dataset, here),
                checkpoint=checkpoint and absolute_source(checkpoint, here),
                digest=digest,
                offline=offline,
                reporter=console,
            ),
            console,
        )
        if isinstance(found, QABuildError):
            return Outcome(shown=str(path), document={"artifact": str(path)}, error=found)
        document = {"artifact": str(path), "verification": found.to_dict()}
        return Outcome(shown=str(path), document=document, error=failure(found, path), verification=found)

    conclude([attempt(path) for path in artifacts], console)


@click.command()
@target_files
@output_option
@set_option
@locked_option
@common
def plan(targets: Sequence[Path], output: Path, overrides: Sequence[str], locked: bool, console: Console) -> None:
    """Say what building each TARGET would do, and why. Does nothing."""
    from qabuild.target.lock import load

    read = [load(path, overrides, locked=locked) for path in targets]
    from qabuild.builder.preview import previews
    from qabuild.builder.store.local import Store

    plans = previews(read, Store(), output)

    def show() -> None:
        rows = [
            [p.target.name, s.name, _state(s), s.reason, f"{s.seconds:.1f} s" if s.seconds else "-"]
            for p in plans
            for s in p.steps
        ]
        table(["target", "step", "", "why", "last time"], rows)
        for made in plans:
            for lack in made.facts.missing:
                emit(f"{made.target.name}: {lack}")

    console.result([made.to_dict() for made in plans], show)


@click.command()
@target_files
@offline_option
@common
def lock(targets: Sequence[Path], offline: bool, console: Console) -> None:
    """Pin what each TARGET names, in a .lock file beside it.

    Hub ids are pinned to their commit, checkpoints to their digest, data sets to their fingerprint. `build` and `plan`
    read a target through its lock where there is one.
    """
    from qabuild.target import lock as locks
    from qabuild.target.read import load

    read = [(locks.path_of(path), load(path)) for path in targets]
    made = [(path, locks.make(target, offline=offline)) for path, target in read]
    rows, documents = [], []
    for path, pins in made:
        changed = locks.write(pins, path)
        checkpoint, asked = pins.checkpoint, pins.verify
        rows.append(
            [
                str(path),
                f"{checkpoint.model} {(checkpoint.commit or checkpoint.digest)[:12]}",
                f"{asked.dataset} {(asked.commit or asked.fingerprint)[:12]}",
                "written" if changed else "unchanged",
            ]
        )
        documents.append({"lock": str(path), "changed": changed, **pins.model_dump(mode="json")})
    console.result(documents, lambda: table(["lock", "checkpoint", "questions", ""], rows))


def _build_document(built: Built) -> dict[str, Any]:
    return {
        "target": built.plan.target.name,
        "artifact": str(built.directory),
        "manifest": built.manifest,
        "kept": built.kept,
        "plan": built.plan.to_dict()["steps"],
        "verification": built.verification.to_dict() if built.verification else None,
    }


def _state(step: PlanStep) -> str:
    return "kept" if step.kept else "to do" if step.key else "unknown"


def _require_distinct(targets: Sequence[Target]) -> None:
    names = [target.name for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTarget(
            f"two targets are named {', '.join(twice)}", "their artifacts would have one folder; rename one"
        )
