"""OpenVINO on the CPU: converted from PyTorch itself, in fp32, bf16 or calibrated int8."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qabuild.backends import Runtime
from qabuild.backends.architectures import check_architecture
from qabuild.backends.calibration import Calibrated
from qabuild.errors import BadTarget, MissingEnvironment, UntrustedInput

if TYPE_CHECKING:
    from qabuild.checkpoint import Checkpoint

FILE = "openvino_model.xml"
"""The graph, under the name that optimum-intel looks for; its weights lie beside it, in openvino_model.bin."""


class Options(Calibrated):
    """How the graph is quantised; in fp32 and bf16 there is nothing to choose."""

    name: Literal["openvino"] = Field("openvino", description="an OpenVINO graph, converted from PyTorch")


PACKAGES = ("torch", "transformers", "openvino", "nncf")


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for a device, a dtype or an architecture that is not supported."""
    if runtime.device != "cpu":
        raise BadTarget(
            f"backend openvino is for the CPU, and runtime.device is {runtime.device!r}",
            "set runtime.device to cpu, or take the backend onnxruntime or torchscript",
        )
    if runtime.dtype == "fp16":
        raise BadTarget("backend openvino has no fp16 on the CPU", "set runtime.dtype to fp32, bf16 or int8")
    check_architecture("openvino", config)


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write graph, weights, config and tokenizer, which optimum-intel's OVModelForQuestionAnswering opens as well.

    Returns the graph's inputs and its largest logit difference to PyTorch. Raises VerificationFailed where it
    computes something else.
    """
    from qabuild.backends import _openvino
    from qabuild.checkpoint import copy_tokenizer

    check(checkpoint.config, options, runtime)
    record = _openvino.build(checkpoint, options, runtime, directory / FILE)
    shutil.copyfile(checkpoint.directory / "config.json", directory / "config.json")
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """The graph on the cores that this process may use, as a model that gives a QuestionAnsweringModelOutput.

    It has `submit` as well, which takes what a call takes and returns at once; see `qabuild.pipeline`. Raises
    MissingEnvironment where this processor lacks what the numbers need.
    """
    from transformers import AutoConfig

    from qabuild.backends import _openvino

    if not (directory / FILE).is_file():
        raise UntrustedInput(f"{directory}: there is no {FILE} in it", "build the artifact anew")
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    return _openvino.load(directory / FILE, config, options, runtime)
