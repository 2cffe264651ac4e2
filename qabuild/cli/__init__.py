"""The command line: thin commands, and the only place that turns errors into messages and exit statuses.

At import, this module loads no heavy package; each command imports what it needs, so that --help stays fast.
"""

from __future__ import annotations

import difflib
import io
import itertools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from qabuild import __version__
from qabuild.cli import answer, build, compare, data, export, inspect, publish, serve, show, sign, targets, tune
from qabuild.cli.console import print_message
from qabuild.cli.failures import (
    exit_interrupted,
    handle_signals,
    print_error,
    print_json_error,
    require_uninterrupted,
    to_qabuild_error,
)
from qabuild.cli.options import FLAGS
from qabuild.errors import BadTarget, QABuildError, RenamedKey
from qabuild.system import panic
from qabuild.system.terminal import visible

EPILOG = """\b
Exit status:
  0    success
  1    verification failed
  2    bad target or usage
  3    missing environment: a device or a package is missing on this machine
  4    untrusted input: damaged, unsafe to load, or not what it claims to be
  5    any other error
  130  interrupted
"""


class _Commands(click.Group):
    """A group in which `qabuild TARGET.toml` is short for `qabuild build TARGET.toml`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = self._command_first(args)
        if args and args[0] not in {*self.commands, "-h", "--help", "--version"}:
            if not ctx.resilient_parsing:  # as in shell completion
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
    """Compile question-answering checkpoints into deployable artifacts that carry their own evidence.

    `qabuild TARGET.toml...` builds each target: it compiles the checkpoint into artifacts/NAME, reloads the artifact
    from disk, and compares its answers with those of the checkpoint.
    """


for command in (
    *(build.build, build.verify, tune.tune, compare.compare, compare.report, build.plan, publish.publish),
    *(show.show, show.fetch),
    *(sign.keygen, sign.sign, sign.sbom),
    *(
        build.lock,
        answer.answer,
        serve.serve,
        export.export,
        data.data,
        inspect.cache,
        targets.init,
        targets.targets,
        inspect.doctor,
        inspect.schema,
    ),
):
    cli.add_command(command)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Without a source line where the warning is about a target, not about code."""
    place = "" if issubclass(category, RenamedKey) else f"{filename}:{lineno}: {category.__name__}: "
    return visible(f"warning: {place}{message}\n")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    handle_signals()
    warnings.formatwarning = _format_warning
    if sys.stdout is None:  # closed, as by `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process runs
    arguments = list(sys.argv[1:] if args is None else args)
    # Parsed by hand: a usage error is reported before click has parsed the options.
    verbose = any(re.fullmatch(r"--verbose|-\w*v\w*", argument) for argument in arguments)
    as_json = "--json" in arguments
    try:
        try:
            with panic.explained("a tokenizer"):
                cli.main(arguments, prog_name="qabuild", standalone_mode=False)
        except Exception as error:
            require_uninterrupted(error)
            raise
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        print_message(usage.getvalue().rstrip())
        print_json_error(BadTarget(error.format_message(), "see `qabuild --help`"), as_json)
        sys.exit(BadTarget.exit_status)
    except (KeyboardInterrupt, click.Abort):
        exit_interrupted(as_json)
    except (QABuildError, OSError, MemoryError) as error:
        reported = to_qabuild_error(error)
        print_error(reported, verbose=verbose)
        print_json_error(reported, as_json)
        sys.exit(reported.exit_status)
    except Exception as error:
        print_message(f"{traceback.format_exc()}this is a bug in qabuild; please report it with the lines above")
        print_json_error(QABuildError(f"{type(error).__name__}: {error}"), as_json)
        sys.exit(QABuildError.exit_status)
    sys.exit(0)
