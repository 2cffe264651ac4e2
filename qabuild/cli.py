"""The command line: thin commands, and the one place where errors become messages and exit statuses.

Nothing is imported here but click; each command imports what it needs, so that --help answers at once.
"""

from __future__ import annotations

import difflib
import functools
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from qabuild import __version__
from qabuild.console import Console, table
from qabuild.errors import INTERRUPTED, QABuildError, VerificationFailed

if TYPE_CHECKING:
    from qabuild.builder import Built
    from qabuild.evidence import Verification

EPILOG = """\b
Exit status:
  0    success
  1    verification failed
  2    bad target or usage
  3    missing environment: no such device, package not installed
  4    input not trusted: damaged, unsafe to load, or not what it claims to be
  5    anything else that went wrong
  130  interrupted
"""


class _Commands(click.Group):
    """A group in which `qabuild TARGET.toml` is short for `qabuild build TARGET.toml`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help", "--version"}:
            self._refuse_mistyped_command(ctx, args[0])
            args = ["build", *args]
        return super().parse_args(ctx, args)

    def _refuse_mistyped_command(self, ctx: click.Context, word: str) -> None:
        if "." in word or "/" in word or word.startswith("-") or Path(word).exists():
            return
        near = difflib.get_close_matches(word, self.commands, n=1)
        perhaps = f"perhaps you meant {near[0]!r}" if near else f"commands are {', '.join(self.commands)}"
        raise click.UsageError(f"{word!r} is neither a command nor a target (a .toml file); {perhaps}", ctx)


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="qabuild")
def cli() -> None:
    """Compile question-answering checkpoints into deployable artifacts that carry their own proof.

    `qabuild TARGET.toml...` builds: it compiles the target's checkpoint into artifacts/NAME, reloads what it wrote,
    and lets it answer the target's questions beside the checkpoint itself.
    """


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command, turned into a `console` argument."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress, no remarks; only the result.")
    @click.option("-v", "--verbose", is_flag=True, help="Tracebacks with every error.")
    @click.option("--json", "as_json", is_flag=True, help="The result as one JSON document on stdout.")
    @functools.wraps(command)
    def wrapped(*args: Any, quiet: bool, verbose: bool, as_json: bool, **kwargs: Any) -> Any:
        click.get_current_context().obj = {"verbose": verbose, "json": as_json}
        return command(*args, console=Console(quiet=quiet, json=as_json), **kwargs)

    return wrapped


target_files = click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TARGET...")
artifact_folders = click.argument(
    "artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT..."
)
output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts"),
    show_default=True,
    help="Folder that the artifacts go to.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, as in --set verify.samples=200."
)
offline_option = click.option("--offline", is_flag=True, help="Touch no network; say what is missing.")


@cli.command()
@target_files
@output_option
@set_option
@offline_option
@click.option("--compile-only", is_flag=True, help="Seal without verifying, also for a device that is not here.")
@common
def build(
    targets: Sequence[Path],
    output: Path,
    overrides: Sequence[str],
    offline: bool,
    compile_only: bool,
    console: Console,
) -> None:
    """Build each TARGET, and prove it.

    What passes its verification is put at OUTPUT/NAME; what fails goes to OUTPUT/NAME.failed and leaves the NAME of
    an earlier build as it was.
    """
    from qabuild.target import load

    read = [load(path, overrides) for path in targets]
    _require_distinct(read)
    from qabuild.builder import build as build_target

    outcomes: list[Built | QABuildError] = []
    for target in read:
        if len(read) > 1:
            console.say(f"== {target.name}")
        try:
            outcomes.append(build_target(target, output, compile_only=compile_only, offline=offline, reporter=console))
        except QABuildError as error:
            if len(read) == 1:
                raise
            outcomes.append(error)
            console.say(str(error))
    rows = [_build_row(target.name, outcome) for target, outcome in zip(read, outcomes, strict=True)]
    console.result(
        [_build_document(t.name, o) for t, o in zip(read, outcomes, strict=True)], lambda: table(BUILD, rows)
    )
    _exit_for(outcomes)


@cli.command()
@artifact_folders
@click.option("--data", "dataset", metavar="SOURCE", help="Where the questions are: a SQuAD-layout file, a Hub id.")
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
    from qabuild.target import absolute_source
    from qabuild.verification import verify as verify_artifact

    here = Path.cwd()
    outcomes: list[tuple[Path, Verification | QABuildError]] = []
    for path in artifacts:
        try:
            found = verify_artifact(
                path,
                dataset=dataset and absolute_source(dataset, here),
                checkpoint=checkpoint and absolute_source(checkpoint, here),
                digest=digest,
                offline=offline,
                reporter=console,
            )
            outcomes.append((path, found))
        except QABuildError as error:
            if len(artifacts) == 1:
                raise
            outcomes.append((path, error))
            console.say(str(error))
    rows = [_verification_row(str(p), None if isinstance(o, QABuildError) else o, o) for p, o in outcomes]
    console.result([_document(str(p), o) for p, o in outcomes], lambda: table(BUILD, rows))
    for path, outcome in outcomes:
        if not isinstance(outcome, QABuildError) and not outcome.passed:
            from qabuild.verification import explain_failure

            raise VerificationFailed(*explain_failure(outcome, path))
        if isinstance(outcome, QABuildError):
            sys.exit(outcome.exit_status)


@cli.command()
@target_files
@output_option
@set_option
@common
def plan(targets: Sequence[Path], output: Path, overrides: Sequence[str], console: Console) -> None:
    """Say what building each TARGET would do, and why. Does nothing."""
    from qabuild.target import load

    read = [load(path, overrides) for path in targets]
    from qabuild import plan as planning
    from qabuild.store import Store

    results = Store()
    plans = []
    for target in read:
        facts = planning.gather(target, results, planning.history_name(target, output), fetch=False)
        plans.append(planning.make(target, facts))

    def show() -> None:
        rows = [
            [p.target.name, s.name, "kept" if s.kept else "to do", s.reason, f"{s.seconds:.1f} s" if s.seconds else "-"]
            for p in plans
            for s in p.steps
        ]
        table(["target", "step", "", "why", "last time"], rows)
        for made in plans:
            for lack in made.missing:
                click.echo(f"{made.target.name}: {lack}", err=True)

    console.result([made.to_dict() for made in plans], show)


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@common
def targets(folder: Path | None, console: Console) -> None:
    """List the targets in FOLDER (./targets, or here), with what each makes."""
    from qabuild.errors import BadTarget
    from qabuild.target import load

    folder = folder or (Path("targets") if Path("targets").is_dir() else Path())
    files = sorted(folder.glob("*.toml"))
    if not files:
        raise BadTarget(f"{folder}: no targets here (*.toml)", "name a folder that has some: qabuild targets FOLDER")
    rows, documents = [], []
    for file in files:
        try:
            target = load(file)
        except BadTarget as error:
            rows.append([str(file), "-", "-", "-", str(error).splitlines()[0]])
            documents.append({"target": str(file), "error": error.message})
            continue
        made = f"{target.runtime.device} {target.runtime.dtype}"
        rows.append([str(file), target.checkpoint.model, target.backend.name, made, target.description])
        documents.append({"target": str(file), **target.model_dump(mode="json")})
    console.result(documents, lambda: table(["target", "checkpoint", "backend", "runtime", "what it makes"], rows))


@cli.command()
@click.argument("targets", nargs=-1, type=click.Path(path_type=Path), metavar="[TARGET...]")
@common
def doctor(targets: Sequence[Path], console: Console) -> None:
    """Say what this machine can build and run, and what it lacks for each TARGET (all of ./targets)."""
    from qabuild.target import load

    read = [load(path) for path in targets or sorted(Path("targets").glob("*.toml"))]
    from qabuild.doctor import report

    found = report(read)

    def show() -> None:
        table(["", "found", ""], [[f["subject"], f["found"], f["note"]] for f in found["machine"]])
        rows = [[t["target"], "; ".join(t["missing"]) or t["slow"] or "ready"] for t in found["targets"]]
        if rows:
            table(["target", "here"], rows)

    console.result(found, show)


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a target, for editors."""
    from qabuild.target import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


