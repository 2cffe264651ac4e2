"""Work in a process of its own: `python -m MODULE < request.json > messages.jsonl`.

What compiles or trains patches libraries, sets global state and takes memory; verification must run in a process that
saw none of it, and one that is killed must not take the build with it. The last message is the answer; those before
tell of progress.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qabuild import errors
from qabuild.system import child
from qabuild.system.files import disk_error

Tell = Callable[[Mapping[str, Any]], None]
"""Sends a message, a JSON object, or takes one."""


def run_apart(
    module: str,
    request: Mapping[str, Any],
    directory: Path,
    what: str,
    hear: Tell = lambda message: None,
    environment: Mapping[str, str] | None = None,
) -> Mapping[str, Any]:
    """Let `module` answer `request` in a fresh process, and return what it recorded. Raises what it raised.

    `directory` is where it writes, and `what` what a message calls it. `hear` takes what it tells meanwhile.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as stderr:
        process = subprocess.Popen(
            child.command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            env={**child.environment(), **(environment or {})},
        )
        with process:
            try:
                answer = _converse(process, request, hear)
            except BaseException:
                process.kill()
                raise
        stderr.seek(0)
        printed = stderr.read()
    if answer is None:
        # Of a full disk torch dies instead of raising, so that what is left of it is in stderr and on the disk.
        raise disk_error(RuntimeError(printed), directory) or child.died(f"the {what}", process.returncode, printed)
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"], answer["hint"])
    return dict(answer["record"])


def _converse(process: subprocess.Popen[str], request: Mapping[str, Any], hear: Tell) -> Mapping[str, Any] | None:
    """Hand over the request, hear what is told, and return the answer: the last message, if it is one."""
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError), process.stdin:  # it died at once: its status says more
        json.dump(request, process.stdin)
    answer = None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:  # cut off by its death
            return None
        if "told" in message:
            hear(message["told"])
        else:
            answer = message
    return answer


def serve(work: Callable[[Any, Tell], Mapping[str, Any]]) -> None:
    """Read the request, do the work, and answer on the real stdout; whatever libraries print goes to stderr."""
    child.die_with_parent()
    with child.take_stdout() as messages:

        def send(message: Mapping[str, Any]) -> None:
            messages.write(json.dumps(message) + "\n")
            messages.flush()

        send(_answer(work, json.load(sys.stdin), send))


def _answer(work: Callable[[Any, Tell], Mapping[str, Any]], request: Any, send: Tell) -> Mapping[str, Any]:
    try:
        return {"record": work(request, lambda told: send({"told": told}))}
    except errors.QABuildError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:
        if found := disk_error(error, Path(request["directory"])):
            return {"errno": found.errno, "file": found.filename2 or found.filename}
        raise
