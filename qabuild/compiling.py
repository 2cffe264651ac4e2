"""Compile in a process of its own: `python -m qabuild.compiling < request.json > answer.json`.

Compiling patches libraries and sets global state (optimum's exporter, DeepSpeed, TorchScript); verification must run
in a process that saw none of it, and a compiler that is killed for memory must not take the build with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild import errors
from qabuild.backends import Frozen, Runtime, backend

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
        [sys.executable, "-m", "qabuild.compiling"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise errors.QABuildError(_died(done.returncode, done.stderr)) from None
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"], answer["hint"])
    return dict(answer["record"])


def main() -> None:
    """Read the request, compile, and answer on the real stdout; whatever libraries print goes to stderr."""
    _die_with_parent()
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with redirect_stdout(sys.stderr):
        answer = _answer(json.load(sys.stdin))
    json.dump(answer, answer_to)
    answer_to.close()


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


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the build, however that ends (prctl PR_SET_PDEATHSIG, Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _died(status: int, stderr: str) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"the compiler {how}\n" + "\n".join(f"  {line}" for line in stderr.strip().splitlines()[-25:])


if __name__ == "__main__":
    main()
