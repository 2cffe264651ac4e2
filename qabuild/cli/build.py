"""`build`, `verify`, `plan` and `lock`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qabuild.cli.console import Console, emit, table
from qabuild.cli.failures import goes_on
from qabuild.cli.options import (
    artifact_folders,
    common,
    data_option,
    locked_option,
    native_option,
    offline_option,
    output_option,
    set_option,
    signer_options,
    target_files,
)
from qabuild.cli.publish import require_publishable, then_published
from qabuild.cli.results import Outcome, attempt_to, conclude, failure
from qabuild.errors import BadTarget, QABuildError

if TYPE_CHECKING:
    from qabuild.builder.build import Built
    from qabuild.builder.farm.farm import Farmed
    from qabuild.builder.plan import PlanStep
    from qabuild.target.model import Target


@click.command()
@target_files
@output_option
@set_option
@locked_option
@offline_option
@click.option(
    "--compile-only",
    is_flag=True,
    help="Seal without verifying; needs no target device.",
)
@click.option("--publish", "then_publish", is_flag=True, help="Publish what passes to its target's publish.repo.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Make the steps here, or on the nodes of a Ray cluster.",
)
@click.option("--address", help="Ray cluster, as HOST:PORT; by default RAY_ADDRESS, or Ray starts here.")
@click.option(
    "--remote-cache-key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take only results that this key signed from the remote cache, and sign by it, if it is private.",
)
@common
def build(
    targets: Sequence[Path],
    output: Path,
    overrides: Sequence[str],
    locked: bool,
    offline: bool,
    compile_only: bool,
    then_publish: bool,
    engine: str,
    address: str | None,
    remote_cache_key: Path | None,
    console: Console,
) -> None:
    """Build and verify each TARGET.

    An artifact that passes its verification goes to OUTPUT/NAME. One that fails goes to OUTPUT/NAME.failed, and an
    earlier OUTPUT/NAME stays as it was. With --engine ray, the nodes of a cluster make the steps of all targets, and
    share their results through the remote cache.

    The environment variable QABUILD_REMOTE_CACHE names a remote cache of step results, and QABUILD_REMOTE_CACHE_KEY the
    key of its signatures.
    """
    from qabuild.models.training import distributed
    from qabuild.target.lock import load_all

    if address and engine != "ray":
        raise click.UsageError("--address needs --engine ray")
    if engine == "ray" and offline:
        raise click.UsageError("--engine ray cannot be combined with --offline: nodes share results over the network")
    ranks = distributed.current()
    if engine == "ray" and ranks.count > 1:
        raise click.UsageError("--engine ray cannot be combined with torchrun or accelerate launch")
    if ranks.rank > 0:
        ranks.follow()
        return
    loaded = load_all(targets, overrides, locked=locked)
    _require_distinct(loaded)
    if then_publish:
        if compile_only or offline:
            raise click.UsageError("--publish cannot be combined with --compile-only or --offline")
        require_publishable(loaded, console)
    from qabuild.builder.build import build as build_target
    from qabuild.builder.store.remote import open_store

    goes_on.append(True)
    results = open_store(key=remote_cache_key, offline=offline, reporter=console)

    farmed: Farmed | None = None
    if engine == "ray":
        from qabuild.builder.farm.farm import make_steps

        farmed = make_steps(
            loaded,
            output,
            results,
            address=address,
            key=remote_cache_key,
            compile_only=compile_only,
            reporter=console,
        )

    def build_one(target: Target) -> Built:
        if farmed and target.name in farmed.errors:
            raise farmed.errors[target.name]
        return build_target(
            target, output, compile_only=compile_only, offline=offline, results=results, reporter=console
        )

    def attempt(target: Target) -> Outcome:
        if len(loaded) > 1:
            console.say(f"== {target.name}")
        built = attempt_to(lambda: build_one(target), console)
        steps = {"steps": [asdict(s) for s in farmed.steps if s.target == target.name]} if farmed else {}
        if isinstance(built, QABuildError):
            return Outcome(label=target.name, document={"target": target.name, **steps}, error=built)
        outcome = Outcome(
            label=str(built.directory),
            document=_build_document(built) | steps,
            error=failure(built.verification, built.directory),
            verification=built.verification,
        )
        return then_published(outcome, built, console) if then_publish and not outcome.error else outcome

    try:
        outcomes = [attempt(target) for target in loaded]
    finally:
        ranks.announce(None)
    if farmed and farmed.steps and not console.json:
        table(
            ["target", "step", "node", "seconds", ""],
            [[s.target, s.step, s.node or "-", _seconds(s.seconds), s.state] for s in farmed.steps],
        )
    conclude(outcomes, console)


@click.command()
@artifact_folders
@data_option
@click.option(
    "--checkpoint",
    metavar="SOURCE",
    help="The checkpoint that it was built from; checks the reference answers, and adds the speedup.",
)
@click.option("--digest", metavar="SHA256", help="Required SHA-256 of the manifest.")
@signer_options
@native_option
@offline_option
@common
def verify(
    artifacts: Sequence[Path],
    dataset: str | None,
    checkpoint: str | None,
    digest: str | None,
    signer: Any,
    allow_native: bool,
    offline: bool,
    console: Console,
) -> None:
    """Verify each ARTIFACT again, on this machine.

    Checks every file against the manifest, reloads the model, and compares its answers with the sealed reference
    answers. Replaces the evidence, verification.json.
    """
    from qabuild.evaluation.verify import verify as verify_artifact
    from qabuild.target.read import absolute_source

    folder = Path.cwd()

    def attempt(path: Path) -> Outcome:
        verification = attempt_to(
            lambda: verify_artifact(
                path,
                dataset=dataset and absolute_source(dataset, folder),
                checkpoint=checkpoint and absolute_source(checkpoint, folder),
                digest=digest,
                key=signer,
                allow_native=allow_native,
                offline=offline,
                reporter=console,
            ),
            console,
        )
        if isinstance(verification, QABuildError):
            return Outcome(label=str(path), document={"artifact": str(path)}, error=verification)
        return Outcome(
            label=str(path),
            document={"artifact": str(path), "verification": verification.to_dict()},
            error=failure(verification, path),
            verification=verification,
        )

    conclude([attempt(path) for path in artifacts], console)


@click.command()
@target_files
@output_option
@set_option
@locked_option
@common
def plan(targets: Sequence[Path], output: Path, overrides: Sequence[str], locked: bool, console: Console) -> None:
    """List the steps that a build of each TARGET would run, and why: a dry run."""
    from qabuild.target.lock import load_all

    loaded = load_all(targets, overrides, locked=locked)
    _require_distinct(loaded)
    from qabuild.builder.preview import previews
    from qabuild.builder.store.remote import open_store

    plans = previews(loaded, open_store(offline=True), output)

    def show() -> None:
        rows = [
            [p.target.name, s.name, _state(s), s.reason, f"{s.seconds:.1f} s" if s.seconds else "-"]
            for p in plans
            for s in p.steps
        ]
        table(["target", "step", "", "why", "last time"], rows)
        for p in plans:
            for requirement in p.facts.missing:
                emit(f"{p.target.name}: {requirement}")

    console.result([p.to_dict() for p in plans], show)


@click.command()
@target_files
@offline_option
@common
def lock(targets: Sequence[Path], offline: bool, console: Console) -> None:
    """Pin the inputs of each TARGET in a .lock file beside it.

    A lock pins each Hub id to its commit, the checkpoint to its digest, each data set to its fingerprint, and
    `prune.speedup` to the widths that a build on this machine chose. `build` and `plan` use a target's lock file if it
    has one.
    """
    from qabuild.builder.locking import pins_of
    from qabuild.target.lock import path_of, write

    locks = [(path_of(path), pins_of(path, offline=offline)) for path in targets]
    rows, documents = [], []
    for path, pins in locks:
        changed = write(pins, path)
        checkpoint, questions = pins.checkpoint, pins.verify
        rows.append(
            [
                str(path),
                f"{checkpoint.model} {(checkpoint.commit or checkpoint.digest)[:12]}",
                f"{questions.dataset} {(questions.commit or questions.fingerprint)[:12]}",
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
        "cached": built.cached,
        "plan": built.plan.to_dict()["steps"],
        "verification": built.verification.to_dict() if built.verification else None,
    }


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def _state(step: PlanStep) -> str:
    return "cached" if step.cached else "to do" if step.key else "unknown"


def _require_distinct(targets: Sequence[Target]) -> None:
    names = [target.name for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTarget(f"two targets are named {', '.join(twice)}", "their artifacts would share a folder; rename one")
