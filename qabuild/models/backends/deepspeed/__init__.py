"""DeepSpeed-Inference: the checkpoint, loaded into the engine of `deepspeed.init_inference`."""

from __future__ import annotations

import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, MissingEnvironment, QABuildError
from qabuild.models.backends.deepspeed.options import ROWS, Options
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system.environment import integer
from qabuild.system.quiet import captured, quiet_logging

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint

TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


SNIPPET = """\
from inspect import signature

import deepspeed
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
from transformers.modeling_outputs import QuestionAnsweringModelOutput


class Inference(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.device = torch.device("$device")
        plain = AutoModelForQuestionAnswering.from_pretrained(
            directory, trust_remote_code=False, dtype=torch.float32$attention
        )
        plain.eval()
        self.config = plain.config
        settings = {
$settings        }
        self.taken = signature(plain.forward).parameters
$convention        self.engine = deepspeed.init_inference(plain, config=settings)$largest
        type(self).__name__ = self.config.architectures[0]  # the name that transformers' pipeline knows

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: given[name].to(self.device) for name in given if name in self.taken and given[name] is not None}
        with torch.inference_mode():
            found = self.engine(**inputs)
        return QuestionAnsweringModelOutput(
            start_logits=found.start_logits.float(), end_logits=found.end_logits.float()
        )


tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = Inference(directory).eval()
"""

CONVENTION = """\
        first = plain.base_model.encoder.layer[0]
        tuples = isinstance(first(torch.zeros(1, 1, self.config.hidden_size)), tuple)
"""

LARGEST = f"""
        for layer in self.engine.module.base_model.encoder.layer:
            layer.config.return_tuple = tuples  # as the layers that it replaces
        self(input_ids=torch.ones({ROWS}, 2).long())  # the kernels take no larger batch than the first"""


PACKAGES = ("torch", "transformers", "deepspeed")
EXTRAS: tuple[str, ...] = ("deepspeed",)
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}
BATCH_DEPENDENT: tuple[Dtype, ...] = ()
RUNTIME = ("DeepSpeed", "deepspeed")
SPEED: tuple[Rule, ...] = ()
VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]] = {}

INFERENCE = Way(
    name="deepspeed",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text"),
        *("deberta", "deberta-v2", "distilbert", "electra", "ernie", "ibert"),
        *("longformer", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer"),
        *("rembert", "roberta", "roberta-prelayernorm", "roformer", "splinter", "squeezebert"),
        *("xlm-roberta", "xlm-roberta-xl"),
    ),
)
WAYS = (INFERENCE,)

KERNEL_INJECTION = ("bert", "roberta")
"""Model types whose layers DeepSpeed replaces correctly. It has kernels for distilbert too, but takes the fourth
positional argument, `output_attentions`, for the mask, so that padding is attended to."""


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for int8, and for fp16, kernel injection or tensor parallelism on the CPU."""
    if runtime.dtype == "int8":
        raise BadTarget(
            "runtime.dtype = 'int8': DeepSpeed quantises nothing here",
            "use fp32, bf16 or fp16, or one of the backends onnxruntime and openvino",
            key="runtime.dtype",
        )
    if runtime.device == "cpu" and runtime.dtype == "fp16":
        raise BadTarget(
            "runtime.dtype = 'fp16' is not supported by DeepSpeed on the CPU",
            "set it to fp32 or bf16",
            key="runtime.dtype",
        )
    if runtime.device == "cpu" and options.tensor_parallel > 1:
        raise BadTarget(
            "backend.tensor_parallel shares a model among GPUs, and runtime.device is cpu",
            "leave backend.tensor_parallel out, or set runtime.device = 'cuda'",
            key="backend.tensor_parallel",
        )
    if runtime.device == "cpu" and options.replace_with_kernel_inject:
        raise BadTarget(
            "backend.replace_with_kernel_inject = true needs a GPU: DeepSpeed has no such kernels for the CPU",
            "set backend.replace_with_kernel_inject = false, or runtime.device = 'cuda'",
            key="backend.replace_with_kernel_inject",
        )
    if options.replace_with_kernel_inject and config and config.get("model_type") not in KERNEL_INJECTION:
        raise BadTarget(
            f"DeepSpeed's kernels fit {', '.join(KERNEL_INJECTION)}, not {config.get('model_type')!r}",
            "set backend.replace_with_kernel_inject = false",
        )


def ways(options: Options, runtime: Runtime) -> tuple[Way, ...]:
    """The only way, whatever the options."""
    return WAYS


def compile_packages(options: Options) -> Mapping[str, Sequence[str]]:
    """Nothing beyond what loads it."""
    return {}


def here() -> str:
    """Whether DeepSpeed's inference kernels can be built."""
    with quiet_logging(logging.CRITICAL), redirect_stdout(io.StringIO()), captured(2):
        builders: Any = importlib.import_module("deepspeed.ops.op_builder.all_ops").ALL_OPS
        kernel = builders.get("transformer_inference")
        works = bool(kernel and kernel.is_compatible())
    return (
        "inference kernels can be built" if works else "no inference kernels here: replace_with_kernel_inject = false"
    )


def missing(options: Options, runtime: Runtime) -> list[str]:
    """Nothing: torch runs every dtype on any processor."""
    return []


