"""ONNX Runtime: exported, graph-optimised, then converted to fp16 or quantised to int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.backends.onnxruntime.fusions import FUSIONS
from qabuild.models.backends.onnxruntime.options import DEFAULT_PROVIDER, DEVICE, Options
from qabuild.models.capabilities import Rule, Way
from qabuild.models.runtime import Dtype, Runtime
from qabuild.system import packages

if TYPE_CHECKING:
    from qabuild.models.checkpoint.resolve import Checkpoint


SNIPPET = """\
import os
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported
import onnxruntime
import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_outputs import QuestionAnsweringModelOutput

# optimum opens the same folder: ORTModelForQuestionAnswering.from_pretrained(directory)


class Graph(torch.nn.Module):
    def __init__(self, directory):
        super().__init__()
        self.device = torch.device("{device}")
        self.config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        self.session = onnxruntime.InferenceSession(Path(directory, "model.onnx"), providers=[{provider}])
        type(self).__name__ = self.config.architectures[0]  # the name that transformers' pipeline knows

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        given = {{
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }}
        inputs = {{node.name: given[node.name].cpu().numpy() for node in self.session.get_inputs()}}
        found = self.session.run(["start_logits", "end_logits"], inputs)
        start, end = (torch.from_numpy(logits).to(self.device) for logits in found)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)


tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
model = Graph(directory).eval()
"""


PACKAGES = ("torch", "transformers", "onnxruntime")
EXTRAS: tuple[str, ...] = ("cpu", "gpu")
DTYPES: Mapping[str, tuple[Dtype, ...]] = {"cpu": ("fp32", "fp16", "int8"), "cuda": ("fp32", "fp16")}
BATCH_DEPENDENT: tuple[Dtype, ...] = ("int8",)  # dynamic: the range of each batch sets the scales of activations
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
VARIANTS: Mapping[Dtype, tuple[Mapping[str, Any], ...]] = {}

_TRACED = {"longformer": "a trace cannot hold its sliding windows"}
EXPORTED = Way(name="onnxruntime", supported=tuple(sorted(FUSIONS)), refused=_TRACED)
FP16 = Way(
    name="onnxruntime in fp16",
    supported=tuple(name for name in EXPORTED.supported if name != "big_bird"),
    refused={"big_bird": "it sets logits of the question to -1e6, which half precision cannot hold"},
)
_NO_OPTIMUM = ("ernie", "modernbert", "roberta-prelayernorm", "xlm-roberta-xl")
BY_OPTIMUM = Way(
    name="onnxruntime by optimum",
    supported=tuple(name for name in EXPORTED.supported if name not in _NO_OPTIMUM),
    refused={**dict.fromkeys(_NO_OPTIMUM, "optimum cannot export it for question answering"), **_TRACED},
)
OPTIMISED_BY_OPTIMUM = Way(
    name="onnxruntime by optimum with level > 0",
    supported=(
        *("albert", "bert", "big_bird", "camembert", "deberta", "deberta-v2"),
        *("distilbert", "electra", "mpnet", "nystromformer", "roberta", "xlm-roberta"),
    ),
    refused=dict.fromkeys(
        BY_OPTIMUM.supported, "optimum's optimiser does not know it; backend.level = 0 exports it as it is"
    ),
)
WAYS = (EXPORTED, FP16, BY_OPTIMUM, OPTIMISED_BY_OPTIMUM)


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
    """Export and optimisation by the exporter, then fp16 conversion."""
    by_optimum = (BY_OPTIMUM, *([OPTIMISED_BY_OPTIMUM] if options.level > 0 else []))
    exported = by_optimum if options.exporter == "optimum" else (EXPORTED,)
    return (*exported, *([FP16] if runtime.dtype == "fp16" else []))


def compile_packages(options: Options) -> Mapping[str, Sequence[str]]:
    """onnx; with the exporter optimum, what that consists of."""
    by_optimum = dict.fromkeys(("optimum", "optimum-onnx"), ("optimum", "optimum-gpu"))
    return {"onnx": EXTRAS, **(by_optimum if options.exporter == "optimum" else {})}


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


def native_code(options: Options) -> tuple[str, ...]:
    """None."""
    return ()


def compile(checkpoint: Checkpoint, options: Options, runtime: Runtime, directory: Path) -> dict[str, Any]:
    """Write `model.onnx`, config and tokenizer; optimum's ORTModelForQuestionAnswering loads the folder as well.

    Returns the counts of fused nodes and each stage's largest logit difference from PyTorch. Raises
    VerificationFailed if a graph's logits differ, or if fusions are missing that its model type should have.
    """
    from qabuild.models.backends.onnxruntime import build, session
    from qabuild.models.checkpoint.load import copy_config, copy_tokenizer

    check(checkpoint.config, options, runtime)
    with TemporaryDirectory(dir=directory) as scratch, session.quiet():
        record = build.build(checkpoint, options, runtime, Path(scratch), directory)
    copy_config(checkpoint, directory)
    copy_tokenizer(checkpoint, directory)
    return record


def load(directory: Path, options: Options, runtime: Runtime) -> Any:
    """Load the graph on exactly the target's execution provider.

    Raises MissingEnvironment if the provider is not available or does not start.
    """
    packages.refuse(missing(options, runtime))
    from qabuild.models.backends.onnxruntime import model
    from qabuild.models.checkpoint.load import load_config

    if not (directory / "model.onnx").is_file():
        raise UntrustedInput(f"{directory}: there is no model.onnx in it", "rebuild the artifact")
    config = load_config(directory)
    return model.load(directory, config, options.provider or DEFAULT_PROVIDER[runtime.device])


def snippet(options: Options, runtime: Runtime) -> str:
    """Source for ONNX Runtime, with the provider and provider options of `load`: called like a transformers model."""
    provider = options.provider or DEFAULT_PROVIDER[runtime.device]
    exact = f'("{provider}", {{"use_tf32": "0"}})' if provider == "CUDAExecutionProvider" else f'"{provider}"'
    return SNIPPET.format(device=runtime.device, provider=exact)
