"""The command line: thin commands, and the one place where errors become messages and exit statuses.

Nothing is imported here but click; each command imports what it needs, so that --help answers at once.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from qabuild import __version__
from qabuild.console import Console, emit, table
from qabuild.errors import INTERRUPTED, BadTarget, QABuildError, UntrustedInput, VerificationFailed

if TYPE_CHECKING:
    from qabuild.builder import Built
    from qabuild.cache import Kept
    from qabuild.comparing import Comparison
    from qabuild.evidence import Verification
    from qabuild.plan import Step
    from qabuild.publishing import Published
    from qabuild.target import Target

T = TypeVar("T")

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


FLAGS = {"-q", "--quiet", "-v", "--verbose", "--json"}
"""Options of every command."""


class _Commands(click.Group):
    """A group in which `qabuild TARGET.toml` is short for `qabuild build TARGET.toml`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = self._command_first(args)
        if args and args[0] not in {*self.commands, "-h", "--help", "--version"}:
            if not ctx.resilient_parsing:  # as when a shell completes what is half typed
                self._refuse_mistyped_command(ctx, args[0])
            args = ["build", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return super().shell_complete(ctx, incomplete) or [CompletionItem(incomplete, type="file")]

    def _command_first(self, args: list[str]) -> list[str]:
        """`qabuild -q verify X` means `qabuild verify -q X`."""
        flags = list(itertools.takewhile(FLAGS.__contains__, args))
        rest = args[len(flags) :]
        return [rest[0], *flags, *rest[1:]] if rest and rest[0] in self.commands else args

    def _refuse_mistyped_command(self, ctx: click.Context, word: str) -> None:
        if "." in word or "/" in word or word.startswith("-") or Path(word).exists():
            return
        targets = [path for path in (f"{word}.toml", f"targets/{word}.toml") if Path(path).exists()]
        near = targets or difflib.get_close_matches(word, self.commands, n=1)
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
        return command(*args, console=Console(quiet=quiet, verbose=verbose, json=as_json), **kwargs)

    return wrapped


AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}
SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Quantity(click.ParamType[float]):
    """A number with its unit."""

    name = "quantity"

    def __init__(self, units: Mapping[str, int]) -> None:
        self.units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        units = {unit.lower(): factor for unit, factor in self.units.items()}
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", str(value).lower())
        if not found or found[2] not in units:
            self.fail(f"{value!r} is not a number with one of the units {', '.join(self.units)}", param, ctx)
        return float(found[1]) * units[found[2]]


