"""ONNX Runtime: exported by optimum, graph-optimised, then converted to fp16 or quantised to int8."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, MissingEnvironment, UntrustedInput
from qabuild.models.backends.onnxruntime.fusions import FUSIONS
from qabuild.models.backends.onnxruntime.options import DEFAULT_PROVIDER, DEVICE, Options
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system import packages

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


SNIPPET = """\
from optimum.onnxruntime import ORTModelForQuestionAnswering
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(directory)
model = ORTModelForQuestionAnswering.from_pretrained(directory, provider="{provider}"{options})
"""


PACKAGES = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime")
EXTRAS: tuple[str, ...] = ("cpu", "gpu")
COMPILE_ONLY: tuple[str, ...] = ("onnx",)
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "fp16", "int8"), "cuda": ("fp32", "fp16")}
RUNTIME = ("ONNX Runtime", "onnxruntime")
SPEED: tuple[Rule, ...] = (
    Rule(
        dtype="int8",
        instructions="AVX2",
        backend="onnxruntime",
        rate=1.4,
        why="ONNX Runtime's dynamic int8 makes two products with AVX2 where fp32 makes one",
    ),
)

_NO_EXPORT = "optimum cannot export it for question answering"
EXPORTED = Way(
    name="onnxruntime",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text"),
        *("deberta", "deberta-v2", "distilbert", "electra", "ibert", "megatron-bert"),
        *("mobilebert", "mpnet", "nystromformer", "rembert", "roberta", "roformer"),
        *("splinter", "squeezebert", "xlm-roberta"),
    ),
    refused={
        **dict.fromkeys(("ernie", "modernbert", "roberta-prelayernorm", "xlm-roberta-xl"), _NO_EXPORT),
        "longformer": "the exporter cannot trace it",
    },
)
OPTIMISED = Way(
    name="onnxruntime with level > 0",
    supported=tuple(FUSIONS),
    refused=dict.fromkeys(
        EXPORTED.supported, "the graph optimiser does not know it; backend.level = 0 exports it as it is"
    ),
)
FP16 = Way(
    name="onnxruntime in fp16",
    supported=tuple(name for name in EXPORTED.supported if name != "big_bird"),
    refused={"big_bird": "it sets logits of the question to -1e6, which half precision cannot hold"},
)
WAYS = (EXPORTED, OPTIMISED, FP16)


def check(config: Mapping[str, Any], options: Options, runtime: Runtime) -> None:
    """Raise BadTarget for a dtype that is not supported on the device, or a provider of another device."""
    if runtime.dtype == "bf16":
        raise BadTarget(
            "runtime.dtype = 'bf16' is not supported by ONNX Runtime's kernels",
            "set it to fp32, fp16 or int8",
            key="runtime.dtype",
        )
    if runtime.dtype == "fp16" and runtime.device == "cpu" and not options.allow_fp16_on_cpu:
        raise BadTarget(
            "runtime.dtype = 'fp16' is slower than fp32 on ONNX Runtime's CPU provider",
            "set runtime.dtype to fp32 or int8, or insist with backend.allow_fp16_on_cpu = true",
            key="runtime.dtype",
        )
    if runtime.dtype == "int8" and runtime.device != "cpu":
        raise BadTarget(
            "runtime.dtype = 'int8' is dynamic quantisation, which runs on the CPU only",
            "set runtime.device to cpu, or runtime.dtype to fp16",
            key="runtime.dtype",
        )
    if options.provider and DEVICE[options.provider] != runtime.device:
        raise BadTarget(
            f"backend.provider = {options.provider!r} does not run on runtime.device = {runtime.device!r}",
            f"leave backend.provider out, or set runtime.device to {DEVICE[options.provider]}",
            key="backend.provider",
        )


def ways(options: Options, runtime: Runtime) -> tuple[Way, ...]:
    """Export, then graph optimisation if `level` is above 0, then fp16 conversion."""
    return (
        EXPORTED,
        *([OPTIMISED] if options.level > 0 else []),
        *([FP16] if runtime.dtype == "fp16" else []),
    )


def here() -> str:
    """The providers that the installed ONNX Runtime is built with."""
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())


def missing(options: Options, runtime: Runtime) -> list[str]:
    """The execution provider, if the installed ONNX Runtime is built without it."""
    provider = options.provider or DEFAULT_PROVIDER[runtime.device]
    if provider == "CPUExecutionProvider":  # part of every build
        return []
    import onnxruntime

    if provider in onnxruntime.get_available_providers():
        return []
    return [f"ONNX Runtime has no {provider}: pip uninstall onnxruntime, then pip install 'qabuild[gpu]'"]


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write `model.onnx`, config and tokenizer; optimum's ORTModelForQuestionAnswering loads the folder as well.

    Returns the counts of fused nodes and each stage's largest logit difference from PyTorch. Raises
    VerificationFailed if a graph's logits differ, or if fusions are missing that its model type should have.
    """
    from qabuild.models.backends.onnxruntime import build, session
    from qabuild.models.checkpoint.load import copy_tokenizer

    check(checkpoint.config, options, runtime)
    with TemporaryDirectory(dir=directory) as scratch, session.quiet():
        record = build.build(checkpoint, options, runtime, Path(scratch), directory)
    shutil.copyfile(checkpoint.directory / "config.json", directory / "config.json")
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load an ORTModelForQuestionAnswering on exactly the target's execution provider.

    Raises MissingEnvironment if the provider is not available or does not start.
    """
    packages.refuse(missing(options, runtime))
    from qabuild.models.backends.onnxruntime.session import load_graph

    if not (directory / "model.onnx").is_file():
        raise UntrustedInput(f"{directory}: there is no model.onnx in it", "rebuild the artifact")
    provider = options.provider or DEFAULT_PROVIDER[runtime.device]
    model = load_graph(directory, provider)
    if model.provider != provider:
        raise MissingEnvironment(
            f"ONNX Runtime could not start {provider} and fell back to {model.provider}",
            "its message above says why; usually CUDA or cuDNN is missing or of another version",
        )
    return model


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for optimum, with the provider and provider options of `load`."""
    provider = options.provider or DEFAULT_PROVIDER[runtime.device]
    exact = ', provider_options={"use_tf32": "0"}' if provider == "CUDAExecutionProvider" else ""
    return SNIPPET.format(provider=provider, options=exact)
