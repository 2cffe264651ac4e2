"""Tiny checkpoints with random weights, one config for each architecture, built in under a second.

Like real checkpoints, they have a question-answering head, safetensors, and a fast tokenizer with the special tokens
and templates of its family. Weights are large enough for every layer, bias and token type to change the logits visibly,
so that a comparison detects a lost one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CORPUS = (
    "The lighthouse of Port Aldena was built in 1871 by the engineer Mira Voss, who lived there until 1902.",
    "It stands on a cliff of white stone, forty metres above the sea, and its lamp was seen from thirty miles.",
    "In the winter of 1889 a storm broke the lantern; the keeper, Jonas Hale, repaired it with glass from a ship.",
    "Who built the lighthouse? When did the storm break the lantern? Where did the keeper find the glass?",
    "The museum of the town keeps the old lamp, the letters of the engineer and a map drawn by her daughter.",
    "How many miles away could the lamp be seen? What does the museum keep? Which year was the tower closed?",
    "Café owners in Málaga and Kraków, Žofie and Søren among them, gave naïve answers about the façade.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,;:!?'\"()-",
)
"""Text whose every character the tokenizers know; also the contexts of questions."""

MERGES = (
    *("Ġ t", "h e", "Ġt he", "i n", "Ġ a", "Ġ w", "e r", "o u", "s t", "Ġ i", "Ġ l", "e d", "Ġi n", "a m", "e n"),
    *("Ġ s", "Ġ o", "a r", "o r", "Ġa n", "Ġan d", "o n", "t e", "w h", "r o", "Ġ m", "Ġ b", "Ġ d", "e l", "Ġo f"),
)
"""The merges of the byte-pair tokenizers, in order."""

QUESTION = "Who built the lighthouse?"
CONTEXT = " ".join(CORPUS[:3])

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 514,
    "initializer_range": 0.2,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "mpnet": {},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "convbert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 9},
    "longformer": {"attention_window": 16, "type_vocab_size": 1},
    "big_bird": {},
    "data2vec-text": {"type_vocab_size": 1},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
    "ernie": {},
    "ibert": {"type_vocab_size": 1},
    "megatron-bert": {},
    "modernbert": {},
    "nystromformer": {},
    "rembert": {"input_embedding_size": 32},
    "roberta-prelayernorm": {"type_vocab_size": 1},
    "roformer": {"embedding_size": 32},
    "splinter": {},
    "squeezebert": {"embedding_size": 32},
    "xlm-roberta-xl": {"type_vocab_size": 1},
}
"""The architectures that `make` supports, each with its config beyond `SIZES`."""


def make(directory: Path, model_type: str = "bert", **config_overrides: Any) -> Path:
    """Write a checkpoint with random weights into the new folder `directory`, and return it.

    `config_overrides` go into the architecture's config (`num_hidden_layers=3`). The same arguments give the same
    bytes: the random seed is fixed, and the global random state is restored.
    """
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering
    from transformers.utils import logging

    logging.disable_progress_bar()  # transformers 5 shows one when it saves
    tokenizer = make_tokenizer(model_type)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "sep")}
    config = AutoConfig.for_model(
        model_type,
        **{
            **SIZES,
            **ARCHITECTURES[model_type],
            "vocab_size": len(tokenizer),
            **{key: value for key, value in special.items() if value is not None},
            **config_overrides,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = AutoModelForQuestionAnswering.from_config(config)
        _perturb(model)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _add_older_files(tokenizer, directory)
    return directory


def _add_older_files(tokenizer: Any, directory: Path) -> None:
    """Write the vocabulary and the special tokens beside tokenizer.json, as most checkpoints have them.

    transformers 5 no longer writes those files.
    """
    special_tokens = directory / "special_tokens_map.json"
    if special_tokens.exists():
        return
    special_tokens.write_text(json.dumps(tokenizer.special_tokens_map, indent=2) + "\n", encoding="utf-8")
    if "Unigram" not in repr(type(tokenizer.backend_tokenizer.model)):
        tokenizer.backend_tokenizer.model.save(str(directory))


def _perturb(model: Any) -> None:
    """Move biases and norms off their initial 0 and 1, at which a lost or swapped one would go undetected."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def make_tokenizer(model_type: str) -> Any:
    """A fast tokenizer of the architecture's family, with a few hundred pieces of `CORPUS`."""
    return TOKENIZERS[model_type]()


