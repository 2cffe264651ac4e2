"""Every backend on every architecture: its logits match the eager model's, or the target is refused beforehand."""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from qabuild.errors import BadTarget, MissingEnvironment, UntrustedInput, VerificationFailed
from qabuild.models import backends, sdpa_kernels, support
from qabuild.models.backends import BACKENDS, backend, deepspeed, logit_check
from qabuild.models.backends.onnxruntime import fusions
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.runtime import Runtime
from qabuild.qa.padding import PADDABLE, is_paddable
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.system import machine, packages
from qabuild.system.quiet import captured

FP32 = Runtime(device="cpu", dtype="fp32")

Compiled = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices are faster on one thread than on two that wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """`checkpoint("bert", num_hidden_layers=3)`: a tiny checkpoint, resolved."""
    return lambda model_type="bert", **overrides: resolve(tiny_checkpoint(model_type, **overrides))


@pytest.fixture
def compiled(checkpoint: Callable[..., Checkpoint], tmp_path: Path) -> Compiled:
    """`compiled("onnxruntime", "bert", runtime, level=0)`: the folder and the record of a compilation."""

    def run(name: str, model: str | Checkpoint = "bert", runtime: Runtime = FP32, **options: Any) -> Any:
        require(name, **options)
        source = checkpoint(model) if isinstance(model, str) else model
        module = backend(name)
        directory = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        return directory, module.compile(source, module.Options(**options), runtime, directory)

    return run


def require(name: str, **options: Any) -> None:
    """Skip the test where a package of the backend is not installed: it comes with an extra."""
    module = backend(name)
    needed = {*module.PACKAGES, *module.compile_packages(module.Options(**options))}
    if missing := packages.missing(dict.fromkeys(needed, ()), "cpu"):
        pytest.skip("; ".join(missing))


def load(name: str, directory: Path, runtime: Runtime = FP32, **options: Any) -> Any:
    module = backend(name)
    return module.load(directory, module.Options(**options), runtime)


