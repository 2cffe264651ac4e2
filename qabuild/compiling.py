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
    # -P and PYTHONPATH: it imports what this process would, and nothing that lies about in the current folder.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qabuild.compiling"],
        input=json.dumps(request),
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        # All that it reads was fetched before.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        # Of a full disk torch dies instead of raising, so that what is left of it is in stderr and on the disk.
        raise disk_error(RuntimeError(done.stderr), directory) or _died(done.returncode, done.stderr) from None
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), answer["file"])
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
    except Exception as error:
        if found := disk_error(error, Path(request["directory"])):
            return {"errno": found.errno, "file": found.filename2 or found.filename}
        raise


def _die_with_parent() -> None:
    """Ask the kernel to end this process with the build, however that ends (prctl PR_SET_PDEATHSIG, Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _died(status: int, stderr: str) -> errors.QABuildError:
    """What to say of a compiler that gave no answer; the end of what it printed is shown with the traceback."""
    lines = stderr.strip().splitlines()
    how = f"ended with status {status}: {lines[-1] if lines else 'nothing said'}"
    hint = "-v shows all that it printed"
    if status < 0:
        how = f"was killed by signal {-status} ({signal.strsignal(-status)})"
    if status == -signal.SIGKILL:
        hint = "as a rule the memory did not suffice: close other programs, or build on a machine with more"
    error = errors.QABuildError(f"the compiler {how}", hint)
    error.add_note("\n".join(["What the compiler printed last:", *lines[-50:]]))
    return error


if __name__ == "__main__":
    main()
