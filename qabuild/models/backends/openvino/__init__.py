"""OpenVINO on the CPU: converted from PyTorch, in fp32, bf16 or calibrated int8."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends.openvino.core import core
from qabuild.models.backends.openvino.options import FILE, Options, needs, precision
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system import machine, packages
from qabuild.system.quiet import captured, quiet_logging, quiet_tracing

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


SNIPPET = Template(
    """\
import sys
from pathlib import Path

sys.modules.setdefault("openvino_telemetry", None)  # without this package, OpenVINO sends no usage statistics
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
        self.config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
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


tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = Graph(directory).eval()
"""
)

GUARD = """\
if not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(Path("/proc/cpuinfo").read_text().split()):
    raise RuntimeError("these weights need a processor with VNNI: without it, sums overflow and answers are wrong")

"""


PACKAGES = ("torch", "transformers", "openvino")
EXTRAS: tuple[str, ...] = ("openvino",)
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16", "int8")}
BATCH_DEPENDENT: tuple[Dtype, ...] = ()
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
VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]] = {"int8": ({"rest": "bf16"},)}

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
    """Raise BadTarget for a device or dtype that is not supported, and for `rest` without int8."""
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
    """The only way, whatever the options."""
    return WAYS


def compile_packages(options: Options) -> Mapping[str, Sequence[str]]:
    """NNCF, which quantises."""
    return {"nncf": EXTRAS}


def here() -> str:
    """The devices that OpenVINO finds, or the preloaded library that makes it crash."""
    if machine.preloaded("tcmalloc"):
        return "does not survive the preloaded tcmalloc: unset LD_PRELOAD"
    with quiet_logging(logging.CRITICAL), contextlib.redirect_stdout(io.StringIO()), captured(2):
        devices: list[str] = core().available_devices
    return ", ".join(devices)


def missing(options: Options, runtime: Runtime) -> list[str]:
    """Instructions without which int8 overflows and bf16 runs as fp32, and a preload that crashes OpenVINO."""
    return [*_instructions(options, runtime), *_preloads()]


def _preloads() -> list[str]:
    if not machine.preloaded("tcmalloc"):
        return []
    return ["OpenVINO does not survive a preloaded tcmalloc: unset LD_PRELOAD"]


def _instructions(options: Options, runtime: Runtime) -> list[str]:
    consequences = {
        "int8": "sums would overflow and answers be wrong: build it with backend.overflow_fix = true",
        "bf16": "it would be computed in fp32: set runtime.dtype (of int8, backend.rest) to fp32",
    }
    return [
        f"this {dtype} needs a processor with one of {', '.join(machine.FAST[dtype])}, and this one has none, so that "
        f"{consequences[dtype]}"
        for dtype in needs(options, runtime)
        if machine.lacks_instructions(dtype)
    ]


def native_code(options: Options) -> tuple[str, ...]:
    """None."""
    return ()


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write graph, weights, config and tokenizer; optimum-intel's OVModelForQuestionAnswering loads the folder as well.

    Returns the graph's inputs, the instructions it needs and its largest logit difference from PyTorch. Raises
    VerificationFailed if the logits differ.
    """
    packages.refuse(_preloads())
    from qabuild.models.backends.openvino import build
    from qabuild.models.checkpoint.load import copy_config, copy_tokenizer

    check(checkpoint.config, options, runtime)
    with quiet_tracing():
        record = build.build(checkpoint, options, runtime, directory / FILE, _instructions(options, runtime))
    record["needs"] = {dtype: list(machine.FAST[dtype]) for dtype in needs(options, runtime)}
    copy_config(checkpoint, directory)
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load the graph on the cores that this process may use; the model also has `submit`.

    Raises MissingEnvironment if this processor lacks the instructions that the dtype needs.
    """
    packages.refuse(missing(options, runtime))
    from qabuild.models.backends.openvino import model
    from qabuild.models.checkpoint.load import load_config

    if not (directory / FILE).is_file():
        raise UntrustedInput(f"{directory}: there is no {FILE} in it", "rebuild the artifact")
    config = load_config(directory)
    return model.load(directory / FILE, config, options, runtime)


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for OpenVINO, with the precision of `load`; it refuses the same processors for int8."""
    guard = GUARD if "int8" in needs(options, runtime) else ""
    return SNIPPET.substitute(guard=guard, precision=precision(options, runtime))