# --- results --------------------------------------------------------------------------------------------------------

BUILD = ["artifact", "EM", "F1", "F1 kept", "same answers", "samples/s", "speedup", "result"]


def _require_distinct(targets: Sequence[Any]) -> None:
    from qabuild.errors import BadTarget

    names = [target.name for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTarget(
            f"two targets are named {', '.join(twice)}", "their artifacts would have one folder; rename one"
        )


def _build_row(name: str, outcome: Built | QABuildError) -> list[str]:
    if isinstance(outcome, QABuildError):
        return _verification_row(name, None, outcome)
    return _verification_row(str(outcome.directory), outcome.verification, outcome)


def _verification_row(name: str, found: Verification | None, outcome: object) -> list[str]:
    if isinstance(outcome, QABuildError):
        return [name, *["-"] * 6, f"error: {outcome.message.splitlines()[0]}"]
    if found is None:
        return [name, *["-"] * 6, "compiled, unverified"]
    m, speed = found.measurement, found.measurement.speed
    failed = ", ".join(gate.name for gate in found.failed_gates)
    return [
        name,
        f"{m.exact_match:.2f}",
        f"{m.f1:.2f}",
        f"{100 * m.f1_retention:.2f} %",
        f"{100 * m.agreement:.2f} %",
        f"{speed.artifact if speed else m.samples_per_second:.1f}",
        f"{speed.speedup:.2f}x" if speed else "-",
        f"FAILED: {failed}" if failed else "passed",
    ]


def _build_document(name: str, outcome: Built | QABuildError) -> dict[str, Any]:
    if isinstance(outcome, QABuildError):
        return _document(name, outcome)
    found = outcome.verification
    return {
        "target": name,
        "artifact": str(outcome.directory),
        "manifest": outcome.manifest,
        "kept": outcome.kept,
        "plan": outcome.plan.to_dict()["steps"],
        "verification": found.to_dict() if found else None,
    }


def _document(name: str, outcome: Verification | QABuildError) -> dict[str, Any]:
    if isinstance(outcome, QABuildError):
        return {"artifact": name, "error": outcome.message, "hint": outcome.hint, "status": outcome.exit_status}
    return {"artifact": name, "verification": outcome.to_dict()}


def _exit_for(outcomes: Sequence[Built | QABuildError]) -> None:
    """The status of the first target that went wrong."""
    from qabuild.builder import require_passed

    for outcome in outcomes:
        if isinstance(outcome, QABuildError):
            sys.exit(outcome.exit_status)
        require_passed(outcome)


# --- the boundary ---------------------------------------------------------------------------------------------------


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every way out has its exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that cleaning up still happens
    arguments = list(sys.argv[1:] if args is None else args)
    verbose, as_json = "-v" in arguments or "--verbose" in arguments, "--json" in arguments
    try:
        cli.main(arguments, prog_name="qabuild", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except QABuildError as error:
        _complain(error, verbose=verbose, as_json=as_json)
        sys.exit(error.exit_status)
    except OSError as error:
        at = f"{error.filename}: " if error.filename else ""
        _complain(QABuildError(f"{at}{error.strerror or error}"), verbose=verbose, as_json=as_json)
        sys.exit(QABuildError.exit_status)
    except Exception:
        traceback.print_exc()
        click.echo("this is a defect of qabuild; please report it with the lines above", err=True)
        sys.exit(QABuildError.exit_status)
    sys.exit(0)


def _complain(error: QABuildError, *, verbose: bool, as_json: bool) -> None:
    if verbose:
        traceback.print_exc()
    click.echo(f"error: {error}", err=True)
    # A verification that failed has printed its document already.
    if as_json and not isinstance(error, VerificationFailed):
        click.echo(json.dumps({"error": error.message, "hint": error.hint, "status": error.exit_status}))


if __name__ == "__main__":
    main()