def batches(tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Inputs in batch sizes and lengths other than the traced ones: shorter, longer, with and without padding."""
    for texts, length in (([0], 64), ([0, 3, 5], 40), ([3, 5], 24), ([1, 0, 2, 4], 200)):
        contexts = [tiny.CORPUS[text] * (3 if text < 3 else 1) for text in texts]
        yield dict(
            tokenizer(
                [tiny.QUESTION] * len(texts),
                contexts,
                truncation="only_second",
                max_length=length,
                padding=True,
                return_tensors="pt",
            )
        )


def largest_difference(source: Checkpoint, model: Any, dtype: str = "fp32") -> float:
    """Compare the model with the checkpoint's eager model, on the tokenizer's inputs."""
    reference = load_model(source)
    parameters = inspect.signature(reference.forward).parameters

    def eager(**inputs: Any) -> Any:
        return reference(**{name: inputs[name] for name in inputs if name in parameters})

    inputs = list(batches(load_tokenizer(source.directory)))
    expected = logit_check.outputs_of(eager, inputs)
    return logit_check.require_same(expected, model, inputs, logit_check.TOLERANCES[dtype], type(model).__name__)


BY_OPTIMUM, OPTIMISED_BY_OPTIMUM = "onnxruntime by optimum", "onnxruntime by optimum with level > 0"


def supports(way: str, model_type: str) -> bool:
    """Whether the support matrix has a yes for this way and model type."""
    return any(column.name == way and model_type in column.supported for column in support.all_ways())


# --- the support matrix -------------------------------------------------------------------------------------------


# Level 0 is a stage of level 2, where its logits are compared too.
MATRIX = [
    (model_type, way, options)
    for way, options in (
        *((name, {}) for name in BACKENDS),
        *((BY_OPTIMUM, {"exporter": "optimum", "level": 0}), (OPTIMISED_BY_OPTIMUM, {"exporter": "optimum"})),
    )
    for model_type in support.model_types()
    if not (way == BY_OPTIMUM and supports(OPTIMISED_BY_OPTIMUM, model_type))
]


@pytest.mark.parametrize(("model_type", "way", "options"), MATRIX, ids=[f"{way}-{name}" for name, way, _ in MATRIX])
def test_an_architecture_matches_the_eager_model_or_is_refused(
    model_type: str, way: str, options: dict[str, Any], checkpoint: Callable[..., Checkpoint], compiled: Compiled
) -> None:
    name = way.split()[0]
    source = checkpoint(model_type)
    if not supports(way, model_type):
        module = backend(name)
        with pytest.raises(BadTarget, match=repr(model_type)):
            support.check(source.config, module.Options(**options), FP32)
        return
    directory, _ = compiled(name, source, **options)
    model = load(name, directory, **options)
    assert largest_difference(source, model) < 1e-4
    assert is_paddable(model) == (model_type in PADDABLE)


@pytest.mark.parametrize("way", BACKENDS)
def test_a_compiled_model_that_padding_changes_answers_like_its_checkpoint(
    way: str, checkpoint: Any, compiled: Compiled
) -> None:
    if not supports(way, "convbert"):
        pytest.skip(f"{way} does not support ConvBERT")
    source = checkpoint("convbert")
    tokenizer = load_tokenizer(source.directory)
    examples = [{"question": tiny.QUESTION, "context": text[:size]} for text in tiny.CORPUS for size in (50, 63, 90)]
    eager = QuestionAnsweringPipeline(load_model(source), tokenizer)
    expected = [eager(**example, batch_size=1) for example in examples]
    options = {"level": 0} if way == "onnxruntime" else {}
    model = load(way, compiled(way, source, **options)[0], **options)
    for one, other in zip(QuestionAnsweringPipeline(model, tokenizer)(examples), expected, strict=True):
        assert one["answer"] == other["answer"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-3)


@pytest.mark.parametrize("way", BACKENDS)
def test_a_loaded_model_needs_its_files_no_more(way: str, checkpoint: Any, compiled: Compiled) -> None:
    """A server loads a copy that it removes; some runtimes compile the model for one question only when it comes."""
    source = checkpoint("bert")
    directory, _ = compiled(way, source)
    pipeline = QuestionAnsweringPipeline(load(way, directory), load_tokenizer(source.directory))
    shutil.rmtree(directory)
    examples = [{"question": tiny.QUESTION, "context": text} for text in tiny.CORPUS]
    alone = [pipeline(**example) for example in examples]
    for one, other in zip(pipeline(examples), alone, strict=True):
        assert one["answer"] == other["answer"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "deberta-v2", "distilbert", "mobilebert"])
def test_fp16_graphs_match_the_eager_model(model_type: str, checkpoint: Any, compiled: Compiled) -> None:
    runtime = Runtime(device="cpu", dtype="fp16")
    options = {"allow_fp16_on_cpu": True}
    directory, record = compiled("onnxruntime", model_type, runtime, **options)
    # With position buckets computed in half precision, mpnet is off by 0.12.
    assert record["largest_differences"]["fp16"] < 0.03
    assert largest_difference(checkpoint(model_type), load("onnxruntime", directory, runtime, **options), "fp16") < 0.03


@pytest.mark.parametrize("model_type", ["bert", "albert", "convbert"])
def test_int8_graphs_are_quantised_and_within_tolerance(model_type: str, checkpoint: Any, compiled: Compiled) -> None:
    import onnx

    runtime = Runtime(device="cpu", dtype="int8")
    directory, _ = compiled("onnxruntime", model_type, runtime)
    kinds = {node.op_type for node in onnx.load(directory / "model.onnx").graph.node}
    assert kinds & {"QAttention", "MatMulInteger", "DynamicQuantizeMatMul"}
    assert largest_difference(checkpoint(model_type), load("onnxruntime", directory, runtime), "int8") > 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("eager", "bf16"), ("eager", "fp16"), ("torchscript", "bf16"), ("torchscript", "fp16")),
        *(("torch_export", "bf16"), ("deepspeed", "bf16")),
    ],
)
def test_half_precision_in_torch_matches_the_eager_model(
    name: str, dtype: Any, checkpoint: Any, compiled: Compiled
) -> None:
    runtime = Runtime(device="cpu", dtype=dtype)
    directory, _ = compiled(name, "bert", runtime)
    model = load(name, directory, runtime)
    assert 0 < largest_difference(checkpoint("bert"), model, dtype) < 0.1


def test_the_support_matrix_has_every_tiny_architecture() -> None:
    assert set(tiny.ARCHITECTURES) == set(support.model_types())


def test_the_support_matrix_is_a_markdown_table() -> None:
    lines = support.markdown().splitlines()
    assert len(lines) == len(support.model_types()) + 2
    assert "| mobilebert | yes | yes | yes | yes | yes | yes | yes | yes | no | yes |" in lines


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("model_type", ["gpt2", "t5", "fnet", None])
def test_an_unsupported_architecture_is_refused_with_a_list_of_supported_ones(
    name: str, model_type: str | None
) -> None:
    module = backend(name)
    with pytest.raises(BadTarget, match="roberta") as refusal:
        support.check({"model_type": model_type}, module.Options(), FP32)
    assert repr(model_type) in refusal.value.message


# --- the backend protocol -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_has_options_packages_and_a_check(name: str) -> None:
    module = backend(name)
    assert module.Options().model_dump()["name"] == name
    assert module.PACKAGES
    module.check({}, module.Options(), FP32)  # a target is checked before its checkpoint is resolved


def test_importing_a_backend_imports_no_runtime() -> None:
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "optimum", "deepspeed", "openvino", "nncf", "numpy"}
    code = f"import sys, qabuild.models.backends as b; [*map(b.backend, b.BACKENDS)]; print({heavy} & {{*sys.modules}})"
    root = Path(backends.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("name", "options", "runtime", "named"),
    [
        ("eager", {}, {"dtype": "int8"}, "runtime.dtype"),
        ("torchscript", {}, {"dtype": "int8"}, "runtime.dtype"),
        ("torch_export", {}, {"dtype": "int8"}, "runtime.dtype"),
        ("torch_export", {}, {"dtype": "fp16"}, "runtime.dtype"),
        ("torch_export", {"aot": True}, {"device": "cuda"}, "backend.aot"),
        ("deepspeed", {}, {"dtype": "int8"}, "runtime.dtype"),
        ("deepspeed", {}, {"dtype": "fp16"}, "runtime.dtype"),
        ("deepspeed", {"replace_with_kernel_inject": True}, {}, "backend.replace_with_kernel_inject"),
        ("deepspeed", {"tensor_parallel": 2}, {}, "backend.tensor_parallel"),
        ("openvino", {}, {"dtype": "fp16"}, "runtime.dtype"),
        ("openvino", {}, {"device": "cuda"}, "runtime.device"),
        ("openvino", {"rest": "bf16"}, {}, "backend.rest"),
        ("onnxruntime", {}, {"dtype": "bf16"}, "runtime.dtype"),
        ("onnxruntime", {}, {"dtype": "fp16"}, "backend.allow_fp16_on_cpu"),
        ("onnxruntime", {}, {"dtype": "int8", "device": "cuda"}, "runtime.device"),
        ("onnxruntime", {"provider": "CUDAExecutionProvider"}, {}, "backend.provider"),
        ("onnxruntime", {"provider": "CPUExecutionProvider"}, {"device": "cuda"}, "backend.provider"),
    ],
)
def test_keys_that_cannot_be_combined_are_refused_by_name(
    name: str, options: dict[str, Any], runtime: dict[str, Any], named: str
) -> None:
    module = backend(name)
    with pytest.raises(BadTarget) as refusal:
        module.check({}, module.Options(**options), Runtime(**runtime))
    assert named in str(refusal.value)
    assert refusal.value.hint


def test_kernel_injection_is_refused_for_a_type_without_kernels() -> None:
    module = backend("deepspeed")
    options = module.Options(replace_with_kernel_inject=True)
    module.check({"model_type": "roberta"}, options, Runtime(device="cuda", dtype="fp16"))
    for model_type in ("albert", "distilbert"):
        with pytest.raises(BadTarget, match=model_type):
            module.check({"model_type": model_type}, options, Runtime(device="cuda", dtype="fp16"))


def test_big_bird_is_refused_in_fp16_graphs() -> None:
    module = backend("onnxruntime")
    with pytest.raises(BadTarget, match="half precision"):
        support.check({"model_type": "big_bird"}, module.Options(), Runtime(device="cuda", dtype="fp16"))


@pytest.mark.line457
@pytest.mark.parametrize("name", BACKENDS)
def test_a_compiled_model_works_in_the_stock_pipeline_and_prints_nothing(
    name: str, compiled: Compiled, caplog: Any, capsys: Any
) -> None:
    from transformers import pipeline

    directory, _ = compiled(name)
    model = load(name, directory)
    stock = pipeline("question-answering", model=model, tokenizer=load_tokenizer(directory))
    answers = stock(question=[tiny.QUESTION] * 2, context=[tiny.CONTEXT, tiny.CONTEXT * 8], batch_size=2)
    assert all(answer["answer"] in tiny.CONTEXT for answer in answers)
    assert stock.model is model
    assert capsys.readouterr().out == ""
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.both_lines
@pytest.mark.parametrize("name", BACKENDS)
def test_an_artifact_loads_without_its_checkpoint(
    name: str, checkpoint: Any, tmp_path: Path, compiled: Compiled
) -> None:
    shutil.copytree(checkpoint("roberta").directory, tmp_path / "source")
    source = resolve(tmp_path / "source")
    directory, record = compiled(name, source)
    shutil.rmtree(source.directory)
    json.dumps(record)
    model = load(name, directory)
    assert model.config.model_type == "roberta"
    assert model.device.type == "cpu"
    assert largest_difference(checkpoint("roberta"), model) < 1e-4


@pytest.mark.parametrize(
    ("name", "runtime", "options"),
    [
        ("eager", FP32, {}),
        ("deepspeed", FP32, {}),
        ("openvino", FP32, {}),
        ("torchscript", Runtime(dtype="bf16"), {}),
        ("torch_export", FP32, {}),
        ("onnxruntime", FP32, {}),
        ("onnxruntime", Runtime(dtype="int8"), {}),
        ("onnxruntime", Runtime(dtype="fp16"), {"allow_fp16_on_cpu": True}),
    ],
    ids=["eager", "deepspeed", "openvino", "torchscript", "torch_export", "onnxruntime", "int8", "fp16"],
)
def test_compilation_is_reproducible_and_writes_no_paths(
    name: str, runtime: Runtime, options: dict[str, Any], compiled: Compiled, checkpoint: Any, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(checkpoint("bert").directory, tmp_path / "elsewhere")
    folders = [compiled(name, source, runtime, **options)[0] for source in (checkpoint("bert"), resolve(elsewhere))]
    first, second = (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()} for folder in folders
    )
    assert first == second
    paths = (str(tmp_path), str(Path(backends.__file__).parents[3]), "site-packages", str(elsewhere))
    for path in folders[0].iterdir():
        assert not [text for text in paths if text.encode() in path.read_bytes()], path.name


@pytest.mark.parametrize("name", ["eager", "torchscript", "torch_export", "deepspeed", "onnxruntime"])
def test_a_model_refuses_another_device_or_dtype(name: str, compiled: Compiled) -> None:
    import torch

    directory, _ = compiled(name)
    model = load(name, directory)
    assert model.to("cpu") is model
    with pytest.raises(BadTarget, match="built for cpu"):
        model.to("cuda:0")
    with pytest.raises(BadTarget, match="float16"):
        model.to(torch.float16)


def test_mask_and_token_types_are_optional(checkpoint: Any, compiled: Compiled) -> None:
    import torch

    ids = torch.arange(5, 25).reshape(2, 10)
    expected = load_model(checkpoint("bert"))(ids).start_logits
    for name in BACKENDS:
        directory, _ = compiled(name)
        assert torch.allclose(load(name, directory)(ids).start_logits, expected, atol=1e-5), name


# --- eager ----------------------------------------------------------------------------------------------------------


def test_an_eager_artifact_is_the_checkpoint_byte_for_byte(checkpoint: Any, compiled: Compiled) -> None:
    source = checkpoint("albert")
    directory, _ = compiled("eager", source)
    assert resolve(directory).digest == source.digest


def test_sharded_weights_are_all_copied(checkpoint: Any, compiled: Compiled, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint("bert").directory, tmp_path / "sharded")
    (source / "model.safetensors").unlink()
    load_model(checkpoint("bert")).save_pretrained(source, max_shard_size="40kB")
    directory, _ = compiled("eager", resolve(source))
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    assert largest_difference(checkpoint("bert"), load("eager", directory)) == 0


# --- TorchScript ----------------------------------------------------------------------------------------------------


def test_token_types_are_part_of_the_trace(compiled: Compiled) -> None:
    import torch

    directory, record = compiled("torchscript")
    assert record["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    model = load("torchscript", directory)
    ids, mask = torch.arange(5, 15)[None], torch.ones(1, 10, dtype=torch.long)
    with_types = model(ids, mask, torch.ones_like(ids)).start_logits
    assert (with_types - model(ids, mask, torch.zeros_like(ids)).start_logits).abs().max() > 0.01


def test_token_types_that_were_not_traced_are_refused(compiled: Compiled) -> None:
    import torch

    directory, _ = compiled("torchscript", "roberta")
    model = load("torchscript", directory)
    ids = torch.arange(5, 15)[None]
    model(ids, torch.ones_like(ids), torch.zeros_like(ids))
    with pytest.raises(ValueError, match="token_type_ids"):
        model(ids, torch.ones_like(ids), torch.ones_like(ids))


def test_a_trace_is_bound_to_its_device(compiled: Compiled) -> None:
    directory, record = compiled("torchscript", "mpnet")
    assert record["device"] == "cpu"
    with pytest.raises(BadTarget, match="traced on cpu"):
        load("torchscript", directory, Runtime(device="cuda"))


@pytest.mark.parametrize("python", [(3, 14), (3, 15)])
def test_torchscript_is_refused_on_a_python_that_it_does_not_support(
    python: tuple[int, int], compiled: Compiled, monkeypatch: Any
) -> None:
    directory, _ = compiled("torchscript")
    monkeypatch.setattr(sys, "version_info", (*python, 0, "final", 0))
    with pytest.raises(MissingEnvironment, match=r"Python 3\.1[45](.|\n)*torch_export"):
        load("torchscript", directory)
    with pytest.raises(MissingEnvironment, match="torch_export"):
        compiled("torchscript")


def test_torchscript_shows_no_warnings(compiled: Compiled, capsys: Any) -> None:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        directory, _ = compiled("torchscript")
        load("torchscript", directory)(torch.ones(1, 5, dtype=torch.long))
    assert [str(warning.message) for warning in caught] == []
    assert capsys.readouterr().err == ""


def test_a_trace_with_a_fixed_shape_is_refused(compiled: Compiled, monkeypatch: Any) -> None:
    import torch

    from qabuild.models.backends.torchscript import trace

    class Fixed(torch.nn.Module):
        def forward(self, ids: Any, mask: Any, types: Any) -> Any:
            return ids.reshape(2, 48).float(), ids.float()

    def trace_fixed(eager: Any, example: dict[str, Any]) -> Any:
        return torch.jit.freeze(torch.jit.trace(Fixed().eval(), tuple(example[name] for name in eager.inputs)))

    monkeypatch.setattr(trace, "trace", trace_fixed)
    with pytest.raises(VerificationFailed, match="traced module"):
        compiled("torchscript")


# --- ONNX Runtime ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize(("model_type", "fused"), [("bert", (1, 0)), ("albert", (1, -1)), ("distilbert", (1, 0))])
def test_fused_nodes_are_counted(
    model_type: str, fused: tuple[int, int], layers: int, checkpoint: Any, compiled: Compiled
) -> None:
    _, record = compiled("onnxruntime", checkpoint(model_type, num_hidden_layers=layers))
    assert record["fused"]["Attention"] == fused[0] * layers + fused[1]
    assert record["fused"]["SkipLayerNormalization"] == 2 * layers
    assert record["fusions"] == "as expected"


def test_every_architecture_has_expected_fusions() -> None:
    assert set(fusions.FUSIONS) == {name for name in support.model_types() if supports("onnxruntime", name)}


def test_a_missing_fusion_is_an_error_unless_waived(compiled: Compiled, monkeypatch: Any) -> None:
    monkeypatch.setitem(fusions.FUSIONS, "bert", lambda config: {"Attention": config.num_hidden_layers + 1})
    with pytest.raises(VerificationFailed, match="Attention 2 of 3") as failure:
        compiled("onnxruntime")
    assert "allow_missing_fusions" in str(failure.value)
    _, record = compiled("onnxruntime", allow_missing_fusions=True)
    assert record["fusions"] == {"missing": {"Attention": "2 of 3"}}


def test_the_fusions_of_an_unknown_type_are_reported() -> None:
    config = SimpleNamespace(model_type="nomic", num_hidden_layers=2)
    assert "unknown" in fusions.check_fused(config, {"Attention": 2}, waived=False)["fusions"]


@pytest.mark.line457
@pytest.mark.parametrize("exporter", ["torch", "optimum"])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "deberta-v2"])
def test_optimum_opens_an_onnx_artifact_unchanged(
    model_type: str, exporter: str, checkpoint: Any, compiled: Compiled
) -> None:
    import torch

    optimum = pytest.importorskip("optimum.onnxruntime")
    directory, _ = compiled("onnxruntime", model_type, exporter=exporter)
    names = {path.name for path in directory.iterdir()}
    assert names >= {"model.onnx", "config.json", "tokenizer.json"}
    assert not names & {"ort_config.json", "model.safetensors"}
    theirs = optimum.ORTModelForQuestionAnswering.from_pretrained(directory)
    own = load("onnxruntime", directory)
    for batch in batches(load_tokenizer(directory)):
        assert torch.equal(theirs(**batch).start_logits, own(**batch).start_logits)
        assert torch.equal(theirs(**batch).end_logits, own(**batch).end_logits)
    assert largest_difference(checkpoint(model_type), theirs) < 1e-4


def test_an_exporter_that_is_not_installed_is_missing_with_its_extra(monkeypatch: Any) -> None:
    module = backend("onnxruntime")
    here = {"transformers": "4.57.6"}
    monkeypatch.setattr(packages, "versions", lambda names: {name: here[name] for name in names if name in here})
    needed = module.compile_packages(module.Options(exporter="optimum"))
    remedy = "optimum and optimum-onnx are not installed: pip install 'qabuild[optimum]' or 'qabuild[optimum-gpu]'"
    assert remedy in packages.missing(needed, "cpu")
    here["transformers"] = "5.24.0"
    other = f"{remedy}, in an environment of transformers 4.57 (this one has 5.24.0)"
    assert other in packages.missing(needed, "cpu")
    assert "optimum" not in module.compile_packages(module.Options())


def test_padding_on_the_left_is_masked(checkpoint: Any, compiled: Compiled, tmp_path: Path) -> None:
    source = shutil.copytree(checkpoint("roberta").directory, tmp_path / "left")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    left = resolve(source)
    directory, record = compiled("onnxruntime", left)
    assert record["padding_side"] == "left"
    assert largest_difference(left, load("onnxruntime", directory)) < 1e-4


def test_large_weights_go_into_a_file_of_their_own(checkpoint: Any, compiled: Compiled, monkeypatch: Any) -> None:
    from qabuild.models.backends.onnxruntime import graphs

    monkeypatch.setattr(graphs, "EXTERNAL_FROM", 0)
    directory, _ = compiled("onnxruntime")
    assert (directory / "model.onnx_data").stat().st_size > (directory / "model.onnx").stat().st_size
    assert largest_difference(checkpoint("bert"), load("onnxruntime", directory)) < 1e-4


def test_a_provider_that_is_not_installed_is_an_error(compiled: Compiled, monkeypatch: Any) -> None:
    import onnxruntime

    directory, _ = compiled("onnxruntime", level=0)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingEnvironment, match=r"CUDAExecutionProvider(.|\n)*qabuild\[gpu\]"):
        load("onnxruntime", directory, Runtime(device="cuda", dtype="fp16"))


def test_a_provider_that_does_not_start_is_an_error(compiled: Compiled, monkeypatch: Any) -> None:
    import onnxruntime
    import torch

    directory, _ = compiled("onnxruntime", level=0)
    # Without cuDNN, ONNX Runtime logs an error and falls back to the CPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    on_cpu = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: on_cpu)
    with pytest.raises(MissingEnvironment, match="could not start CUDAExecutionProvider"):
        load("onnxruntime", directory, Runtime(device="cuda"))


def test_bound_memory_gives_the_same_logits(compiled: Compiled) -> None:
    """It is for a GPU, and works on the CPU as well. The rows of a view are apart in memory."""
    import torch

    directory, _ = compiled("onnxruntime")
    model = load("onnxruntime", directory)
    view = torch.arange(5, 45).reshape(2, 20)[:, ::2]
    mask = torch.tensor([[1] * 10, [1] * 6 + [0] * 4])
    expected = model(view.contiguous(), mask)
    start, end = model._run_bound(input_ids=view, attention_mask=mask)
    for output in (model(view, mask), {"start_logits": start, "end_logits": end}):
        assert torch.allclose(output["start_logits"], expected.start_logits, atol=1e-6)
        assert torch.allclose(output["end_logits"], expected.end_logits, atol=1e-6)


def test_an_onnx_graph_ignores_inputs_that_it_lacks(compiled: Compiled) -> None:
    import torch

    directory, _ = compiled("onnxruntime", "distilbert")
    model = load("onnxruntime", directory)
    ids = torch.arange(5, 15)[None]
    assert model.inputs == ("input_ids", "attention_mask")
    assert torch.equal(model(ids, token_type_ids=torch.ones_like(ids)).start_logits, model(ids).start_logits)


def test_a_folder_without_a_graph_is_refused(checkpoint: Any) -> None:
    with pytest.raises(UntrustedInput, match=r"model\.onnx"):
        load("onnxruntime", checkpoint("bert").directory)


# --- DeepSpeed ------------------------------------------------------------------------------------------------------


INJECTED: Any = {"num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 256}
"""Sizes that DeepSpeed's kernels support: heads of size 32, and an intermediate size of four times the hidden size."""


def test_a_deepspeed_artifact_is_a_checkpoint(checkpoint: Any, compiled: Compiled) -> None:
    directory, record = compiled("deepspeed", runtime=Runtime(dtype="bf16"))
    assert record["init_inference"]["dtype"] == "bfloat16"
    assert resolve(directory).digest == checkpoint("bert").digest


@pytest.mark.parametrize("options", [{}, {"tensor_parallel": 2}, {"replace_with_kernel_inject": True}])
def test_deepspeed_takes_its_settings_from_the_options_alone(
    options: dict[str, Any], checkpoint: Any, compiled: Compiled, monkeypatch: Any
) -> None:
    """A file in the artifact, as qabuild 0.1.0 wrote it, changes nothing."""
    import torch

    given: list[Any] = []
    directory, _ = compiled("deepspeed")
    (directory / "deepspeed.json").write_text(
        '{"dtype": "int8", "checkpoint": "/elsewhere", "enable_cuda_graph": true}'
    )
    monkeypatch.setenv("WORLD_SIZE", str(options.get("tensor_parallel", 1)))
    for name in ("_engine", "_kernels"):
        monkeypatch.setattr(deepspeed, name, lambda model, settings, *_: given.append(dict(settings)) or model)
    load("deepspeed", directory, Runtime(dtype="bf16"), **options)
    injected = options.get("replace_with_kernel_inject", False)
    positions = checkpoint("bert").config["max_position_embeddings"]
    assert given == [
        {
            "dtype": torch.bfloat16,
            "replace_with_kernel_inject": injected,
            "tensor_parallel": {"tp_size": options.get("tensor_parallel", 1)},
            "keep_module_on_host": True,
            **(dict.fromkeys(("max_out_tokens", "min_out_tokens"), positions) if injected else {}),
        }
    ]


def test_deepspeed_leaves_stdout_and_the_environment_unchanged(compiled: Compiled) -> None:
    directory, _ = compiled("deepspeed")
    code = (
        "import sys, os, torch; from pathlib import Path; from qabuild.models.backends import backend, Runtime\n"
        "before = dict(os.environ)\n"
        "module = backend('deepspeed')\n"
        f"model = module.load(Path({str(directory)!r}), module.Options(), Runtime())\n"
        "model(torch.ones(1, 4, dtype=torch.long))\n"
        "assert dict(os.environ) == before, set(os.environ) - set(before)\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    root = Path(backends.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_environment_variables_that_deepspeed_sets_are_restored(monkeypatch: Any) -> None:
    from qabuild.models.backends import deepspeed

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 9.0a")
    with deepspeed._quiet():
        os.environ |= {"TORCH_CUDA_ARCH_LIST": "9.0", "DEEPSPEED_NEW": "1"}
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "7.5 9.0a"
    assert "DEEPSPEED_NEW" not in os.environ


def test_output_of_native_code_and_subprocesses_is_captured(capfd: Any) -> None:
    """DeepSpeed's kernels print to stdout, as do the compilers that build them."""
    with captured(1) as output:
        ctypes.CDLL(None).puts(b"free memory")
        subprocess.run(["echo", "ninja"], check=True)
        output.seek(0)
        assert b"ninja" in output.read()
    print("the answer", flush=True)
    assert capfd.readouterr().out == "the answer\n"


def test_the_snippet_of_injected_kernels_first_runs_the_largest_batch() -> None:
    module, runtime = backend("deepspeed"), Runtime(device="cuda", dtype="fp16")
    text = module.snippet(module.Options(replace_with_kernel_inject=True), runtime)
    compile(text, "snippet", "exec")
    init, first = text.index("deepspeed.init_inference("), text.index(f"self(input_ids=torch.ones({module.ROWS}, 2)")
    assert init < first < text.index("def forward")
    assert "torch.ones" not in module.snippet(module.Options(), runtime)


def test_tensor_parallelism_without_its_processes_is_an_error(compiled: Compiled, monkeypatch: Any) -> None:
    directory, _ = compiled("deepspeed")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MissingEnvironment, match="tensor_parallel = 2 needs 2 processes"):
        load("deepspeed", directory, tensor_parallel=2)


def test_injected_kernels_never_exceed_their_workspace(monkeypatch: Any) -> None:
    """All models of a process share it; the batch after `_should_allocate_workspace` is set sizes it."""
    import torch

    require("deepspeed")
    from qabuild.models.backends.deepspeed import kernels

    monkeypatch.setattr(kernels, "WorkspaceOp", lambda config: None)
    sized: list[tuple[str, int]] = []

    def injected(name: str) -> Any:
        first = SimpleNamespace(config=None)

        def engine(**tensors: Any) -> tuple[Any, Any]:
            rows = len(tensors["input_ids"])
            if first._should_allocate_workspace:
                sized.append((name, rows))
                first._should_allocate_workspace = False
            assert sized[-1][0] == name
            assert rows <= sized[-1][1]
            return tensors["input_ids"].float(), -tensors["input_ids"].float()

        return kernels.Kernels(engine, [first], ("input_ids",), torch.device("cpu"))

    one, other = injected("one"), injected("other")
    for model, rows in ((one, 1), (one, 1000), (other, kernels.ROWS + 1), (one, 3)):
        ids = torch.arange(rows * 4).view(rows, 4)
        start, end = model(input_ids=ids)
        assert torch.equal(start, ids.float())
        assert torch.equal(end, -ids.float())
    assert sized == [(name, kernels.ROWS) for name in ("one", "other", "one", "other", "one")]


@pytest.mark.both_lines
@pytest.mark.parametrize("model_type", deepspeed.KERNEL_INJECTION)
def test_injected_layers_fit_the_encoder_of_transformers(model_type: str, checkpoint: Any, monkeypatch: Any) -> None:
    """DeepSpeed's layers with its kernels' substitutes in torch, which it has for all but the linear layer."""
    import torch

    require("deepspeed")
    from deepspeed.ops.transformer.inference.op_binding.base import BaseOp

    from qabuild.models.backends.deepspeed import kernels

    def linear(inputs: Any, weight: Any, bias: Any, add_bias: bool, *_: Any) -> Any:
        return inputs @ weight + bias if add_bias else inputs @ weight

    monkeypatch.setattr(BaseOp, "inference_module", SimpleNamespace(linear_layer_fp32=linear))
    monkeypatch.setattr(kernels, "architecture", lambda device: "9.0")
    source = checkpoint(model_type, **INJECTED)
    options, runtime = deepspeed.Options(replace_with_kernel_inject=True), Runtime()
    settings = deepspeed._settings(options, runtime, torch.float32, source.config["max_position_embeddings"])
    model, inputs = load_model(source, attention="eager"), ("input_ids", "attention_mask")
    injected = deepspeed._kernels(model, settings, inputs, torch.device("cpu"))
    for rows, length in ((1, 5), (3, 20)):
        ids = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1:, length // 2 :] = 0
        with torch.inference_mode():
            expected = load_model(source)(input_ids=ids, attention_mask=mask).start_logits
            start, _ = injected(input_ids=ids, attention_mask=mask)
        assert torch.allclose(start[mask == 1], expected[mask == 1], atol=1e-4)


# --- comparing logits -----------------------------------------------------------------------------------------------


def _model(change: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """A fake model whose logits are the input ids, passed through `change`."""
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    def run(input_ids: Any, attention_mask: Any) -> Any:
        logits = change(input_ids.float(), attention_mask)
        return QuestionAnsweringModelOutput(start_logits=logits, end_logits=logits)

    return run


def _compare(change: Callable[[Any, Any], Any]) -> float:
    import torch

    batch = {"input_ids": torch.tensor([[3, 4, 5], [6, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])}
    expected = logit_check.outputs_of(_model(lambda ids, mask: ids), [batch])
    return logit_check.require_same(expected, _model(change), [batch], logit_check.TOLERANCES["fp32"], "the graph")


def test_logits_on_padding_are_ignored() -> None:
    assert _compare(lambda ids, mask: ids.masked_fill(mask == 0, float("nan"))) == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 6.1])
def test_one_wrong_logit_in_a_padded_row_is_an_error(wrong: float) -> None:
    with pytest.raises(VerificationFailed, match=r"shape \[2, 3\]"):
        _compare(lambda ids, mask: ids.masked_fill(ids == 6, wrong))


def test_an_exception_of_the_model_is_in_the_error() -> None:
    with pytest.raises(VerificationFailed, match="invalid for input of size"):
        _compare(lambda ids, mask: ids.reshape(7))


def test_probes_are_reproducible_padded_and_within_the_positions(checkpoint: Any) -> None:
    source = checkpoint("roberta", max_position_embeddings=66)
    tokenizer, config = load_tokenizer(source.directory), load_model(source).config
    names = ("input_ids", "attention_mask")
    first, second = (list(logit_check.probes(tokenizer, names, config)) for _ in range(2))
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(first, second, strict=True))
    assert max(batch["input_ids"].shape[1] for batch in first) <= 64
    assert [len(batch["input_ids"]) for batch in first] == [size for size, _ in logit_check.SHAPES]
    assert all((batch["attention_mask"] == 0).any() for batch in first if len(batch["input_ids"]) > 1)


