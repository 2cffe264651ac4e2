"""Checkpoints as people have them: what the model takes and gives is found out, or refused with the true reason."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qabuild.artifact import handler
from qabuild.builder.preview import plan
from qabuild.errors import MissingEnvironment, UntrustedInput
from qabuild.models.backends import BACKENDS, backend
from qabuild.models.checkpoint.interface import positions, stated_positions
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.models.runtime import Runtime
from qabuild.models.training import examples
from qabuild.models.training.collate import Collator
from qabuild.models.training.options import Train
from qabuild.models.training.student import make_student
from qabuild.qa import data
from qabuild.qa.answer_options import Answer
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.system import packages
from qabuild.target.read import load as read_target

pytestmark = pytest.mark.both_lines

CONTEXT = " ".join(tiny.CORPUS * 6)
"""Longer than any of the windows."""
THREE_LABELS = {"id2label": {"0": "A", "1": "B", "2": "C"}, "label2id": {"A": 0, "B": 1, "C": 2}}
LEFTOVERS: tuple[dict[str, Any], ...] = (
    {"return_dict": False},
    {"torchscript": True},
    {"output_attentions": True},
    {"output_hidden_states": True},
    {"chunk_size_feed_forward": 64},
    {"dtype": "float16", "torch_dtype": "bfloat16"},
    {"num_labels": 5},
    {**THREE_LABELS, "problem_type": "multi_label_classification"},
    {"architectures": None},
    {"architectures": ["BertForMaskedLM"]},
)
"""What config.json may hold of other tasks and scripts; the weights are those of question answering."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices are faster on one thread than on two that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`checkpoint("bert", num_hidden_layers=3)`: a tiny checkpoint of the test's own."""

    def copied(model_type: str = "bert", **overrides: Any) -> Path:
        return Path(shutil.copytree(tiny_checkpoint(model_type, **overrides), tmp_path / "checkpoint"))

    return copied


def edit(directory: Path, file: str = "config.json", without: Collection[str] = (), **changes: Any) -> Path:
    path = directory / file
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))
    return directory


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def take_tokenizer(directory: Path, source: Path) -> Path:
    """Replace the checkpoint's tokenizer by that of another."""
    for folder, act in ((directory, Path.unlink), (source, lambda path: shutil.copy(path, directory))):
        for path in list(folder.iterdir()):
            if path.name not in ("config.json", "model.safetensors"):
                act(path)
    return directory


def answer(directory: Path) -> Any:
    pipeline = QuestionAnsweringPipeline(load_model(resolve(directory)), load_tokenizer(directory))
    return pipeline(question=tiny.QUESTION, context=CONTEXT)


# --- outputs --------------------------------------------------------------------------------------------------------


@settings(max_examples=5)
@given(leftovers=st.lists(st.sampled_from(LEFTOVERS), min_size=1, unique_by=str))
def test_leftovers_in_the_config_change_no_answer(
    leftovers: list[dict[str, Any]], tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tiny_checkpoint("bert")
    directory = tmp_path_factory.mktemp("leftovers") / "checkpoint"
    shutil.copytree(source, directory)
    for leftover in leftovers:
        edit(directory, **leftover)
    assert answer(directory) == answer(source)


@pytest.mark.parametrize("head", ["missing", "of three labels"])
def test_training_begins_with_a_head_of_its_own(head: str, checkpoint: Callable[..., Path]) -> None:
    directory = checkpoint(num_labels=3) if head == "of three labels" else edit(checkpoint(), **THREE_LABELS)
    if head == "missing":
        edit_weights(directory, lambda weights: [weights.pop(f"qa_outputs.{kind}") for kind in ("weight", "bias")])
    student = make_student(resolve(directory, head=False), Train(dataset="sample"))
    assert student.qa_outputs.out_features == 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda make: make("bert", num_labels=3), r"2 logits for each token.*'qa_outputs.weight' has shape \[3, 32\]"),
        (lambda make: make("bert", num_labels=1), r"'qa_outputs.bias' has shape \[1\]"),
        (
            lambda make: edit_weights(make(), lambda weights: weights.pop("qa_outputs.bias")),
            "'qa_outputs.bias' is missing",
        ),
        (
            lambda make: edit_weights(
                make(), lambda weights: weights.update({"qa_outputs.0.weight": weights.pop("qa_outputs.weight")})
            ),
            "'qa_outputs.weight' is missing",
        ),
        (
            lambda make: edit(make("modernbert"), architectures=["ModernBertForSequenceClassification"]),
            "saved as 'ModernBertForSequenceClassification'",
        ),
    ],
)
def test_a_head_of_another_task_is_refused_by_its_shape(
    broken: Callable[..., Path], reason: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(UntrustedInput, match=reason) as refused:
        resolve(broken(checkpoint))
    assert "fine-tuned on SQuAD" in str(refused.value)


# --- tokens and token types -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model_type",
    ["bert", "roberta", "mpnet", "ibert", "longformer", "nystromformer", "roformer", "deberta-v2", "modernbert"],
)
def test_the_tokenizer_gives_as_many_tokens_as_the_model_has_positions(
    model_type: str, checkpoint: Callable[..., Path]
) -> None:
    directory = checkpoint(model_type, max_position_embeddings=64)
    edit(directory, "tokenizer_config.json", model_max_length=10**30)
    model, tokenizer = load_model(resolve(directory)), load_tokenizer(directory)
    assert answer(directory)["answer"]
    assert stated_positions(resolve(directory).config) == tokenizer.model_max_length

    def run(length: int) -> None:
        window = tokenizer("a", "a " * 200, truncation="only_second", max_length=length, return_tensors="pt")
        with torch.inference_mode():
            model(input_ids=window["input_ids"], attention_mask=window["attention_mask"])

    run(tokenizer.model_max_length)
    if model_type not in ("deberta-v2", "modernbert"):  # whose positions are relative or rotary
        with pytest.raises((IndexError, RuntimeError)):
            run(tokenizer.model_max_length + 1)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert"},
        {"model_type": "bert", "max_position_embeddings": "512"},
        {"model_type": "roberta", "max_position_embeddings": 514},
    ],
)
def test_positions_that_config_json_does_not_state_are_unknown(config: dict[str, Any]) -> None:
    assert stated_positions(config) is None


