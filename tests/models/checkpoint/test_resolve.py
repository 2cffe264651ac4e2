"""Checkpoints are resolved, inspected, hashed and loaded; damaged and unsafe ones are refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models.checkpoint.load import copy_tokenizer, load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve

pytestmark = pytest.mark.both_lines

Make = Callable[..., Path]


@pytest.fixture
def checkpoint(tiny_checkpoint: Make, tmp_path: Path) -> Make:
    """`checkpoint(model_type="bert")`: a copy of a tiny checkpoint that the test may change."""

    def copy(model_type: str = "bert", **overrides: Any) -> Path:
        return Path(shutil.copytree(tiny_checkpoint(model_type, **overrides), tmp_path / f"my-{model_type}"))

    return copy


def edit(path: Path, **changes: Any) -> None:
    """Change members of the JSON object in a file; None removes a member."""
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def tensors(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(directory / "model.safetensors"))


def save(directory: Path, weights: dict[str, Any], name: str = "model.safetensors") -> None:
    from safetensors.torch import save_file

    save_file(weights, directory / name, metadata={"format": "pt"})


def shard(directory: Path) -> list[str]:
    """Split the weights into two files and an index, as `save_pretrained` does with large models."""
    weights = tensors(directory)
    (directory / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in parts.items():
        save(directory, {name: weights[name] for name in members}, file)
    index = {"metadata": {}, "weight_map": {name: file for file, members in parts.items() for name in members}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return list(parts)


def logits(directory: Path, **options: Any) -> Any:
    source = resolve(directory)
    encoded = load_tokenizer(directory)(tiny.QUESTION, tiny.CONTEXT, return_tensors="pt")
    return load_model(source, **options)(**encoded).start_logits


# --- valid checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", list(tiny.ARCHITECTURES))
def test_every_architecture_is_resolved_and_loaded(tiny_checkpoint: Make, model_type: str) -> None:
    import torch

    source = resolve(tiny_checkpoint(model_type))
    model = load_model(source)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.model_type == source.config["model_type"] == model_type
    tokenizer = load_tokenizer(source.directory)
    assert tokenizer.is_fast
    with torch.inference_mode():
        assert torch.isfinite(model(**tokenizer(tiny.QUESTION, tiny.CONTEXT, return_tensors="pt")).end_logits).all()


def test_a_folder_is_named_by_its_last_part(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = checkpoint()
    monkeypatch.chdir(directory.parent)
    monkeypatch.setenv("HOME", str(directory.parent))
    for source in (directory, str(directory), "./my-bert", "./my-bert/.", "~/my-bert"):
        resolved = resolve(source)
        assert (resolved.name, resolved.revision) == ("my-bert", None)
        assert resolved.directory.samefile(directory)
    monkeypatch.chdir(directory)
    assert resolve(".").name == "my-bert"


def test_a_checkpoint_passes_through_json(tiny_checkpoint: Make) -> None:
    checkpoint = resolve(tiny_checkpoint())
    assert Checkpoint.from_dict(json.loads(json.dumps(checkpoint.to_dict()))) == checkpoint


def test_the_sample_is_a_checkpoint() -> None:
    sample = resolve("sample")
    assert (sample.name, sample.revision, sample.config["model_type"]) == ("sample", None, "roberta")


def test_the_real_checkpoint_has_the_known_digest(shared: Path) -> None:
    real = resolve(shared / "checkpoints" / "minilm-l6-squad")
    assert real.digest == "7153b1ed2c68a08baefe1bacae7643a3bd52929697bd258919b1ca0a37cd7d62"


def test_resolving_imports_no_heavy_package(tiny_checkpoint: Make) -> None:
    code = (
        "import sys; from qabuild.models.checkpoint import resolve; resolve.resolve(sys.argv[1])\n"
        "print(*{'torch', 'numpy', 'transformers', 'tokenizers', 'safetensors', 'huggingface_hub'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tiny_checkpoint())]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""


def test_the_digest_is_computed_as_documented(checkpoint: Make) -> None:
    directory = checkpoint("roberta")
    names = ["config.json", "merges.txt", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    names += ["tokenizer_config.json", "vocab.json"]
    (directory / "README.md").write_text("no part of it")
    lines = [f"{name}\0{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\n" for name in sorted(names)]
    assert resolve(directory).digest == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
def test_any_changed_byte_changes_the_digest(checkpoint: Make, name: str) -> None:
    directory = checkpoint()
    before = resolve(directory).digest
    content = (directory / name).read_bytes()
    changed = content[:-1] + b"\x01" if name == "model.safetensors" else content + b"\n"
    (directory / name).write_bytes(changed)
    assert resolve(directory).digest != before


def test_sharded_weights_load_as_the_same_model(checkpoint: Make) -> None:
    import torch

    directory = checkpoint()
    unsharded, digest = logits(directory), resolve(directory).digest
    shard(directory)
    assert torch.equal(logits(directory), unsharded)
    assert resolve(directory).digest != digest


def test_fp16_weights_are_loaded_in_fp32(checkpoint: Make) -> None:
    import torch

    directory = checkpoint()
    save(directory, {name: tensor.half() for name, tensor in tensors(directory).items()})
    edit(directory / "config.json", dtype="float16")
    assert load_model(resolve(directory)).dtype == torch.float32


def test_the_attention_implementation_can_be_chosen(tiny_checkpoint: Make) -> None:
    import torch

    directory = tiny_checkpoint()
    assert load_model(resolve(directory), attention="eager").config._attn_implementation == "eager"
    assert load_model(resolve(directory)).config._attn_implementation == "sdpa"
    torch.testing.assert_close(logits(directory, attention="eager"), logits(directory), atol=1e-4, rtol=1e-4)


def test_loading_prints_nothing_and_restores_state(tiny_checkpoint: Make, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers.utils import logging

    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.random.get_rng_state().tolist()
    source = resolve(tiny_checkpoint("electra"))
    load_model(source)
    load_tokenizer(source.directory)
    assert capfd.readouterr() == ("", "")
    assert (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        torch.random.get_rng_state().tolist(),
    ) == before


def test_a_tokenizer_is_copied_byte_for_byte(tiny_checkpoint: Make, tmp_path: Path) -> None:
    source = resolve(tiny_checkpoint("roberta"))
    copy_tokenizer(source, tmp_path)
    copied = sorted(path.name for path in tmp_path.iterdir())
    assert copied == [
        *("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")
    ]
    assert all((tmp_path / name).read_bytes() == (source.directory / name).read_bytes() for name in copied)
    assert load_tokenizer(tmp_path)(tiny.CONTEXT) == load_tokenizer(source.directory)(tiny.CONTEXT)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet"])
def test_a_tokenizer_without_tokenizer_json_is_converted_from_its_vocabulary(checkpoint: Make, model_type: str) -> None:
    directory = checkpoint(model_type)
    expected = load_tokenizer(directory)(tiny.QUESTION, tiny.CONTEXT, return_offsets_mapping=True)
    (directory / "tokenizer.json").unlink()
    assert resolve(directory).digest
    encoded = load_tokenizer(directory)(tiny.QUESTION, tiny.CONTEXT, return_offsets_mapping=True)
    assert encoded["input_ids"] == expected["input_ids"]
    assert encoded["offset_mapping"] == expected["offset_mapping"]


@pytest.mark.both_lines
@pytest.mark.parametrize("tokenizer_class", ["TokenizersBackend", None])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "albert"])
def test_a_copied_tokenizer_loads_without_qabuild_on_either_line(
    model_type: str, tokenizer_class: str | None, checkpoint: Make, tmp_path: Path
) -> None:
    """As sealed handlers load it."""
    from transformers import AutoTokenizer

    directory = checkpoint(model_type)
    as_transformers_5_saves_it(directory, tokenizer_class)
    copy_tokenizer(resolve(directory), tmp_path)
    tokenizer, expected = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(directory)
    assert tokenizer(tiny.QUESTION, "Port Aldena") == expected(tiny.QUESTION, "Port Aldena")
    assert set(tokenizer.all_special_tokens) == set(expected.all_special_tokens)
    assert load_tokenizer(tmp_path)(tiny.QUESTION, "a") == expected(tiny.QUESTION, "a")


SPECIAL = [f"{name}_token" for name in ("pad", "unk", "cls", "sep", "mask", "bos", "eos")]


def as_transformers_5_saves_it(directory: Path, tokenizer_class: str | None = None) -> None:
    """Two files only: the special tokens are in tokenizer_config.json, further ones in a list."""
    config, class_name = without_special_tokens(directory)
    special = {name: config[name] for name in SPECIAL if config.get(name) is not None}
    further = {"extra_special_tokens": [".", ","], "backend": "tokenizers", "is_local": True, "model_max_length": 512}
    saved = special | further | {"tokenizer_class": tokenizer_class or class_name}
    (directory / "tokenizer_config.json").write_text(json.dumps(saved))


def as_transformers_4_saves_it(directory: Path) -> None:
    """The special tokens are in special_tokens_map.json, and again in tokenizer_config.json."""
    config, class_name = without_special_tokens(directory)
    special: dict[str, Any] = {name: config[name] for name in SPECIAL if config.get(name) is not None}
    special["additional_special_tokens"] = [".", ","]
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    saved = special | {
        "added_tokens_decoder": {str(token.pop("id")): token for token in added},
        "extra_special_tokens": {},
        "model_max_length": 512,
        "tokenizer_class": class_name,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(saved))
    (directory / "special_tokens_map.json").write_text(json.dumps(special))


def without_special_tokens(directory: Path) -> tuple[dict[str, Any], str]:
    """Remove the tokenizer's files but tokenizer.json; its config, and its class's name without "Fast"."""
    config = json.loads((directory / "tokenizer_config.json").read_text())
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"):
        (directory / name).unlink(missing_ok=True)
    return config, config["tokenizer_class"].removesuffix("Fast")


@pytest.mark.parametrize("saved", [as_transformers_4_saves_it, as_transformers_5_saves_it])
@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "xlm-roberta", "deberta-v2", "albert"])
def test_a_tokenizer_saved_by_either_line_loads(
    saved: Callable[[Path], None], model_type: str, checkpoint: Make, tiny_checkpoint: Make
) -> None:
    directory = checkpoint(model_type)
    saved(directory)
    resolve(directory)
    tokenizer, original = load_tokenizer(directory), load_tokenizer(tiny_checkpoint(model_type))
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "padding_side", "model_max_length"):
        assert getattr(tokenizer, name) == getattr(original, name)
    assert tokenizer.model_input_names == original.model_input_names
    assert tokenizer(tiny.QUESTION, "Port Aldena") == original(tiny.QUESTION, "Port Aldena")
    assert {".", ","} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta"])
def test_a_tokenizer_without_a_class_of_its_own_loads(model_type: str, checkpoint: Make, tiny_checkpoint: Make) -> None:
    """transformers 5 saves it as TokenizersBackend, which names no token types unless its config does."""
    directory = checkpoint(model_type)
    as_transformers_5_saves_it(directory, "TokenizersBackend")
    resolve(directory)
    tokenizer, original = load_tokenizer(directory), load_tokenizer(tiny_checkpoint(model_type))
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert tokenizer.pad_token_id == original.pad_token_id
    assert tokenizer(tiny.QUESTION, "Port Aldena").input_ids == original(tiny.QUESTION, "Port Aldena").input_ids
    edit(directory / "tokenizer_config.json", model_input_names=original.model_input_names)
    assert load_tokenizer(directory)(tiny.QUESTION, "Port Aldena") == original(tiny.QUESTION, "Port Aldena")


# --- missing checkpoints -----------------------------------------------------------------------------------------


def test_a_missing_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadTarget, match="no such folder"):
        resolve("./none")
    with pytest.raises(BadTarget, match="is a file, not a folder"):
        resolve("./file")
    with pytest.raises(UntrustedInput, match=r"no config\.json"):
        resolve("./taken")
    with pytest.raises(BadTarget, match="'taken' is taken as the id") as caught:
        resolve("taken")
    assert "./taken" in (caught.value.hint or "")
    for mistyped in ("sampel", "smaple", "Sample"):
        with pytest.raises(BadTarget, match=f"'{mistyped}'; perhaps you meant 'sample'"):
            resolve(mistyped)
    with pytest.raises(BadTarget, match="no checkpoint on the Hub has the id 'a/b/c'"):
        resolve("a/b/c")


def test_a_revision_without_a_hub_id_is_refused(tiny_checkpoint: Make) -> None:
    for source in (tiny_checkpoint(), "sample"):
        with pytest.raises(BadTarget, match="revision 'main' is given"):
            resolve(source, "main")


# --- unsafe and damaged configs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("auto_map", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("_attn_implementation", {"_attn_implementation": "evil/kernel"}),
        ("_attn_implementation_internal", {"_attn_implementation_internal": "evil/kernel"}),
        ("attn_implementation", {"attn_implementation": "evil/kernel"}),
        ("text_config._attn_implementation", {"text_config": {"_attn_implementation": "evil/kernel"}}),
        ("text_config.attn_implementation", {"text_config": {"attn_implementation": {"": "evil/kernel"}}}),
        ("a.b[1].c._attn_implementation", {"a": {"b": [[], {"c": {"_attn_implementation": "sdpa"}}]}}),
        ("a.auto_map", {"a": {"auto_map": {}}}),
        ("custom_pipelines", {"custom_pipelines": {"qa": {"impl": "evil.Pipeline"}}}),
        ("configuration_files", {"configuration_files": ["config.json", "config.4.0.0.json"]}),
    ],
)
def test_a_config_that_can_run_code_is_refused(checkpoint: Make, place: str, changes: dict[str, Any]) -> None:
    directory = checkpoint()
    edit(directory / "config.json", **changes)
    with pytest.raises(UntrustedInput, match=r"config\.json: .* run code") as caught:
        resolve(directory)
    assert f"config.json: {place} can" in caught.value.message


@pytest.mark.parametrize("value", [None, [], ["config.json"]])
def test_a_config_that_names_no_other_config_is_accepted(checkpoint: Make, value: Any) -> None:
    directory = checkpoint()
    edit(directory / "config.json", configuration_files=value)
    resolve(directory)


@pytest.mark.parametrize("value", ["eager", "sdpa"])
def test_a_builtin_attention_in_a_config_is_accepted(checkpoint: Make, value: str) -> None:
    directory = checkpoint()
    edit(directory / "config.json", attn_implementation=value)
    load_model(resolve(directory))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"bert"', b"\xff", b"[" * 100_000, b"{}", b'{"model_type": 7}'])
def test_a_damaged_config_is_refused(checkpoint: Make, content: bytes) -> None:
    directory = checkpoint()
    (directory / "config.json").write_bytes(content)
    with pytest.raises(UntrustedInput, match=r"config\.json: (not JSON|holds no JSON object|names no model_type)"):
        resolve(directory)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "t5"}, "'t5'.* is an encoder-decoder"),
        ({"model_type": "new", "is_encoder_decoder": True}, "new.* is an encoder-decoder"),
        ({"model_type": "gpt2"}, "gpt2.* is a decoder"),
        ({"is_decoder": True}, "bert.* is a decoder"),
        ({"model_type": "layoutlmv3"}, "reads more than text"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
    ],
)
def test_a_model_that_is_no_text_encoder_is_refused(checkpoint: Make, changes: dict[str, Any], problem: str) -> None:
    directory = checkpoint()
    edit(directory / "config.json", **changes)
    with pytest.raises(BadTarget, match=problem) as caught:
        resolve(directory)
    assert "encoder" in (caught.value.hint or "")


def test_a_peft_adapter_is_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    with pytest.raises(BadTarget, match="is a PEFT adapter"):
        resolve(directory)


def test_an_architecture_unknown_to_transformers_is_refused_on_loading(checkpoint: Make) -> None:
    directory = checkpoint()
    edit(directory / "config.json", model_type="brandnew")
    with pytest.raises(BadTarget, match="no question-answering model of type 'brandnew'"):
        load_model(resolve(directory))


# --- unsafe and damaged weights ----------------------------------------------------------------------------------


def test_pickled_weights_are_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UntrustedInput, match=r"not in safetensors, only in pytorch_model\.bin") as caught:
        resolve(directory)
    assert "safe_serialization=True" in (caught.value.hint or "")


def test_missing_weights_are_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    (directory / "model.safetensors").unlink()
    with pytest.raises(UntrustedInput, match="there are no weights in it"):
        resolve(directory)


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a safetensors file"),
        (b"\x10", "not a safetensors file"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
        (b"\xff" * 16, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (header(b"{no json}"), "header makes no sense"),
        (header([1]), "header makes no sense"),
        (header({"a": {"dtype": "F32", "shape": [1]}}), "header makes no sense"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)), "header makes no sense"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)), "header makes no sense"),
        (header({"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}, bytes(4)), "header makes no sense"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(3)), "is cut off: .* bytes"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(5)), "is too long: .* bytes"),
    ],
)
def test_damaged_weights_are_refused(checkpoint: Make, content: bytes, problem: str) -> None:
    directory = checkpoint()
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(UntrustedInput, match=rf"model\.safetensors: .*{problem}"):
        resolve(directory)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights_are_refused(checkpoint: Make, share: float) -> None:
    directory = checkpoint()
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UntrustedInput, match="cut off"):
        resolve(directory)


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        (None, "has no weight_map"),
        ([], "has no weight_map"),
        ({}, "has no weight_map"),
        ({"a": 7}, "has no weight_map"),
        ({"a": "../other/model.safetensors"}, "no plain name"),
        ({"a": "/etc/passwd"}, "no plain name"),
        ({"a": "..\\model.safetensors"}, "no plain name"),
        ({"a": ".."}, "no plain name"),
        ({"a": "pytorch_model.bin"}, "no plain name"),
        ({"a": "model-00003.safetensors"}, r"shard 'model-00003\.safetensors' .* is missing"),
        ({"a": "model-00001-of-00002.safetensors"}, "names 1 tensors that are in no shard, 'a'"),
    ],
)
def test_an_index_that_contradicts_its_shards_is_refused(checkpoint: Make, weight_map: Any, problem: str) -> None:
    directory = checkpoint()
    shard(directory)
    edit(directory / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(UntrustedInput, match=problem):
        resolve(directory)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
def test_a_symlink_out_of_the_folder_is_refused(checkpoint: Make, tmp_path: Path, name: str) -> None:
    directory = checkpoint()
    (tmp_path / "secret").write_bytes((directory / name).read_bytes())
    (directory / name).unlink()
    (directory / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UntrustedInput, match=rf"{name}: is a link that leads out of its folder"):
        resolve(directory)


def test_a_named_pipe_is_not_opened(checkpoint: Make) -> None:
    directory = checkpoint()
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    with pytest.raises(UntrustedInput, match="no weights"):
        resolve(directory)


@pytest.mark.parametrize(("model_type", "head"), [("bert", "qa_outputs"), ("big_bird", "qa_classifier")])
def test_a_checkpoint_without_a_head_is_refused(checkpoint: Make, model_type: str, head: str) -> None:
    directory = checkpoint(model_type)
    save(directory, {name: tensor for name, tensor in tensors(directory).items() if head not in name})
    edit(directory / "config.json", architectures=["BertForMaskedLM"])
    with pytest.raises(UntrustedInput, match=rf"no question-answering head: no weights '{head}.*BertForMaskedLM"):
        resolve(directory)


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        ("embeddings.LayerNorm.bias", r"1 weights .*: 'bert\.embeddings\.LayerNorm\.bias'"),
        ("encoder.layer.1", r"16 weights .*: 'bert\.encoder\.layer\.1\.attention.*, \.\.\."),
    ],
)
def test_missing_tensors_are_refused(checkpoint: Make, lost: str, problem: str) -> None:
    directory = checkpoint()
    save(directory, {name: tensor for name, tensor in tensors(directory).items() if lost not in name})
    with pytest.raises(UntrustedInput, match=problem):
        load_model(resolve(directory))


def test_weights_of_another_shape_are_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    edit(directory / "config.json", intermediate_size=128)
    with pytest.raises(UntrustedInput, match=r"6 weights .* of another shape .*'bert\.encoder\.layer\.0\.inter"):
        load_model(resolve(directory))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinite_weights_are_refused(checkpoint: Make, value: float) -> None:
    directory = checkpoint()
    weights = tensors(directory)
    weights["bert.encoder.layer.0.output.dense.weight"][3, 5] = value
    save(directory, weights)
    with pytest.raises(UntrustedInput, match=r"1 tensors hold NaN .*'bert\.encoder\.layer\.0\.output\.dense\.weight'"):
        load_model(resolve(directory))


# --- unsafe and damaged tokenizers -------------------------------------------------------------------------------


def test_a_missing_tokenizer_is_refused(checkpoint: Make) -> None:
    directory = checkpoint("roberta")
    for name in ("tokenizer.json", "merges.txt"):
        (directory / name).unlink()
    for attempt in (lambda: resolve(directory), lambda: load_tokenizer(directory)):
        with pytest.raises(UntrustedInput, match="no tokenizer in it") as caught:
            attempt()
        assert "use_fast=True" in (caught.value.hint or "")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"model": {"vocab": 7}}'])
def test_a_damaged_tokenizer_is_refused(checkpoint: Make, content: bytes) -> None:
    directory = checkpoint()
    (directory / "tokenizer.json").write_bytes(content)
    with pytest.raises(UntrustedInput, match=r"tokenizer\.json: (not JSON|holds no)"):
        resolve(directory)


def test_a_tokenizer_that_its_library_cannot_load_is_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    edit(directory / "tokenizer.json", model={"type": "Unheard", "vocab": {}})
    resolve(directory)
    with pytest.raises(UntrustedInput, match="the tokenizer cannot be loaded"):
        load_tokenizer(directory)


def test_a_tokenizer_config_that_can_run_code_is_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    edit(directory / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    for attempt in (lambda: resolve(directory), lambda: load_tokenizer(directory)):
        with pytest.raises(UntrustedInput, match=r"tokenizer_config\.json: auto_map can make"):
            attempt()


def test_a_tokenizer_config_that_names_other_files_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    directory = checkpoint()
    (tmp_path / "secret.txt").write_text("secret")
    edit(directory / "tokenizer_config.json", vocab_file="/no/such/file/of/its/author")
    resolve(directory)
    edit(directory / "tokenizer_config.json", vocab_file=str(tmp_path / "secret.txt"))
    with pytest.raises(UntrustedInput, match="vocab_file leads to a tokenizer file other than"):
        resolve(directory)
    edit(directory / "tokenizer_config.json", vocab_file=None, fast_tokenizer_files=["tokenizer.4.0.json"])
    with pytest.raises(UntrustedInput, match="fast_tokenizer_files leads to"):
        resolve(directory)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "albert"])  # the three vocabulary formats
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(checkpoint: Make, model_type: str) -> None:
    directory = checkpoint(model_type)
    rows = json.loads((directory / "config.json").read_text())["vocab_size"]
    weights = tensors(directory)
    [name] = [name for name in weights if name.endswith("word_embeddings.weight")]
    weights[name] = weights[name][:-3].clone()
    save(directory, weights)
    edit(directory / "config.json", vocab_size=rows - 3)
    with pytest.raises(UntrustedInput, match=rf"3 tokens .* outside the {rows - 3} rows .*\({rows - 3}\)"):
        resolve(directory)
    with pytest.raises(UntrustedInput, match="3 tokens"):
        load_tokenizer(directory)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_an_added_token_without_an_embedding_is_refused(checkpoint: Make, model_type: str) -> None:
    directory = checkpoint(model_type)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 9999, "content": "<extra>"})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UntrustedInput, match=r"1 tokens .*'<extra>' \(9999\)"):
        resolve(directory)
    (directory / "tokenizer.json").unlink()
    resolve(directory)
    (directory / "added_tokens.json").write_text('{"<late>": 8888}')
    with pytest.raises(UntrustedInput, match=r"1 tokens .*'<late>' \(8888\)"):
        resolve(directory)


@pytest.mark.parametrize("class_name", ["CanineTokenizer", "NoSuchTokenizer", "BertJapaneseTokenizer"])
def test_a_tokenizer_without_a_fast_version_is_refused(checkpoint: Make, class_name: str) -> None:
    directory = checkpoint()
    edit(directory / "tokenizer_config.json", tokenizer_class=class_name)
    with pytest.raises(UntrustedInput, match=rf"tokenizer \('{class_name}'\) has no fast version"):
        load_tokenizer(directory)


def test_a_tokenizer_without_a_padding_token_is_refused(checkpoint: Make) -> None:
    directory = checkpoint()
    edit(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token=None)
    (directory / "special_tokens_map.json").unlink()
    with pytest.raises(UntrustedInput, match="no padding token"):
        load_tokenizer(directory)


# --- arbitrary damage --------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70_000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KEYS = ["model_type", "vocab_size", "architectures", "is_decoder", "quantization_config", "model", "added_tokens"]
KEYS += ["weight_map", "tokenizer_class", "vocab_file", "tokenizer_file", "fast_tokenizer_files", "auto_map"]


@given(
    st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]),
    st.sampled_from(KEYS),
    VALUES,
)
def test_a_changed_value_is_accepted_or_refused(
    tiny_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory, name: str, key: str, value: Any
) -> None:
    directory = tmp_path_factory.getbasetemp() / "changed"
    shutil.copytree(tiny_checkpoint(), directory, dirs_exist_ok=True)
    edit(directory / name, **{key: value})
    with suppress(QABuildError):  # and no other exception
        resolve(directory)


@given(
    st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
    st.integers(0, 3000),
    st.binary(max_size=20),
    st.booleans(),
)
def test_damaged_bytes_are_accepted_or_refused(
    tiny_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory, name: str, at: int, noise: bytes, cut: bool
) -> None:
    directory = tmp_path_factory.getbasetemp() / "damaged"
    shutil.copytree(tiny_checkpoint(), directory, dirs_exist_ok=True)
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:at] + noise + (b"" if cut else content[at + len(noise) :]))
    with suppress(QABuildError):  # and no other exception
        resolve(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 0},
        {"hidden_size": "wide"},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"hidden_act": "boom"},
        {"vocab_size": 10},
        {"position_embedding_type": "relative_key"},
        {"pad_token_id": 10_000},
        {"torch_dtype": "nonsense"},
        {"architectures": "nonsense"},
    ],
)
def test_a_config_that_contradicts_the_weights_is_accepted_or_refused(
    checkpoint: Make, changes: dict[str, Any]
) -> None:
    directory = checkpoint()
    edit(directory / "config.json", **changes)
    with suppress(QABuildError):  # and no other exception
        load_model(resolve(directory))


# --- the Hub -----------------------------------------------------------------------------------------------------

RESOLVER = """
import json, sys
from qabuild.models.checkpoint.resolve import resolve
from qabuild.errors import QABuildError
results = []
for arguments in json.loads(sys.argv[1]):
    try:
        source = resolve(**arguments)
        files = sorted(path.name for path in source.directory.iterdir())
        results.append([source.name, source.revision, source.digest, files])
    except QABuildError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""