# --- on a GPU -------------------------------------------------------------------------------------------------------


def _gpu() -> bool:
    return bool(machine.gpus())


def test_on_a_gpu_attention_does_not_use_cudnn() -> None:
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa_kernels.of_any_shape("cpu"):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with sdpa_kernels.of_any_shape("cuda"):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("name", ["eager", "torchscript", "torch_export", "deepspeed"])
def test_a_torch_model_selects_attention_kernels_by_its_device(name: str, compiled: Compiled, monkeypatch: Any) -> None:
    import torch

    directory, _ = compiled(name)
    model = load(name, directory)
    devices: list[str] = []
    monkeypatch.setattr(sdpa_kernels, "of_any_shape", lambda device: nullcontext(devices.append(device)))
    model(torch.ones(1, 4, dtype=torch.long))
    assert devices == ["cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not _gpu(), reason="no CUDA device")
@pytest.mark.parametrize("model_type", ["bert", "roberta", "deberta-v2"])
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "openvino"])
def test_fp16_on_the_gpu_matches_the_eager_model(
    name: str, model_type: str, checkpoint: Any, compiled: Compiled
) -> None:
    runtime = Runtime(device="cuda", dtype="fp16")
    directory, _ = compiled(name, model_type, runtime)
    model = load(name, directory, runtime)
    assert model.device.type == "cuda"
    assert 0 < largest_difference(checkpoint(model_type), model, "fp16") < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not _gpu(), reason="no CUDA device")
