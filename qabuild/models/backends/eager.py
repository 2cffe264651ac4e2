"""Eager PyTorch: the checkpoint as it is, under autocast for fp16 and bf16. It is the baseline of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from qabuild.errors import BadTarget
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system.frozen import Frozen

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


SNIPPET = """\
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = AutoModelForQuestionAnswering.from_pretrained(directory, trust_remote_code=False, dtype=torch.float32)
model = model.to("$device").eval()
"""

SNIPPET_AUTOCAST = """
from functools import wraps

from transformers.modeling_outputs import QuestionAnsweringModelOutput

forward = model.forward  # which answers in fp32


@wraps(forward)
def forward_under_autocast(**inputs):
    with $modes:
        found = forward(**inputs)
    return QuestionAnsweringModelOutput(start_logits=found.start_logits.float(), end_logits=found.end_logits.float())


model.forward = forward_under_autocast
"""


class Options(Frozen):
    """Eager PyTorch has no options; runtime.dtype decides on autocast."""

    name: Literal["eager"] = Field("eager", description="plain PyTorch, under autocast for fp16 and bf16")


PACKAGES = ("torch", "transformers")
EXTRAS: tuple[str, ...] = ()
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")}
BATCH_DEPENDENT: tuple[Dtype, ...] = ()
RUNTIME = ("torch", "torch")
SPEED: tuple[Rule, ...] = ()
VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]] = {}

EAGER = Way(
    name="eager",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text"),
        *("deberta", "deberta-v2", "distilbert", "electra", "ernie", "ibert"),
        *("longformer", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer"),
        *("rembert", "roberta", "roberta-prelayernorm", "roformer", "splinter", "squeezebert"),
        *("xlm-roberta", "xlm-roberta-xl"),
    ),
)
WAYS = (EAGER,)


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for int8."""
    if runtime.dtype == "int8":
        raise BadTarget(
            "runtime.dtype = 'int8': eager PyTorch quantises nothing",
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
    """The CUDA version that torch is built for, and whether it works."""
    import torch

    from qabuild.system import machine

    if torch.version.cuda:
        works = torch.cuda.is_available()
        return f"for CUDA {torch.version.cuda}" + ("" if works else ", which does not work here")
    return "without CUDA" + (", though a GPU is here: install torch's CUDA build" if machine.gpus() else "")


def missing(options: Options, runtime: Runtime) -> list[str]:
    """Nothing: torch runs every dtype on any processor."""
    return []


def native_code(options: Options) -> tuple[str, ...]:
    """None."""
    return ()


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Copy config, weights and tokenizer: `directory` becomes a checkpoint."""
    from qabuild.models.backends.torch_model import copy_checkpoint

    check(checkpoint.config, options, runtime)
    copy_checkpoint(checkpoint, directory)
    return {"autocast": None if runtime.dtype == "fp32" else runtime.dtype}


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load the model on its device, under autocast for fp16 and bf16. Raises MissingEnvironment without the device."""
    from qabuild.models.backends.torch_model import AUTOCAST, TorchModel, device, named, stored_model
    from qabuild.qa.model_inputs import input_names

    target = device(runtime)
    model = stored_model(directory).to(target)
    wrapped = TorchModel(model, input_names(model), model.config, target, AUTOCAST[runtime.dtype])
    return named(wrapped, model.config)


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for transformers; for fp16 and bf16 it wraps the model's `forward` in autocast."""
    from qabuild.models.backends.snippets import filled

    return filled(SNIPPET if runtime.dtype == "fp32" else SNIPPET + SNIPPET_AUTOCAST, runtime)