def resolve_in_subprocess(hub: Hub, home: Path, *arguments: dict[str, Any], **environment: str) -> list[list[Any]]:
    """What `resolve` returns for each set of arguments, in a process that uses this Hub."""
    done = subprocess.run(
        [sys.executable, "-c", RESOLVER, json.dumps(arguments)],
        env={**os.environ, **hub.environment(home), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bars or warnings unless stderr is a terminal
    results: list[list[Any]] = json.loads(done.stdout)
    return results


@pytest.fixture
def hub(tiny_checkpoint: Make) -> Iterator[Hub]:
    """A Hub with a checkpoint on two branches, beside files that are not part of it, a gated one and a pickled one."""
    files = {path.name: path.read_bytes() for path in tiny_checkpoint().iterdir()}
    with Hub() as hub:
        extra = {"README.md": b"#", "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"onnx", "evil.py": b"raise"}
        hub.commit("model", "qa/tiny", {**files, **extra})
        hub.commit("model", "qa/tiny", {**files, "vocab.txt": files["vocab.txt"] + b"\n"}, "refs/pr/1")
        hub.commit("model", "qa/gated", files, gated=True)
        hub.commit("model", "qa/pickle", {**extra, "config.json": files["config.json"]})
        yield hub


@pytest.mark.hub
def test_a_hub_id_is_resolved_to_its_commit(hub: Hub, tmp_path: Path, tiny_checkpoint: Make) -> None:
    shas = hub.repositories["model", "qa/tiny"].branches
    main, branch, pinned = resolve_in_subprocess(
        hub,
        tmp_path,
        {"source": "qa/tiny"},
        {"source": "qa/tiny", "revision": "refs/pr/1"},
        {"source": "qa/tiny", "revision": shas["main"]},
    )
    local = resolve(tiny_checkpoint())
    assert main == ["qa/tiny", shas["main"], local.digest, sorted(p.name for p in local.directory.iterdir())]
    assert pinned == main
    assert branch[1] == shas["refs/pr/1"] != shas["main"]
    assert branch[2] != main[2]
    assert not any(name in request for request in hub.requests for name in (".bin", ".onnx", ".py", "README"))

    hub.requests.clear()
    offline = {"source": "qa/tiny", "offline": True}
    other = {"source": "qa/tiny", "revision": "refs/pr/1", "offline": True}
    assert resolve_in_subprocess(hub, tmp_path, offline, other) == [main, branch]
    assert resolve_in_subprocess(hub, tmp_path, {"source": "qa/tiny"}, HF_HUB_OFFLINE="1") == [main]
    assert hub.requests == []

    hub.stop()
    by_branch, by_sha = resolve_in_subprocess(
        hub, tmp_path, {"source": "qa/tiny"}, {"source": "qa/tiny", "revision": shas["main"]}
    )
    assert by_sha == main  # a commit never changes, so the cache suffices
    assert by_branch[0] == "QABuildError"
    assert f"no answer from {hub.url} about the checkpoint 'qa/tiny'" in by_branch[1]
    assert "HF_HUB_OFFLINE=1" in by_branch[1]


@pytest.mark.hub
def test_a_missing_or_gated_checkpoint_on_the_hub_is_reported(hub: Hub, tmp_path: Path) -> None:
    expected: dict[str, tuple[str, dict[str, Any]]] = {
        "no checkpoint 'qa/none' on the Hub": ("BadTarget", {"source": "qa/none"}),
        "has no revision 'v9'": ("BadTarget", {"source": "qa/tiny", "revision": "v9"}),
        "has no revision '9999": ("BadTarget", {"source": "qa/tiny", "revision": "9" * 40}),
        "'../x' is no revision": ("BadTarget", {"source": "qa/tiny", "revision": "../x"}),
        "'qa/gated' is gated": ("BadTarget", {"source": "qa/gated"}),
        "only in onnx/model.onnx, pytorch_model.bin": ("UntrustedInput", {"source": "qa/pickle"}),
        "'qa/late' (main) is not in the cache": ("QABuildError", {"source": "qa/late", "offline": True}),
        "'qa/late' (8888": ("QABuildError", {"source": "qa/late", "revision": "8" * 40, "offline": True}),
    }
    results = resolve_in_subprocess(hub, tmp_path, *(arguments for _, arguments in expected.values()))
    for (message, (kind, _)), result in zip(expected.items(), results, strict=True):
        assert (result[0], message in result[1]) == (kind, True), result


def test_checkpoints_compare_by_value(tiny_checkpoint: Make) -> None:
    assert resolve(tiny_checkpoint()) == resolve(tiny_checkpoint())
    assert isinstance(resolve(tiny_checkpoint()), Checkpoint)