@pytest.mark.parametrize("model_type", deepspeed.KERNEL_INJECTION)
def test_injected_kernels_match_the_eager_model(
    model_type: str, checkpoint: Any, compiled: Compiled, capfd: Any
) -> None:
    runtime = Runtime(device="cuda", dtype="fp16")
    source = checkpoint(model_type, **INJECTED)
    directory, _ = compiled("deepspeed", source, runtime, replace_with_kernel_inject=True)
    model = load("deepspeed", directory, runtime, replace_with_kernel_inject=True)
    assert 0 < largest_difference(source, model, "fp16") < 0.1
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not _gpu(), reason="no CUDA device")
def test_injected_kernels_run_growing_batches_of_several_models(checkpoint: Any, compiled: Compiled) -> None:
    """All models of a process share the kernels' workspace."""
    import torch

    runtime = Runtime(device="cuda", dtype="fp16")
    models = []
    for layers, width in ((2, 64), (4, 128), (3, 64)):
        size = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 4 * width}
        source = checkpoint("bert", **(INJECTED | size))
        directory, _ = compiled("deepspeed", source, runtime, replace_with_kernel_inject=True)
        models.append((load_model(source), load("deepspeed", directory, runtime, replace_with_kernel_inject=True)))
    for rows, length in ((1, 20), (150, 300), (3, 40), (70, 500)):
        for eager, model in models:
            ids = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(rows))
            batch = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
            expected = logit_check.outputs_of(eager, batch)
            assert 0 < logit_check.require_same(expected, model, batch, 0.1, "the injected kernels") < 0.1


@pytest.mark.skipif(_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["eager", "deepspeed", "torchscript", "torch_export"])
def test_a_missing_gpu_is_an_error(name: str, compiled: Compiled) -> None:
    runtime = Runtime(device="cuda", dtype="fp16")
    with pytest.raises(MissingEnvironment, match="no CUDA device"):
        load(name, compiled(name, "bert", runtime)[0], runtime)


@pytest.mark.skipif(_gpu(), reason="there is a GPU")
def test_the_fp16_graph_for_a_gpu_compiles_without_one(compiled: Compiled, monkeypatch: Any) -> None:
    """Also with onnxruntime-gpu, which lists the CUDA provider without a device."""
    onnxruntime = pytest.importorskip("onnxruntime")
    graphs = set()
    for available in (["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda available=available: available)
        directory, record = compiled("onnxruntime", "bert", Runtime(device="cuda", dtype="fp16"))
        assert record["compared_on"] == "CPUExecutionProvider"
        graphs.add((directory / "model.onnx").read_bytes())
    assert len(graphs) == 1
