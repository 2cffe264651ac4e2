"""OpenVINO on the CPU: converted from PyTorch itself, in fp32, bf16 or calibrated int8."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends.openvino.core import core
from qabuild.models.backends.openvino.options import FILE, Options, needs, precision
from qabuild.models.calibration import Calibrated as Calibrated
from qabuild.models.dtype_speed import Rule
from qabuild.models.runtime import Dtype, Runtime
from qabuild.models.support import Way
from qabuild.system import machine, packages
from qabuild.system.quiet import captured, quiet_logging, quiet_tracing

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


SNIPPET = Template(
    """\
from pathlib import Path

import openvino
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_outputs import QuestionAnsweringModelOutput

# optimum-intel opens the same folder: OVModelForQuestionAnswering.from_pretrained(directory)

$guard
class Graph(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.device = torch.device("cpu")
        self.config = AutoConfig.from_pretrained(directory)
        settings = {"INFERENCE_PRECISION_HINT": "$precision"}
        self.graph = openvino.Core().compile_model(Path(directory, "openvino_model.xml"), "CPU", settings)
        type(self).__name__ = self.config.architectures[0]  # the name that transformers' pipeline knows

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        found = self.graph({port.any_name: given[port.any_name].numpy() for port in self.graph.inputs})
        start, end = (torch.from_numpy(found[name].copy()) for name in ("start_logits", "end_logits"))
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


tokenizer = AutoTokenizer.from_pretrained(directory)
model = Graph(directory).eval()
"""
)

GUARD = """\
if not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(Path("/proc/cpuinfo").read_text().split()):
    raise RuntimeError("these weights need a processor with VNNI: without it, sums overflow and answers are wrong")

"""


PACKAGES = ("torch", "transformers", "openvino", "nncf")
EXTRAS: tuple[str, ...] = ("openvino",)
COMPILE_ONLY: tuple[str, ...] = ("nncf",)
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16", "int8")}
RUNTIME = ("OpenVINO", "openvino")
SPEED: tuple[Rule, ...] = (
    Rule(
        dtype="int8",
        instructions=None,
        backend="openvino",
        rate=0.8,
        why="without VNNI, OpenVINO's int8 takes detours, and needs overflow_fix",
    ),
)

CONVERTED = Way(
    name="openvino",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text"),
        *("deberta", "deberta-v2", "distilbert", "electra", "ernie", "ibert"),
        *("megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer", "rembert"),
        *("roberta", "roberta-prelayernorm", "roformer", "splinter", "squeezebert", "xlm-roberta"),
        *("xlm-roberta-xl",),
    ),
    refused={"longformer": "a trace cannot hold its sliding windows"},
)
WAYS = (CONVERTED,)


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for a device or a dtype that is not supported."""
    if runtime.device != "cpu":
        raise BadTarget(
            f"runtime.device = {runtime.device!r}: the backend openvino is for the CPU",
            "set runtime.device to cpu, or take the backend onnxruntime or torchscript",
            key="runtime.device",
        )
    if runtime.dtype == "fp16":
        raise BadTarget(
            "runtime.dtype = 'fp16' is not supported by OpenVINO on the CPU",
            "set it to fp32, bf16 or int8",
            key="runtime.dtype",
        )
    if runtime.dtype != "int8" and options.rest != "fp32":
        raise BadTarget(
            f"backend.rest = {options.rest!r} is for what int8 leaves, and runtime.dtype is {runtime.dtype!r}",
            "leave backend.rest out, or set runtime.dtype to int8",
            key="backend.rest",
        )


def ways(options: Options, runtime: Runtime) -> tuple[Way, ...]:
    """The one there is."""
    return WAYS


def here() -> str:
    """The devices that OpenVINO finds."""
    if machine.preloaded("tcmalloc"):
        return "does not survive the preloaded tcmalloc: unset LD_PRELOAD"
    with quiet_logging(logging.CRITICAL), contextlib.redirect_stdout(io.StringIO()), captured(2):
        devices: list[str] = core().available_devices
    return ", ".join(devices)


def lacks(options: Options, runtime: Runtime) -> list[str]:
    """Instructions without which int8 is wrong and bf16 is not what is computed; and peace from a preload."""
    return [*_instructions(options, runtime), *_preloads()]


def _preloads() -> list[str]:
    if not machine.preloaded("tcmalloc"):
        return []
    return ["OpenVINO does not survive a preloaded tcmalloc: unset LD_PRELOAD"]


def _instructions(options: Options, runtime: Runtime) -> list[str]:
    wanted = {
        "int8": "sums would overflow and answers be wrong: build it with backend.overflow_fix = true",
        "bf16": "it would be computed in fp32: set runtime.dtype (of int8, backend.rest) to fp32",
    }
    return [
        f"this {dtype} needs a processor with one of {', '.join(machine.FAST[dtype])}, and this one has none, so that "
        f"{wanted[dtype]}"
        for dtype in needs(options, runtime)
        if machine.lacks_instructions(dtype)
    ]


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write graph, weights, config and tokenizer, which optimum-intel's OVModelForQuestionAnswering opens as well.

    Returns the graph's inputs and its largest logit difference to PyTorch. Raises VerificationFailed where it
    computes something else.
    """
    packages.refuse(_preloads())
    from qabuild.models.backends.openvino import build as _openvino_build
    from qabuild.models.checkpoint.load import copy_tokenizer

    check(checkpoint.config, options, runtime)
    with quiet_tracing():
        record = _openvino_build.build(checkpoint, options, runtime, directory / FILE, _instructions(options, runtime))
    record["needs"] = {dtype: list(machine.FAST[dtype]) for dtype in needs(options, runtime)}
    shutil.copyfile(checkpoint.directory / "config.json", directory / "config.json")
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """The graph on the cores that this process may use, as a model that gives a QuestionAnsweringModelOutput.

    It has `submit` as well, which takes what a call takes and returns at once; see `qabuild.qa.pipeline`. Raises
    MissingEnvironment where this processor lacks what the numbers need.
    """
    from transformers import AutoConfig

    packages.refuse(lacks(options, runtime))
    from qabuild.models.backends.openvino import model as _openvino

    if not (directory / FILE).is_file():
        raise UntrustedInput(f"{directory}: there is no {FILE} in it", "build the artifact anew")
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    return _openvino.load(directory / FILE, config, options, runtime)


def snippet(options: Options, runtime: Runtime) -> str:
    """Lines for OpenVINO itself, in the precision that `load` sets, and on no processor that `load` refuses."""
    guard = GUARD if "int8" in needs(options, runtime) else ""
    return SNIPPET.substitute(guard=guard, precision=precision(options, runtime))