class BatchSizes(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1, with commas between them."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        words = [word.strip() for word in str(value).split(",") if word.strip()] if isinstance(value, str) else value
        if not all(str(word).isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is not a list of numbers from 1, as in 1,8,32", param, ctx)
        return tuple(dict.fromkeys(int(word) for word in words))


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
locked_option = click.option("--locked", is_flag=True, help="Take only what the lock beside each target pins.")
data_option = click.option(
    "--data", "dataset", metavar="SOURCE", help="Where the questions are: a SQuAD-layout file, a Hub id."
)
offline_option = click.option("--offline", is_flag=True, help="Touch no network; say what is missing.")


@cli.command()
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
    from qabuild.lock import load
    from qabuild.training import ranks

    place = ranks.current()
    if place.rank > 0:
        place.follow()
        return
    read = [load(path, overrides, locked=locked) for path in targets]
    _require_distinct(read)
    if then_publish:
        if compile_only or offline:
            raise click.UsageError("--publish goes with neither --compile-only nor --offline")
        _require_publishable(read, console)
    from qabuild.builder import build as build_target

    def attempt(target: Target) -> _Outcome:
        if len(read) > 1:
            console.say(f"== {target.name}")
        built = _attempt(
            lambda: build_target(target, output, compile_only=compile_only, offline=offline, reporter=console), console
        )
        if isinstance(built, QABuildError):
            return _Outcome(shown=target.name, document={"target": target.name}, error=built)
        outcome = _Outcome(
            shown=str(built.directory),
            document=_build_document(built),
            error=_failure(built.verification, built.directory),
            verification=built.verification,
        )
        return _then_published(outcome, built, console) if then_publish and not outcome.error else outcome

    try:
        outcomes = [attempt(target) for target in read]
    finally:
        place.announce(None)
    _conclude(outcomes, console)


@cli.command()
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
    from qabuild.target import absolute_source
    from qabuild.verification import verify as verify_artifact

    here = Path.cwd()

    def attempt(path: Path) -> _Outcome:
        found = _attempt(
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
            return _Outcome(shown=str(path), document={"artifact": str(path)}, error=found)
        document = {"artifact": str(path), "verification": found.to_dict()}
        return _Outcome(shown=str(path), document=document, error=_failure(found, path), verification=found)

    _conclude([attempt(path) for path in artifacts], console)


def comparing(command: Callable[..., Any]) -> Callable[..., Any]:
    """What `compare` and `report` have in common: the arguments and options that say what is measured."""

    @click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT|TARGET...")
    @click.option("--baseline", metavar="NAME", help="Which of them the others are held against.  [first eager fp32]")
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


@cli.command()
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
    are those that were timed, and must be those of the verification; the exit status is 1 where they are not.
    """
    from qabuild.comparing import compare as compare_artifacts
    from qabuild.comparing import tables
    from qabuild.target import absolute_source

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


@cli.command()
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
    from qabuild import machine, reporting
    from qabuild.comparing import compare as compare_artifacts
    from qabuild.comparing import tables
    from qabuild.target import absolute_source

    machine.require(reporting.PACKAGES, "cpu")
    for path in filter(None, (output, png)):
        if not path.parent.is_dir():
            raise BadTarget(f"{path}: there is no folder {path.parent}", "make it, or name another file")
    found = compare_artifacts(
        artifacts,
        baseline=baseline,
        batch_sizes=batch_sizes,
        latency=True,
        dataset=dataset and absolute_source(dataset, Path.cwd()),
        offline=offline,
        reporter=console,
    )
    reporting.write_page(found, output)
    if png:
        reporting.write_picture(found, png)
    console.say(tables.conditions(found))
    console.say(f"written: {', '.join(str(path) for path in (output, png) if path)}")
    console.result(found.to_dict(), lambda: table(tables.columns(found), tables.rows(found)))
    _leave(found)


@cli.command()
@target_files
@output_option
@set_option
@locked_option
@common
def plan(targets: Sequence[Path], output: Path, overrides: Sequence[str], locked: bool, console: Console) -> None:
    """Say what building each TARGET would do, and why. Does nothing."""
    from qabuild.lock import load

    read = [load(path, overrides, locked=locked) for path in targets]
    from qabuild import plan as planning
    from qabuild.store import Store

    results = Store()
    plans = []
    for target in read:
        facts = planning.gather(target, results, planning.history_name(target, output), fetch=False)
        plans.append(planning.make(target, facts))

    def show() -> None:
        rows = [
            [p.target.name, s.name, _state(s), s.reason, f"{s.seconds:.1f} s" if s.seconds else "-"]
            for p in plans
            for s in p.steps
        ]
        table(["target", "step", "", "why", "last time"], rows)
        for made in plans:
            for lack in made.missing:
                emit(f"{made.target.name}: {lack}")

    console.result([made.to_dict() for made in plans], show)


@cli.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--repo", metavar="OWNER/NAME", help="The repository; without it, the target's publish.repo.")
@click.option("--private", is_flag=True, help="Make the repository private, where it is made.")
@click.option("--revision", default="main", show_default=True, metavar="BRANCH", help="Branch to publish to.")
@click.option("--create-pr", is_flag=True, help="Propose it as a pull request.")
@click.option("--tag", metavar="NAME", help="Name the commit, as in --tag v1.")
@click.option("--dry-run", is_flag=True, help="Only list what would go, and how large it is.")
@click.option("--verify-remote", is_flag=True, help="Verify what was downloaded again, too.")
@data_option
@common
def publish(artifact: Path, repo: str | None, dataset: str | None, console: Console, **options: Any) -> None:
    """Push a verified ARTIFACT to the Hugging Face Hub as one commit, and fetch it back.

    Refuses what is not verified, was changed since, or would replace something else. Run again after a failure, it
    does what is left to do.
    """
    from qabuild import publishing
    from qabuild.target import absolute_source

    source = dataset and absolute_source(dataset, Path.cwd())
    published = publishing.publish(artifact, repo, dataset=source, reporter=console, **options)
    console.result(published.to_dict(), lambda: _show_published(published))


@cli.command()
@target_files
@offline_option
@common
def lock(targets: Sequence[Path], offline: bool, console: Console) -> None:
    """Pin what each TARGET names, in a .lock file beside it.

    Hub ids are pinned to their commit, checkpoints to their digest, data sets to their fingerprint. `build` and `plan`
    read a target through its lock where there is one.
    """
    from qabuild import lock as locks
    from qabuild.target import load

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


@cli.command()
@click.argument("artifact")
@click.argument("questions", type=click.Path(allow_dash=True))
@click.option("-o", "--output", default="-", show_default=True, help="File for the answers; .json for predictions.")
@click.option("--revision", help="Branch, tag or commit of an artifact on the Hub.")
@click.option("--digest", metavar="SHA256", help="What the manifest's own digest must be.")
@click.option("--top-k", type=click.IntRange(1), default=1, show_default=True, help="Answers to each question.")
@click.option("--no-answer", is_flag=True, help="Let the empty answer compete.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no remarks.")
@click.option("-v", "--verbose", is_flag=True, help="Tracebacks with every error.")
def answer(
    artifact: str,
    questions: str,
    output: str,
    revision: str | None,
    digest: str | None,
    top_k: int,
    no_answer: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Answer a file of QUESTIONS with ARTIFACT, a folder or a repository on the Hub (owner/name).

    QUESTIONS is JSON Lines (id, question, context) or a SQuAD document (.json, .json.gz); "-" is standard input. The
    answers are JSON Lines, or SQuAD's predictions where OUTPUT ends in .json. Run again after an interruption, it goes
    on where it stopped. A row that cannot be answered is reported, and makes the exit status 4 in the end.
    """
    from qabuild import loading
    from qabuild.bulk import answer_file, require_place
    from qabuild.pipeline import QuestionAnsweringPipeline

    console = Console(quiet=quiet, verbose=verbose)
    require_place(questions, output)
    opened = loading.find(artifact, revision=revision, digest=digest)
    summary = answer_file(
        QuestionAnsweringPipeline(*loading.load_model(opened)),
        questions,
        output,
        answered_by=opened.digest,
        parameters={"top_k": top_k, "handle_impossible_answer": no_answer},
        reporter=console,
    )
    console.say(f"{summary.answered} answered, {summary.bad} without an answer, {summary.resumed} from an earlier run")
    if summary.bad:
        sys.exit(UntrustedInput.exit_status)


@cli.group()
def cache() -> None:
    """What is kept of earlier builds: list it, make room, look whether it is whole."""


@cache.command("list")
@common
def cache_list(console: Console) -> None:
    """List the results in the cache, the longest unused first."""
    from qabuild import cache as keeping
    from qabuild.store import Store

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
    from qabuild import cache as keeping
    from qabuild.store import Store

    size = None if max_size is None else int(max_size)
    gone = keeping.prune(Store(), older_than=older_than, max_size=size, dry_run=dry_run)
    console.say("would be dropped:" if dry_run else "dropped:")
    console.result([_kept_document(kept) for kept in gone], lambda: table(KEPT, _kept_rows(gone)))


@cache.command("verify")
@common
def cache_verify(console: Console) -> None:
    """Hash every file of every result; what is damaged is dropped, and made anew when it is next wanted."""
    from qabuild import cache as keeping
    from qabuild.store import Store

    whole, damaged = keeping.verify(Store())
    document = {"whole": len(whole), "damaged": [_kept_document(kept) for kept in damaged]}
    console.result(document, lambda: emit(f"{len(whole)} results are whole, {len(damaged)} were damaged"))
    if damaged:
        click.echo("the next build that wants them makes them anew; if this comes again, look at the disk", err=True)
        sys.exit(UntrustedInput.exit_status)


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, file_okay=False))
@common
def targets(folder: Path | None, console: Console) -> None:
    """List the targets in FOLDER (./targets, or here), with what each makes."""
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
            first = " ".join(error.message.split("\n")[:2])  # of several mistakes, how many and the first
            rows.append([str(file), "-", "-", "-", f"error: {first.removeprefix(f'{file}: ')}"])
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
        table(["backend", "here"], [[name, "; ".join(lacks) or "ready"] for name, lacks in found["backends"].items()])
        rows = [[t["target"], "; ".join(t["missing"]) or t["slow"] or "ready"] for t in found["targets"]]
        if rows:
            table(["target", "here"], rows)

    console.result(found, show)


@cli.command()
@common
def schema(console: Console) -> None:
    """Print the JSON Schema of a target, for editors."""
    from qabuild.target import json_schema

    document = json_schema()
    console.result(document, lambda: emit(json.dumps(document, indent=2)))


# --- results --------------------------------------------------------------------------------------------------------

KEPT = ["key", "step", "what", "size", "unused for"]
COLUMNS = ["artifact", "EM", "F1", "F1 kept", "same answers", "samples/s", "speedup", "result"]


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What became of one target or artifact."""

    shown: str
    """What the table calls it."""
    document: dict[str, Any]
    error: QABuildError | None
    verification: Verification | None = None
    published: Published | None = None


def _attempt(work: Callable[[], T], console: Console) -> T | QABuildError:
    """What `work` gives, or what kept it from giving anything, which is told at once."""
    _require_uninterrupted()
    try:
        return work()
    except (QABuildError, OSError, MemoryError) as error:
        _require_uninterrupted(error)
        told = _as_told(error)
        _complain(told, verbose=console.verbose)
        return told


def _require_publishable(targets: Sequence[Target], console: Console) -> None:
    """Tell before the work what would keep its result from being published."""
    from qabuild.publishing import require_ready

    repos = [target.publish.repo for target in targets if target.publish.repo]
    if twice := sorted({repo for repo in repos if repos.count(repo) > 1}):
        raise BadTarget(f"two targets are published to {', '.join(twice)}", "give each a publish.repo of its own")
    for target in targets:
        require_ready(target.publish.repo, f"target {target.name}", console)


def _then_published(outcome: _Outcome, built: Built, console: Console) -> _Outcome:
    from qabuild.publishing import publish as publish_artifact

    _require_uninterrupted()
    try:
        published = publish_artifact(built.directory, built.plan.target.publish.repo, reporter=console)
    except (QABuildError, OSError, MemoryError) as error:
        _require_uninterrupted(error)
        return replace(outcome, error=_as_told(error))
    return replace(outcome, published=published, document={**outcome.document, "published": published.to_dict()})


def _failure(found: Verification | None, directory: Path) -> VerificationFailed | None:
    from qabuild.verification import explain_failure

    return VerificationFailed(*explain_failure(found, directory)) if found and not found.passed else None


def _conclude(outcomes: Sequence[_Outcome], console: Console) -> None:
    """Show what became of each, tell which verifications failed, and leave with the status of the first failure."""

    def show() -> None:
        told = len(outcomes) == 1 and outcomes[0].error and not outcomes[0].verification
        if not told:
            table(COLUMNS, [_row(outcome) for outcome in outcomes])
        for outcome in outcomes:
            if outcome.published:
                emit(_told(outcome.published))

    console.result([_with_status(outcome) for outcome in outcomes], show)
    failed = [(outcome, outcome.error) for outcome in outcomes if outcome.error]
    for outcome, error in failed:
        if outcome.verification:  # any other error was told when it came
            _complain(error)
    for _, error in failed:
        sys.exit(error.exit_status)


def _leave(found: Comparison) -> None:
    """Tell what failed in a comparison, and leave with the status of the first failure."""
    from qabuild.evidence import describe

    for failure in found.failures:
        _complain(QABuildError(failure.error, failure.hint))
    for each in found.measured:
        for gate in each.failed_gates:
            _complain(VerificationFailed(f"{each.name} does not answer as it was verified\n  {describe(gate)}"))
    statuses = [failure.status for failure in found.failures]
    if not found.passed:
        sys.exit(statuses[0] if statuses else VerificationFailed.exit_status)


def _row(outcome: _Outcome) -> list[str]:
    found = outcome.verification
    if found is None:
        result = f"error: {outcome.error.message.splitlines()[0]}" if outcome.error else "compiled, unverified"
        return [outcome.shown, *["-"] * 6, result]
    m, speed = found.measurement, found.measurement.speed
    failed = ", ".join(gate.name for gate in found.failed_gates)
    return [
        outcome.shown,
        f"{m.exact_match:.2f}",
        f"{m.f1:.2f}",
        f"{100 * m.f1_retention:.2f} %{_least(found, 'min_f1_retention')}",
        f"{100 * m.agreement:.2f} %",
        f"{speed.artifact if speed else m.samples_per_second:.1f}",
        f"{speed.speedup:.2f}x" if speed else "-",
        f"FAILED: {failed}" if failed else "passed, under other versions" if found.other_versions else "passed",
    ]


def _least(found: Verification, name: str) -> str:
    """The gate, where one is set, as the table shows it beside the figure."""
    limits = [gate.limit for gate in found.gates if gate.name == name]
    return f" (>= {100 * limits[0]:g})" if limits else ""


def _show_published(published: Published) -> None:
    if published.commit is None or published.changed:
        table(["file", "", "size"], [[c.name, c.does, _size(c.size)] for c in published.changes])
    emit(_told(published))


def _told(published: Published) -> str:
    """In one line, what is where now."""
    if published.commit is None:
        sent = [change for change in published.changes if change.does in ("add", "replace")]
        return f"{published.repo}: {len(sent)} files, {_size(sum(c.size for c in sent))} would be sent"
    where = published.pull_request or f"{published.repo} ({published.revision})"
    tag = f", tag {published.tag}" if published.tag else ""
    done = "published" if published.changed else "nothing to do, it is there already"
    verified = ", verified from there" if published.verification else ""
    return f"{where}: {done}: commit {published.commit}{tag}{verified}"


def _build_document(built: Built) -> dict[str, Any]:
    return {
        "target": built.plan.target.name,
        "artifact": str(built.directory),
        "manifest": built.manifest,
        "kept": built.kept,
        "plan": built.plan.to_dict()["steps"],
        "verification": built.verification.to_dict() if built.verification else None,
    }


def _with_status(outcome: _Outcome) -> dict[str, Any]:
    if outcome.error is None:
        return {**outcome.document, "status": 0}
    return {**outcome.document, **_error_document(outcome.error)}


def _error_document(error: QABuildError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "status": error.exit_status}


def _kept_document(kept: Kept) -> dict[str, Any]:
    return {**asdict(kept), "age": round(kept.age)}


def _kept_rows(everything: Sequence[Kept]) -> list[list[str]]:
    """The longest unused first, and a last row that sums up."""
    rows = [[k.key[:12], k.step, k.what, _megabytes(k.size), _days(k.age)] for k in everything]
    return [*rows, [f"{len(rows)} results", "", "", _megabytes(sum(k.size for k in everything)), ""]]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _size(size: int) -> str:
    return _megabytes(size) if size >= 10**6 else f"{size / 1e3:.1f} KB"


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.1f} days" if seconds >= 86400 else f"{seconds / 3600:.1f} hours"


def _state(step: Step) -> str:
    return "kept" if step.kept else "to do" if step.key else "unknown"


def _require_distinct(targets: Sequence[Target]) -> None:
    names = [target.name for target in targets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadTarget(
            f"two targets are named {', '.join(twice)}", "their artifacts would have one folder; rename one"
        )


# --- the boundary ---------------------------------------------------------------------------------------------------


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every way out has its exit status."""
    _heed_signals()
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process runs
    arguments = list(sys.argv[1:] if args is None else args)
    # Looked for by hand, since a mistake in the command line is told before the command line is understood.
    verbose = any(re.fullmatch(r"--verbose|-\w*v\w*", argument) for argument in arguments)
    as_json = "--json" in arguments
    try:
        try:
            cli.main(arguments, prog_name="qabuild", standalone_mode=False)
        except Exception as error:
            _require_uninterrupted(error)
            raise
    except click.ClickException as error:
        error.show()
        _complain_in_json(BadTarget(error.format_message(), "see `qabuild --help`"), as_json)
        sys.exit(BadTarget.exit_status)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(128 + _received[-1] if _received else INTERRUPTED)
    except (QABuildError, OSError, MemoryError) as error:
        told = _as_told(error)
        _complain(told, verbose=verbose)
        _complain_in_json(told, as_json)
        sys.exit(told.exit_status)
    except Exception as error:
        traceback.print_exc()
        click.echo("this is a defect of qabuild; please report it with the lines above", err=True)
        _complain_in_json(QABuildError(f"{type(error).__name__}: {error}"), as_json)
        sys.exit(QABuildError.exit_status)
    sys.exit(0)


_received: list[int] = []
"""Signals that asked this process to stop."""


def _heed_signals() -> None:
    """SIGTERM interrupts as SIGINT does, so that cleaning up still happens."""

    def stop(number: int, _: object) -> NoReturn:
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as of a command that was started in the background
            signal.signal(number, stop)


def _require_uninterrupted(error: BaseException | None = None) -> None:
    """Raise KeyboardInterrupt where a signal came: libraries make errors of their own of one that hits an import."""
    if _received:
        raise KeyboardInterrupt from error


def _as_told(error: QABuildError | OSError | MemoryError) -> QABuildError:
    """The error to tell; what the system refuses in a place where no one explained it keeps its own words."""
    if isinstance(error, QABuildError):
        return error
    if isinstance(error, MemoryError):
        return QABuildError("the memory does not suffice", "close other programs, or use a machine with more")
    at = f"{error.filename2 or error.filename}: " if error.filename else ""
    return QABuildError(f"{at}{error.strerror or error}", "-v shows where it came from")


def _complain(error: QABuildError, *, verbose: bool = False) -> None:
    if verbose:
        traceback.print_exc()
    click.echo(f"error: {error}", err=True)


def _complain_in_json(error: QABuildError, as_json: bool) -> None:
    """The one document on stdout of a command that came to no result."""
    if as_json:
        emit(json.dumps(_error_document(error), indent=2))


if __name__ == "__main__":
    main()