def _wordpiece(class_name: str) -> Any:
    from tokenizers import processors

    tokenizer = _wordpiece_of("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return _wrapped(class_name, tokenizer)


def _mpnet(class_name: str) -> Any:
    from tokenizers import processors

    tokenizer = _wordpiece_of("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return _wrapped(class_name, tokenizer)


def _wordpiece_of(*special: str) -> Any:
    """A WordPiece tokenizer with three of every four words of the corpus, and single characters for the rest.

    Its vocabulary is listed, not trained: the trainer orders equally frequent pieces differently from run to run.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = _words(normalizer, pre_tokenizer)
    pieces = [*special, *_characters(words), *(f"##{letter}" for letter in _characters(words)), *_some(words)]
    tokenizer = Tokenizer(models.WordPiece(_numbered(pieces), unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _words(normalizer: Any, pre_tokenizer: Any) -> list[str]:
    """The distinct words of the corpus under this normalizer and pre-tokenizer, sorted."""
    text = "\n".join(CORPUS)
    return sorted({word for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))})


def _some(words: list[str]) -> list[str]:
    return [word for number, word in enumerate(words) if number % 4]


def _characters(words: list[str]) -> list[str]:
    return sorted({letter for word in words for letter in word})


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def _bytelevel(class_name: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merges = [(left, right) for left, right in map(str.split, MERGES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = _numbered([*special, *alphabet, *("".join(pair) for pair in merges)])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return _wrapped(class_name, tokenizer)


def _unigram(class_name: str, special: Mapping[str, str], template: tuple[str, str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    words = _words(normalizer, pre_tokenizer)
    pieces = _numbered([*special.values(), *_characters(words), *_some(words)])
    scores = [(piece, 0.0 if piece in special.values() else -8.0 / len(piece)) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=pieces[special["unk"]]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    single, pair = template
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(special[name], pieces[special[name]]) for name in ("cls", "sep")]
    )
    return _wrapped(class_name, tokenizer, {f"{name}_token": token for name, token in special.items()})


def _sentencepiece_roberta(class_name: str) -> Any:
    special = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return _unigram(class_name, special, ("<s> $A </s>", "<s> $A </s> </s> $B </s>"))


def _sentencepiece_bert(class_name: str, pad: str = "[PAD]", unk: str = "[UNK]") -> Any:
    special = {"pad": pad, "unk": unk, "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return _unigram(class_name, special, ("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"))


def _wrapped(class_name: str, tokenizer: Any, special: Mapping[str, str] | None = None) -> Any:
    import transformers

    return getattr(transformers, class_name)(tokenizer_object=tokenizer, model_max_length=512, **(special or {}))


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: _wordpiece("BertTokenizerFast"),
    "distilbert": lambda: _wordpiece("DistilBertTokenizerFast"),
    "electra": lambda: _wordpiece("ElectraTokenizerFast"),
    "mobilebert": lambda: _wordpiece("MobileBertTokenizerFast"),
    "convbert": lambda: _wordpiece("ConvBertTokenizerFast"),
    "mpnet": lambda: _mpnet("MPNetTokenizerFast"),
    "roberta": lambda: _bytelevel("RobertaTokenizerFast"),
    "longformer": lambda: _bytelevel("LongformerTokenizerFast"),
    "xlm-roberta": lambda: _sentencepiece_roberta("XLMRobertaTokenizerFast"),
    "camembert": lambda: _sentencepiece_roberta("CamembertTokenizerFast"),
    "albert": lambda: _sentencepiece_bert("AlbertTokenizerFast", pad="<pad>", unk="<unk>"),
    "big_bird": lambda: _sentencepiece_bert("BigBirdTokenizerFast", pad="<pad>", unk="<unk>"),
    "deberta-v2": lambda: _sentencepiece_bert("DebertaV2TokenizerFast"),
}
SAME_TOKENIZER = {
    "data2vec-text": "roberta",
    "deberta": "bert",
    "ernie": "bert",
    "ibert": "roberta",
    "megatron-bert": "bert",
    "modernbert": "bert",
    "nystromformer": "albert",
    "rembert": "albert",
    "roberta-prelayernorm": "roberta",
    "roformer": "bert",
    "splinter": "bert",
    "squeezebert": "bert",
    "xlm-roberta-xl": "xlm-roberta",
}
"""Architectures that use the tokenizer of another."""
TOKENIZERS |= {borrower: TOKENIZERS[owner] for borrower, owner in SAME_TOKENIZER.items()}
