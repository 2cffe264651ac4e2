"""TorchScript: the model traced under the autocast it will run in, then frozen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qabuild.errors import BadTarget
from qabuild.models.dtype_speed import Rule
from qabuild.models.runtime import Dtype, Runtime
from qabuild.models.support import Way
from qabuild.system.frozen import Frozen
from qabuild.system.quiet import quiet_tracing

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

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
        self.config = AutoConfig.from_pretrained(directory)
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


tokenizer = AutoTokenizer.from_pretrained(directory)
model = Traced(directory).eval()
"""


class Options(Frozen):
    """A trace has nothing to choose; runtime.dtype decides on autocast."""

    name: Literal["torchscript"] = Field("torchscript", description="traced and frozen TorchScript")


PACKAGES = ("torch", "transformers")
EXTRAS: tuple[str, ...] = ()
COMPILE_ONLY: tuple[str, ...] = ()
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")}
RUNTIME = ("torch", "torch")
SPEED: tuple[Rule, ...] = ()

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
    """The one there is."""
    return WAYS


def here() -> str:
    """Nothing that doctor does not say of torch itself."""
    return ""


def lacks(options: Options, runtime: Runtime) -> list[str]:
    """Nothing: torch runs all of it, however slowly."""
    return []


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write `model.pt`, config and tokenizer.

    Returns inputs, shape and device of the trace, and its largest logit difference to PyTorch in other shapes.
    Raises MissingEnvironment where the runtime's device is not here: a trace is made where it will run.
    """
    from qabuild.models.backends.torchscript import trace as _tracing
    from qabuild.models.checkpoint.load import copy_tokenizer

    check(checkpoint.config, options, runtime)
    with quiet_tracing():
        record = _tracing.build(checkpoint, runtime, directory / MODULE)
    (directory / TRACE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(checkpoint.directory / "config.json", directory / "config.json")
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """The traced module on the device it was traced on, as a model that gives a QuestionAnsweringModelOutput.

    Raises BadTarget where the runtime names another device, and MissingEnvironment where that is not here.
    """
    from qabuild.models.backends.torchscript import trace as _tracing

    trace = json.loads((directory / TRACE).read_text(encoding="utf-8"))
    if trace["device"] != runtime.device:
        raise BadTarget(
            f"this module was traced on {trace['device']}, which is now part of it; it cannot run on {runtime.device}",
            f"build it anew with runtime.device = {runtime.device!r}",
        )
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    with quiet_tracing():
        return _tracing.load(directory / MODULE, trace["inputs"], trace["refused"], config, runtime)


def snippet(options: Options, runtime: Runtime) -> str:
    """Lines for torch: the trace inside a module that is called as transformers' models are."""
    from qabuild.models.backends.snippets import filled

    return filled(SNIPPET, runtime)