def test_training_batches_are_padded_within_the_positions(checkpoint: Callable[..., Path]) -> None:
    """A tokenizer of another family may pad with a token that the model takes for text."""
    directory = checkpoint("roberta", max_position_embeddings=64)
    model, tokenizer = load_model(resolve(directory)), load_tokenizer(directory)
    tokenizer.pad_token = "a"
    questions = data.load(data.DatasetRef("sample")).questions[:4]
    windows = examples.make(questions, tokenizer, Train(dataset="sample", doc_stride=10))
    batch = Collator(windows, ("input_ids", "attention_mask"), longest=positions(model.config))([0, 1, 2])
    assert batch["input_ids"].shape[1] == 62
    with torch.inference_mode():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_a_stated_limit_below_the_positions_stays(checkpoint: Callable[..., Path]) -> None:
    directory = edit(checkpoint(), "tokenizer_config.json", model_max_length=100)
    assert load_tokenizer(directory).model_max_length == 100


def test_token_types_that_the_model_has_are_given(checkpoint: Callable[..., Path]) -> None:
    assert "token_type_ids" in load_tokenizer(checkpoint()).model_input_names


@pytest.mark.parametrize(
    ("edits", "reason"),
    [
        ({"file": "tokenizer_config.json", "model_max_length": "512"}, "model_max_length is '512'"),
        ({"file": "tokenizer_config.json", "model_max_length": 0}, "model_max_length is 0"),
        ({"file": "tokenizer_config.json", "model_max_length": 8}, "reads 8 tokens at once"),
        ({"max_position_embeddings": "514"}, "cannot be loaded|does not fit the model"),
        ({"pad_token_id": None}, "pad_token_id is null, and a 'roberta' counts its positions"),
    ],
)
def test_what_no_window_fits_is_refused(edits: dict[str, Any], reason: str, checkpoint: Callable[..., Path]) -> None:
    directory = edit(checkpoint("roberta"), **edits)
    with pytest.raises(UntrustedInput, match=reason):
        answer(directory)


def test_a_model_that_fails_on_its_own_tokenizer_is_refused_when_it_is_loaded(
    checkpoint: Callable[..., Path], tiny_checkpoint: Callable[..., Path]
) -> None:
    """Longformer finds the question by three separators, of which BERT's tokenizer gives two."""
    directory = edit(take_tokenizer(checkpoint("longformer"), tiny_checkpoint("bert")), sep_token_id=3)
    with pytest.raises(UntrustedInput, match=r"fails on a question: .*three separator tokens"):
        load_model(resolve(directory))


