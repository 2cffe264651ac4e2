"""Compile in a subprocess: compilers patch libraries and set global state (optimum's exporter, DeepSpeed, TorchScript),
and the kernel may kill them when memory runs out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qabuild.models.backends import backend
from qabuild.models.runtime import Runtime
from qabuild.models.support import check
from qabuild.system.frozen import Frozen
from qabuild.system.process import Tell, run_in_child, serve

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


def compile_in_child(checkpoint: Checkpoint, options: Frozen, runtime: Runtime, directory: Path) -> Mapping[str, Any]:
    """Run `compile` of the backend that `options` name in a fresh process. Raises what the backend raised."""
    request = {
        "checkpoint": checkpoint.to_dict(),
        "options": options.model_dump(mode="json"),
        "runtime": runtime.model_dump(mode="json"),
    }
    # Everything it reads has been downloaded before.
    return run_in_child(
        "qabuild.models.compiler", request, directory, "the compiler", environment={"HF_HUB_OFFLINE": "1"}
    )


def _compile(request: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    from qabuild.models.checkpoint.resolve import Checkpoint

    module = backend(request["options"]["name"])
    checkpoint = Checkpoint.from_dict(request["checkpoint"])
    options = module.Options.model_validate(request["options"])
    runtime = Runtime.model_validate(request["runtime"])
    check(checkpoint.config, options, runtime)
    return module.compile(checkpoint, options, runtime, Path(request["directory"]))


if __name__ == "__main__":
    serve(_compile)
