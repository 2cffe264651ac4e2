"""Compile in a process of its own: `python -m qabuild.compiling < request.json > answer.json`.

Compiling patches libraries and sets global state (optimum's exporter, DeepSpeed, TorchScript); verification must run
in a process that saw none of it, and a compiler that is killed for memory must not take the build with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild import errors, processes
from qabuild.backends import Frozen, Runtime, backend
from qabuild.store import disk_error

if TYPE_CHECKING:
    from qabuild.checkpoint import Checkpoint


def compile_apart(checkpoint: Checkpoint, options: Frozen, runtime: Runtime, directory: Path) -> Mapping[str, Any]:
    """`compile` of the backend that `options` name, in a fresh process. Raises what the backend raised."""
    request = {
        "checkpoint": {**asdict(checkpoint), "directory": str(checkpoint.directory)},
        "options": options.model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
        "directory": str(directory),
    }
    done = subprocess.run(
        processes.command("qabuild.compiling"),
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        env=processes.environment(),
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        # Of a full disk torch dies instead of raising, so that what is left of it is in stderr and on the disk.
        failed = disk_error(RuntimeError(done.stderr), directory)
        raise failed or processes.died("the compiler", done.returncode, done.stderr) from None
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"])
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"], answer["hint"])
    return dict(answer["record"])


def main() -> None:
    """Read the request, compile, and answer on the real stdout; whatever libraries print goes to stderr."""
    processes.die_with_parent()
    with processes.take_stdout() as answer_to:
        json.dump(_answer(json.load(sys.stdin)), answer_to)


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    from qabuild.checkpoint import Checkpoint

    module = backend(request["options"]["name"])
    checkpoint = Checkpoint(**{**request["checkpoint"], "directory": Path(request["checkpoint"]["directory"])})
    options = module.Options.model_validate(request["options"])
    runtime = Runtime.model_validate(request["runtime"])
    try:
        return {"record": module.compile(checkpoint, options, runtime, Path(request["directory"]))}
    except errors.QABuildError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    except Exception as error:
        if found := disk_error(error, Path(request["directory"])):
            return {"errno": found.errno, "file": found.filename2 or found.filename}
        raise


if __name__ == "__main__":
    main()
