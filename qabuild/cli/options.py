"""Arguments and options that several commands share, and their parameter types."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from qabuild.artifact import FOLDER
from qabuild.cli.console import Console
from qabuild.errors import BadTarget
from qabuild.system.environment import require_usable
from qabuild.system.sealed import require_outside

FLAGS = {"-q", "--quiet", "-v", "--verbose", "--json"}
"""Options of every command."""


AGES = {"h": 3600, "d": 86400, "w": 7 * 86400}


SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class Quantity(click.ParamType[float]):
    """A number with a unit."""

    name = "quantity"

    def __init__(self, units: Mapping[str, int]) -> None:
        self.units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        units = {unit.lower(): factor for unit, factor in self.units.items()}
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", str(value).lower())
        if not match or match[2] not in units:
            known = ", ".join(self.units)
            self.fail(f"{value!r} is not a number with one of the units {known}, as in 5{[*self.units][1]}", param, ctx)
        return float(match[1]) * units[match[2]]


class Finite(click.FloatRange):
    """A number within a range, which is neither infinite nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class BatchSizes(click.ParamType[tuple[int, ...]]):
    """Comma-separated integers, each at least 1."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        words = [word.strip() for word in str(value).split(",") if word.strip()] if isinstance(value, str) else value
        if not all(str(word).isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is not a list of numbers from 1, as in 1,8,32", param, ctx)
        return tuple(dict.fromkeys(int(word) for word in words))


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command, and pass them to it as a `console` argument."""

    @click.option("-q", "--quiet", is_flag=True, help="Print only the result and errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Print a traceback with every error.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document on stdout.")
    @functools.wraps(command)
    def wrapped(*args: Any, quiet: bool, verbose: bool, as_json: bool, **kwargs: Any) -> Any:
        require_usable()
        return command(*args, console=Console(quiet=quiet, verbose=verbose, json=as_json), **kwargs)

    return wrapped


target_files = click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TARGET...")


artifact_folders = click.argument(
    "artifacts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ARTIFACT..."
)


output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(FOLDER),
    show_default=True,
    help="Folder for the artifacts.",
)


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, as in --set verify.samples=200; of several targets, where it occurs.",
)


locked_option = click.option("--locked", is_flag=True, help="Use only what each target's lock file pins.")


data_option = click.option("--data", "dataset", metavar="SOURCE", help="The questions: a file, or a Hub id.")


class _Column(click.ParamType[tuple[str, str]]):
    """What a column holds, and its name."""

    name = "column"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, column = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not of the form NAME=COLUMN, as in question=frage", param, ctx)
        return name, column


column_option = click.option(
    "--column",
    "columns",
    multiple=True,
    type=_Column(),
    metavar="NAME=COLUMN",
    callback=lambda context, parameter, pairs: dict(pairs),
    help="Column or key that holds id, question, context, ... under another name.",
)


native_option = click.option(
    "--allow-native", is_flag=True, help="Load native code that you did not compile here; it can do whatever you can."
)


unverified_option = click.option(
    "--allow-unverified", is_flag=True, help="Load an artifact that failed its verification, or has no valid evidence."
)


def signer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--key`, `--identity` and `--issuer`, and pass the required signer to the command as `signer`."""

    @click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="Require a signature by a public key.")
    @click.option("--identity", metavar="NAME", help="Require a signature by an identity, through Sigstore.")
    @click.option("--issuer", metavar="URL", help="Who must have authenticated the identity.")
    @functools.wraps(command)
    def wrapped(*args: Any, key: Path | None, identity: str | None, issuer: str | None, **kwargs: Any) -> Any:
        if (identity is None) != (issuer is None):
            raise click.UsageError("--identity and --issuer need each other")
        if key and identity:
            raise click.UsageError("--key and --identity exclude each other")
        signer: Any = key
        if identity and issuer:
            from qabuild.artifact.signature import Identity

            signer = Identity(identity, issuer)
        return command(*args, signer=signer, **kwargs)

    return wrapped


offline_option = click.option("--offline", is_flag=True, help="Use only what is cached; fail if anything is missing.")


def require_writable(path: Path) -> None:
    """Refuse a `path` that cannot be written, before minutes are spent on what to write."""
    from qabuild.system.files import require_creatable

    if path.exists() and not path.is_file():  # replacing a device, say, would remove it for everyone
        raise BadTarget(f"{path}: is no file, and would be replaced by one", "name another file")
    require_outside(Path(os.path.realpath(path)))
    require_creatable(path)
