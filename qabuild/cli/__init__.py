"""The command line: thin commands, and the one place where errors become messages and exit statuses.

Nothing is imported here but click; each command imports what it needs, so that --help answers at once.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from qabuild import __version__
from qabuild.cli import answer as answering
from qabuild.cli import build as building
from qabuild.cli import compare as comparing
from qabuild.cli import inspect as inspecting
from qabuild.cli import publish as publishing
from qabuild.cli.failures import as_told, complain, complain_in_json, heed_signals, received, require_uninterrupted
from qabuild.cli.options import FLAGS
from qabuild.errors import INTERRUPTED, BadTarget, QABuildError

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


for command in (
    *(building.build, building.verify, comparing.compare, comparing.report, building.plan, publishing.publish),
    *(building.lock, answering.answer, inspecting.cache, inspecting.targets, inspecting.doctor, inspecting.schema),
):
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every way out has its exit status."""
    heed_signals()
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
            require_uninterrupted(error)
            raise
    except click.ClickException as error:
        error.show()
        complain_in_json(BadTarget(error.format_message(), "see `qabuild --help`"), as_json)
        sys.exit(BadTarget.exit_status)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(128 + received[-1] if received else INTERRUPTED)
    except (QABuildError, OSError, MemoryError) as error:
        told = as_told(error)
        complain(told, verbose=verbose)
        complain_in_json(told, as_json)
        sys.exit(told.exit_status)
    except Exception as error:
        traceback.print_exc()
        click.echo("this is a defect of qabuild; please report it with the lines above", err=True)
        complain_in_json(QABuildError(f"{type(error).__name__}: {error}"), as_json)
        sys.exit(QABuildError.exit_status)
    sys.exit(0)