# --- all of it, in every backend ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_seals_what_the_model_takes_and_gives(
    name: str, checkpoint: Callable[..., Path], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """A RoBERTa of one token type with a BERT tokenizer that states no limit, and a config of another task."""
    module, runtime = backend(name), Runtime()
    options = module.Options()
    if missing := packages.missing({**dict.fromkeys(module.PACKAGES, ()), **module.compile_packages(options)}, "cpu"):
        pytest.skip("; ".join(missing))
    directory = take_tokenizer(checkpoint("roberta", max_position_embeddings=128), tiny_checkpoint("bert"))
    edit(directory, "tokenizer_config.json", without=["model_max_length"])
    edit(directory, return_dict=False, output_attentions=True, **THREE_LABELS)
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    module.compile(resolve(directory), options, runtime, compiled)
    expected = answer(directory)

    pipeline = QuestionAnsweringPipeline(module.load(compiled, options, runtime), load_tokenizer(compiled))
    assert pipeline(question=tiny.QUESTION, context=CONTEXT)["answer"] == expected["answer"]
    # The sealed handler reads the folder without qabuild.
    handler.write(options, runtime, packages.versions({*module.PACKAGES, "tokenizers"}), compiled)
    parameters = Answer().parameters(unanswerable=False)
    (compiled / "manifest.json").write_text(json.dumps({"answer": parameters}))
    spec = importlib.util.spec_from_file_location("sealed_handler", compiled / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    sealed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sealed)
    endpoint = sealed.EndpointHandler(str(compiled))
    served = endpoint({"inputs": {"question": tiny.QUESTION, "context": CONTEXT}})
    assert served["answer"] == expected["answer"]
    assert served["score"] == pytest.approx(expected["score"], rel=1e-3)


def test_a_checkpoint_that_needs_no_change_is_copied_byte_for_byte(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    directory = checkpoint()
    (tmp_path / "compiled").mkdir()
    backend("eager").compile(resolve(directory), backend("eager").Options(), Runtime(), tmp_path / "compiled")
    for path in (tmp_path / "compiled").iterdir():
        assert path.read_bytes() == (directory / path.name).read_bytes()


# --- packages -------------------------------------------------------------------------------------------------------


def sentencepiece_only(directory: Path) -> Path:
    (directory / "tokenizer.json").unlink()
    (directory / "sentencepiece.bpe.model").write_bytes(b"a model of SentencePiece")
    return directory


def test_the_packages_of_a_sentencepiece_model_are_named_before_any_work(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qabuild.builder.build import build
    from qabuild.builder.execute import Execution

    installed = packages.versions
    monkeypatch.setattr(
        packages, "versions", lambda names: {} if list(names) == ["sentencepiece"] else installed(names)
    )
    monkeypatch.setattr(Execution, "assemble", None)
    directory = sentencepiece_only(checkpoint("xlm-roberta"))
    target = tmp_path / "mine.toml"
    target.write_text(f'[checkpoint]\nmodel = "{directory}"\n[backend]\nname = "eager"\n[verify]\ndataset = "sample"\n')
    told = "sentencepiece is not installed: pip install sentencepiece"
    assert told in plan(target, tmp_path).facts.missing
    with pytest.raises(MissingEnvironment, match=told):
        build(read_target(target), tmp_path / "artifacts")
    with pytest.raises(MissingEnvironment, match=told):
        load_tokenizer(directory)


# --- relative positions ---------------------------------------------------------------------------------------------


def test_learnt_distances_are_computed_or_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """transformers 4.57 computes them; 5 leaves them out, and would answer with another model."""
    directory = edit(checkpoint(), position_embedding_type="relative_key")
    name = "bert.encoder.layer.{}.attention.self.distance_embedding.weight"
    edit_weights(
        directory, lambda weights: weights.update({name.format(layer): torch.randn(1027, 8) for layer in (0, 1)})
    )
    if version("transformers") >= "5":
        with pytest.raises(MissingEnvironment, match=r"'relative_key'.*leaves out\n.*transformers>=4.57,<5"):
            load_model(resolve(directory))
        return
    model = load_model(resolve(directory))
    assert any(key.endswith("distance_embedding.weight") for key in model.state_dict())
    options = backend("onnxruntime").Options(level=2)
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    record = backend("onnxruntime").compile(resolve(directory), options, Runtime(), compiled)
    assert record["fusions"] == "as expected"
    assert "Attention" not in record["fused"]


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("deberta", {"hidden_act": "gelu_new"}),
        ("squeezebert", {"hidden_act": "relu"}),
        ("deberta-v2", {"conv_kernel_size": 3}),
    ],
)
def test_no_fusion_is_expected_of_what_is_never_fused(
    model_type: str, overrides: dict[str, Any], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    options = backend("onnxruntime").Options(level=2)
    resolved = resolve(checkpoint(model_type, **overrides))
    record = backend("onnxruntime").compile(resolved, options, Runtime(), compiled)
    assert record["fusions"] == "as expected"
