"""The step `compile`: the checkpoint, as the target's backend compiles it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from qabuild.builder.keys import Inputs, flat, package_inputs, package_versions
from qabuild.builder.steps.step import ARTIFACT, Context, Facts, Requirements
from qabuild.models import calibration
from qabuild.models.backends import BACKENDS, backend
from qabuild.qa import ask
from qabuild.system import machine, native_code
from qabuild.target.model import Target

WORK = ("qabuild.models.compiler", "qabuild.artifact.handler", "qabuild.qa.plain_decoder")


class Compile:
    name: ClassVar[str] = "compile"
    stage: ClassVar[str] = ARTIFACT
    folder: ClassVar[str | None] = ""

    def requires(self, target: Target) -> Requirements:
        module = backend(target.backend.name)
        return {
            **dict.fromkeys(ask.PACKAGES, ()),
            **dict.fromkeys(module.PACKAGES, module.EXTRAS),
            **module.compile_packages(target.backend),
        }

    def inputs(self, target: Target, facts: Facts) -> Inputs | None:
        return {
            "checkpoint": facts.identity,
            **flat("backend", calibration.options_record(target.backend)),
            **({"calibration": facts.data_identity("backend.calibration")} if target.calibrated else {}),
            **flat("runtime", target.runtime.model_dump(mode="json")),
            **package_inputs(facts.versions, self.requires(target)),
            **_hardware(target, facts),
            "code": facts.code.digest(*WORK, _module(target)),
        }

    def run(self, context: Context, directory: Path) -> Mapping[str, Any]:
        from qabuild.artifact import handler
        from qabuild.models.compiler import compile_in_child

        target = context.target
        record = compile_in_child(context.checkpoint, target.backend, target.runtime, directory)
        for name in backend(target.backend.name).native_code(target.backend):
            native_code.register(directory / name)
        handler.write(target.backend, target.runtime, package_versions(context.inputs), directory)
        return record


def _module(target: Target) -> str:
    return BACKENDS[target.backend.name]


def _hardware(target: Target, facts: Facts) -> dict[str, Any]:
    """What low-precision kernels, GPU graphs and native code are made for; native code also names its compiler.

    So native code of a cache that is shared, or was restored from elsewhere, is not taken for this machine's own.
    """
    if backend(target.backend.name).native_code(target.backend):
        return {"compiler flags": list(machine.compiler_flags()), "compiler id": native_code.compiler_id()}
    if target.runtime.device == "cuda":
        return {"gpu architecture": facts.machine.get("gpu_architecture")}
    if target.runtime.dtype == "int8":
        return {"instruction sets": facts.machine["instruction_sets"]}
    return {}
