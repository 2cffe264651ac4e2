"""`serve`: answers questions over HTTP."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from qabuild.cli.console import Console
from qabuild.cli.options import SIZES, Finite, Quantity, common, native_option, signer_options, unverified_option
from qabuild.errors import BadTarget

TOKEN = "QABUILD_SERVE_TOKEN"


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="[NAME=]ARTIFACT...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Questions that are answered together, at most.",
)
@click.option(
    "--max-wait-ms",
    type=Finite(0),
    default=0,
    show_default=True,
    help="How long a question waits for others although the model is idle.",
)
@click.option(
    "--max-queue", type=click.IntRange(1), default=1024, show_default=True, help="Questions that wait, by artifact."
)
@click.option("--max-body", type=Quantity(SIZES), default="4MB", show_default=True, help="Size of a request.")
@click.option(
    "--max-characters",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Characters of a question or a context.",
)
@click.option("--token", envvar=TOKEN, help="Bearer token that clients must send.")
@signer_options
@native_option
@unverified_option
@common
def serve(
    artifacts: Sequence[str],
    host: str,
    port: int,
    max_batch: int,
    max_wait_ms: float,
    max_queue: int,
    max_body: float,
    max_characters: int,
    token: str | None,
    signer: Any,
    allow_native: bool,
    allow_unverified: bool,
    console: Console,
) -> None:
    """Answer questions over HTTP from each ARTIFACT, a folder or a repository on the Hub (owner/name).

    POST /answer takes {"question": "...", "context": "..."}; GET /docs shows everything else. Several artifacts are
    told apart by the NAME, by default the folder's. Questions of different clients are answered in batches. The
    environment variable QABUILD_SERVE_TOKEN is the token, too, and does not show in the list of processes. SIGTERM and
    Ctrl-C stop the server once every accepted request is answered. Refuses an artifact that did not pass its
    verification.
    """
    sources, token = _sources(artifacts), _token(token)  # before anything heavy is imported

    import asyncio

    from qabuild.serving import run
    from qabuild.serving.settings import Settings

    run.require_library()
    from qabuild.serving.model import Permissions, load_model

    settings = Settings(
        host=host,
        port=port,
        max_batch=max_batch,
        max_wait=max_wait_ms / 1000,
        max_queue=max_queue,
        max_body=int(max_body),
        max_characters=max_characters,
        token=token,
    )
    permissions = Permissions(
        key=signer, allow_native=allow_native or signer is not None, allow_unverified=allow_unverified
    )
    listener = run.listen(settings)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    console.say(f"{address}: loading {', '.join(sources)}")

    def ready() -> None:
        console.say(f"{address}: ready")
        console.result({"address": address, "artifacts": sources}, lambda: None)

    load = partial(load_model, permissions=permissions, reporter=console)
    asyncio.run(run.serve(sources, load, settings, listener, reporter=console, ready=ready))


def _token(given: str | None) -> str | None:
    """The token that clients must send, without what surrounds it in a file. Raises UsageError."""
    token = os.environ.get(TOKEN) if given is None else given  # click takes an empty variable for none
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isprintable() or " " in token:
        raise click.UsageError(f"--token, or {TOKEN}: is empty, or holds a space or a character that does not show")
    return token


def _sources(artifacts: Sequence[str]) -> dict[str, str]:
    """Where the artifact of each name lies. Raises BadTarget."""
    sources: dict[str, str] = {}
    for artifact in artifacts:
        name, equals, source = artifact.partition("=")
        if not equals or Path(artifact).exists():
            name, source = Path(artifact).resolve().name, artifact
        if not source:
            raise BadTarget(f"{artifact!r} names no artifact", "give a folder or a repository, as NAME=ARTIFACT")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise BadTarget(f"{artifact}: {name!r} cannot stand in an address", f"name it: NAME={source}")
        if name in sources:
            raise BadTarget(f"{artifact}: {sources[name]} is named {name}, too", f"name it: NAME={source}")
        sources[name] = source
    return sources
