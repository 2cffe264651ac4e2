"""TorchScript: the model traced under the autocast of its dtype, then frozen. torch deprecates it for torch.export."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qabuild.errors import BadTarget
from qabuild.models.backends.record import Program
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system import documents, packages
from qabuild.system.frozen import Frozen
from qabuild.system.quiet import quiet_tracing

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

UNSUPPORTED_PYTHON = (3, 14)
LIMITS = [
    "It is TorchScript, which torch deprecates and does not support on Python 3.14 or newer. Its successor is "
    "torch.export: qabuild's backend `torch_export`."
]
"""Sentences for the model card."""
MODULE = "model.pt"
TRACE = "trace.json"


SNIPPET = """\
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_outputs import QuestionAnsweringModelOutput


class Traced(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.device = torch.device("$device")
        self.config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        self.module = torch.jit.load(Path(directory, "model.pt"), map_location=self.device)
        self.inputs = json.loads(Path(directory, "trace.json").read_text())["inputs"]
        type(self).__name__ = self.config.architectures[0]  # the name that transformers' pipeline knows

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        arguments = [given[name].to(self.device) for name in self.inputs]
        with $modes, torch.jit.optimized_execution(False):
            start, end = self.module(*arguments)
        return QuestionAnsweringModelOutput(start_logits=start.float(), end_logits=end.float())


tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = Traced(directory).eval()
"""


class Options(Frozen):
    """TorchScript has no options; runtime.dtype decides on autocast."""

    name: Literal["torchscript"] = Field(
        "torchscript", description="traced and frozen TorchScript, which torch deprecates"
    )


PACKAGES = ("torch", "transformers")
EXTRAS: tuple[str, ...] = ()
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")}
BATCH_DEPENDENT: tuple[Dtype, ...] = ()
RUNTIME = ("torch", "torch")
SPEED: tuple[Rule, ...] = ()
VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]] = {}

TRACED = Way(
    name="torchscript",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text"),
        *("deberta", "deberta-v2", "distilbert", "electra", "ernie", "ibert"),
        *("megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer", "rembert"),
        *("roberta", "roberta-prelayernorm", "roformer", "splinter", "squeezebert", "xlm-roberta"),
        *("xlm-roberta-xl",),
    ),
    refused={"longformer": "a trace cannot hold its sliding windows"},
)
WAYS = (TRACED,)


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for int8."""
    if runtime.dtype == "int8":
        raise BadTarget(
            "runtime.dtype = 'int8': a trace quantises nothing",
            "use fp32, bf16 or fp16, or one of the backends onnxruntime and openvino",
            key="runtime.dtype",
        )


def ways(options: Options, runtime: Runtime) -> tuple[Way, ...]:
    """The only way, whatever the options."""
    return WAYS


def compile_packages(options: Options) -> Mapping[str, Sequence[str]]:
    """Nothing beyond what loads it."""
    return {}


def here() -> str:
    """Nothing: `doctor` reports torch itself."""
    return ""


def missing(options: Options, runtime: Runtime) -> list[str]:
    """A Python that TorchScript supports; torch runs every dtype on any processor."""
    if sys.version_info < UNSUPPORTED_PYTHON:
        return []
    return [
        f"torch does not support TorchScript on Python {sys.version_info[0]}.{sys.version_info[1]}: use Python 3.13 or "
        "older, or backend.name = 'torch_export', its successor"
    ]


def native_code(options: Options) -> tuple[str, ...]:
    """None."""
    return ()


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write `model.pt`, `trace.json`, config and tokenizer.

    Returns inputs, shape and device of the trace, and its largest logit difference from PyTorch, in other shapes too.
    Raises MissingEnvironment if the runtime's device is missing on this machine: a trace is bound to its device.
    """
    from qabuild.models.backends.torchscript import trace
    from qabuild.models.checkpoint.load import copy_config, copy_tokenizer

    check(checkpoint.config, options, runtime)
    packages.refuse(missing(options, runtime))
    with quiet_tracing():
        record = trace.build(checkpoint, runtime, directory / MODULE)
    record["limits"] = LIMITS
    (directory / TRACE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    copy_config(checkpoint, directory)
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load the traced module on the device it was traced on.

    Raises BadTarget if the runtime names another device, MissingEnvironment if the device is missing on this machine or
    Python is newer than TorchScript supports.
    """
    packages.refuse(missing(options, runtime))
    from qabuild.models.backends.torchscript import trace
    from qabuild.models.checkpoint.load import load_config

    record = documents.load(Program, directory / TRACE, "build the artifact again")
    if record["device"] != runtime.device:
        raise BadTarget(
            f"this module was traced on {record['device']} and is bound to it; it cannot run on {runtime.device}",
            f"rebuild it with runtime.device = {runtime.device!r}",
        )
    config = load_config(directory)
    with quiet_tracing():
        return trace.load(directory / MODULE, record["inputs"], record["refused"], config, runtime)


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for torch: the trace in a module that is called like a transformers model."""
    from qabuild.models.backends.snippets import filled

    return filled(SNIPPET, runtime)
