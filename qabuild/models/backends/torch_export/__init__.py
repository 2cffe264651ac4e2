"""torch.export: the model as a graph of tensor operations; optionally compiled by AOTInductor for this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qabuild.errors import BadTarget
from qabuild.models.backends.record import Program
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system import documents, machine, packages
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

PROGRAM = "model.pt2"
RECORD = "export.json"


SNIPPET = Template("""\
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_outputs import QuestionAnsweringModelOutput

$guard
class Exported(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.device = torch.device("$device")
        self.config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        self.inputs = json.loads(Path(directory, "export.json").read_text())["inputs"]
        self.run = $load  # no submodule: a program has neither train() nor eval()
        type(self).__name__ = self.config.architectures[0]  # the name that transformers' pipeline knows

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        with torch.inference_mode():
            start, end = self.run(*(given[name].to(self.device).contiguous() for name in self.inputs))
        return QuestionAnsweringModelOutput(start_logits=start.float(), end_logits=end.float())


tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = Exported(directory).eval()
""")

LOAD = 'torch.export.load(str(Path(directory, "model.pt2"))).module().__call__'
LOAD_AOT = 'torch._inductor.aoti_load_package(str(Path(directory, "model.pt2")))'

GUARD = """\
needed = set(json.loads(Path(directory, "export.json").read_text())["instructions"])
if lacking := needed - set(Path("/proc/cpuinfo").read_text().split()):
    raise RuntimeError(f"compiled for another processor: this one lacks {', '.join(sorted(lacking))}")

"""


LIMITS = [
    "`model.pt2` holds native code, for processors with the instructions that `export.json` lists. It can do whatever "
    "its user can: load it only if you trust whoever published it."
]
"""Sentences for the model card of a program that AOTInductor compiled."""


class Exported(Program):
    """What loading an exported program needs of its record."""

    instructions: list[str]


class Options(Frozen):
    """Whether the exported program runs as it is or is compiled to native code."""

    name: Literal["torch_export"] = Field("torch_export", description="a program of torch.export, TorchScript's heir")
    aot: bool = Field(
        False, description="compile it with AOTInductor and a C++ compiler, for processors like this one alone"
    )


PACKAGES = ("torch", "transformers")
EXTRAS: tuple[str, ...] = ()
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
BATCH_DEPENDENT: tuple[Dtype, ...] = ()
RUNTIME = ("torch", "torch")
SPEED: tuple[Rule, ...] = ()
VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]] = {"fp32": ({"aot": True},), "bf16": ({"aot": True},)}

EXPORTED = Way(
    name="torch_export",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text"),
        *("deberta", "deberta-v2", "distilbert", "electra", "ernie", "ibert"),
        *("megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer", "rembert"),
        *("roberta", "roberta-prelayernorm", "roformer", "splinter", "squeezebert", "xlm-roberta"),
        *("xlm-roberta-xl",),
    ),
    refused={"longformer": "its global attention depends on where the separators are, which an export cannot hold"},
)
COMPILED = Way(
    name="torch_export with aot",
    supported=tuple(name for name in EXPORTED.supported if name != "deberta"),
    refused={**EXPORTED.refused, "deberta": "AOTInductor cannot compile shapes that depend on values, as it has them"},
)
WAYS = (EXPORTED, COMPILED)


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for dtypes that are not supported, and for AOTInductor on a GPU."""
    if runtime.dtype == "int8":
        raise BadTarget(
            "runtime.dtype = 'int8': an export quantises nothing",
            "use fp32 or bf16, or one of the backends onnxruntime and openvino",
            key="runtime.dtype",
        )
    if runtime.dtype == "fp16" and runtime.device == "cpu":
        raise BadTarget(
            "runtime.dtype = 'fp16' on the CPU: most of its kernels there are slower than those of fp32",
            "set runtime.dtype to fp32 or bf16",
            key="runtime.dtype",
        )
    if options.aot and runtime.device != "cpu":
        raise BadTarget(
            "backend.aot = true is for the CPU: on a GPU it was not measured",
            "leave backend.aot out, or set runtime.device to cpu",
            key="backend.aot",
        )


def ways(options: Options, runtime: Runtime) -> tuple[Way, ...]:
    """Export, then compilation by AOTInductor with `aot`."""
    return WAYS if options.aot else (EXPORTED,)


def compile_packages(options: Options) -> Mapping[str, Sequence[str]]:
    """Nothing beyond what loads it."""
    return {}


def native_code(options: Options) -> tuple[str, ...]:
    """The package that AOTInductor compiled."""
    return (PROGRAM,) if options.aot else ()


def here() -> str:
    """The C++ compiler that AOTInductor would use; `doctor` reports torch itself."""
    compiler = cxx()
    return f"AOTInductor with {compiler}" if compiler else "no AOTInductor: g++ is not installed"


def cxx() -> str | None:
    """Path of the C++ compiler, or None."""
    import os

    return shutil.which(os.environ.get("CXX", "g++"))


def missing(options: Options, runtime: Runtime) -> list[str]:
    """With `aot`, a C++ compiler to build with. Which instructions a compiled program needs, `load` checks."""
    needs = options.aot and not cxx()
    return ["backend.aot = true needs a C++ compiler: install g++, or name another in CXX"] if needs else []


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write `model.pt2`, `export.json`, config and tokenizer.

    Returns inputs, longest input and device of the program, the instructions that it needs, and its largest logit
    difference from PyTorch. Raises MissingEnvironment without the runtime's device or, with `aot`, a C++ compiler.
    """
    from qabuild.models.backends.torch_export import program
    from qabuild.models.checkpoint.load import copy_config, copy_tokenizer

    check(checkpoint.config, options, runtime)
    packages.refuse(missing(options, runtime))
    record = program.build(checkpoint, runtime, directory / PROGRAM, aot=options.aot)
    record["limits"] = LIMITS if options.aot else []
    (directory / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    copy_config(checkpoint, directory)
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load the program on the device that it was exported on.

    Raises BadTarget if the runtime names another device, MissingEnvironment if the device is missing on this machine
    or the processor lacks instructions that the program was compiled for, UntrustedInput if a program that was not
    compiled holds more than tensors and a graph.
    """
    from qabuild.models.backends.torch_export import program
    from qabuild.models.checkpoint.load import load_config

    record = documents.load(Exported, directory / RECORD, "build the artifact again")
    if record["device"] != runtime.device:
        raise BadTarget(
            f"this program was exported on {record['device']} and is bound to it; it cannot run on {runtime.device}",
            f"rebuild it with runtime.device = {runtime.device!r}",
        )
    packages.refuse(lacking(record["instructions"]))
    config = load_config(directory)
    return program.load(directory / PROGRAM, record, config, runtime, aot=options.aot)


def lacking(instructions: list[str]) -> list[str]:
    """What this processor lacks of the instructions that a program was compiled for, as one problem."""
    if not (absent := sorted(set(instructions) - set(machine.compiler_flags()))):
        return []
    return [
        f"this program was compiled for another processor: this one lacks {', '.join(absent)}; rebuild it here, or "
        "with backend.aot = false"
    ]


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for torch: the program in a module that is called like a transformers model."""
    load, guard = (LOAD_AOT, GUARD) if options.aot else (LOAD, "")
    return SNIPPET.substitute(device=runtime.device, load=load, guard=guard)