def native_code(options: Options) -> tuple[str, ...]:
    """None."""
    return ()


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Copy config, weights and tokenizer. Returns the config of `deepspeed.init_inference`."""
    from qabuild.models.backends.torch_model import copy_checkpoint

    check(checkpoint.config, options, runtime)
    copy_checkpoint(checkpoint, directory)
    positions = checkpoint.config.get("max_position_embeddings")
    return {"init_inference": _settings(options, runtime, TORCH_DTYPES[runtime.dtype], positions)}


def _settings(options: Options, runtime: Runtime, dtype: Any, positions: Any) -> dict[str, Any]:
    """The config of `deepspeed.init_inference`; `positions` is the number of the model's position embeddings."""
    settings: dict[str, Any] = {
        "dtype": dtype,
        "replace_with_kernel_inject": options.replace_with_kernel_inject,
        "tensor_parallel": {"tp_size": options.tensor_parallel},
        "keep_module_on_host": runtime.device == "cpu",
    }
    if options.replace_with_kernel_inject:
        # All of the model's positions. Without a minimum, DeepSpeed sizes its workspace for fewer tokens if memory is
        # short, and its kernels write beyond its end.
        settings |= {"max_out_tokens": positions, "min_out_tokens": positions}
    return settings


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load the model into DeepSpeed's inference engine, which casts its weights to the runtime's dtype.

    Raises MissingEnvironment without the device, without one process for each tensor-parallel rank, or if DeepSpeed
    cannot build its kernels.
    """
    import torch

    from qabuild.models.backends.torch_model import TorchModel, device, named, stored_model
    from qabuild.qa.model_inputs import input_names

    target = device(runtime)
    _require_processes(options.tensor_parallel)
    # The kernels add the mask to the scores, as eager attention does.
    injected = options.replace_with_kernel_inject
    # The kernels take the widths from the config, which are those of an unpruned model.
    model = stored_model(directory, attention="eager" if injected else None, compact=not injected)
    inputs = input_names(model)
    positions = getattr(model.config, "max_position_embeddings", None)
    settings = _settings(options, runtime, getattr(torch, TORCH_DTYPES[runtime.dtype]), positions)
    engine = _kernels(model, settings, inputs, target) if injected else _engine(model, settings)
    return named(TorchModel(engine, inputs, model.config, target), model.config)


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for DeepSpeed: its engine in a module that is called like a transformers model."""
    injected = options.replace_with_kernel_inject
    dtype, positions = f"torch.{TORCH_DTYPES[runtime.dtype]}", "self.config.max_position_embeddings"
    settings = _settings(options, runtime, dtype, positions)
    lines = "".join(f'            "{key}": {value},\n' for key, value in settings.items())
    attention = ', attn_implementation="eager"' if injected else ""
    convention, largest = (CONVENTION, LARGEST) if injected else ("", "")
    return Template(SNIPPET).substitute(
        device=runtime.device, settings=lines, attention=attention, convention=convention, largest=largest
    )


def _engine(model: Any, settings: Mapping[str, Any]) -> Any:
    with _quiet():
        import deepspeed

        return deepspeed.init_inference(model, config=dict(settings))


def _kernels(model: Any, settings: Mapping[str, Any], inputs: Sequence[str], device: Any) -> Any:
    """The engine with injected kernels, which DeepSpeed compiles on first use."""
    with _quiet(), captured(1) as output:
        try:
            from qabuild.models.backends.deepspeed import kernels

            # This GPU only: DeepSpeed fails on names such as 9.0a, which the list in a container image may hold.
            os.environ["TORCH_CUDA_ARCH_LIST"] = kernels.architecture(device)
            kernels.restart_layers()
            tuples = kernels.layers_return_tuples(model)
            engine = _engine(model, settings)
            if layers := kernels.layers_of(engine, tuples=tuples):
                return kernels.Kernels(engine, layers, inputs, device)
        except (RuntimeError, ValueError, AssertionError, ImportError, OSError) as error:
            failure = MissingEnvironment(
                f"DeepSpeed could not build, load or start its kernels: {str(error).strip().splitlines()[0]}",
                "install the CUDA toolkit that torch was built with (`ds_report` shows what is missing), "
                "or set backend.replace_with_kernel_inject = false",
            )
            output.seek(0)
            failure.add_note("What it printed last:\n" + output.read().decode(errors="replace")[-20_000:])
            raise failure from error
    raise QABuildError("DeepSpeed replaced no layer by its kernels", "set backend.replace_with_kernel_inject = false")


def _require_processes(count: int) -> None:
    if count > 1 and count != integer("WORLD_SIZE", 1, least=1):
        raise MissingEnvironment(
            f"backend.tensor_parallel = {count} needs {count} processes at once, one for each GPU",
            f"start it as `deepspeed --num_gpus {count} --module qabuild verify ...`, or set it to 1",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence DeepSpeed's logs and prints, and restore the environment variables that it sets."""
    environment = dict(os.environ)
    try:
        with quiet_logging(), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        # DeepSpeed's handler writes to the stdout of its import; its errors belong with those of other loggers.
        logger = logging.getLogger("DeepSpeed")
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.ERROR)
