"""Tokenizers of every layout, and models whose logits are known, to try pipelines with.

The models compute every token's logit from its id, position and window, so that a window's logits do not depend on the
rest of its batch.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from qabuild.qa.pipeline.decode import MASKED
from qabuild.qa.pipeline.windows import Cut, WindowMaker

TEXT = """The Norman dynasty had a major political, cultural and military impact on medieval Europe. Normans were famed
for their martial spirit: they founded the Kingdom of Sicily in 1091, and an expedition on behalf of their duke led
to the conquest of England at the Battle of Hastings in 1066. Who was the duke? What is Normandy? When did it happen?
Wolfgang lives in Berlin, near the Café de l'Été. 東京は日本の首都です。人口は千四百万人。
Ünïcödé naïve façade 😀 👩‍👩‍👧 \U0001d518\U0001d52b\U0001d526""".replace("\n", " ")

QUESTION = "When was the Battle of Hastings?"


def long_text(words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(TEXT.split(), k=words))


# --- tokenizers of every layout -------------------------------------------------------------------------------------


def fast(tokenizer: Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"model_max_length": 512, **named})


def trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator([TEXT, TEXT.lower()], trainer)
    return tokenizer


def template(tokenizer: Tokenizer, pair: str, *tokens: str) -> None:
    ids = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair=pair, special_tokens=ids)


def bert(pad: str = "[PAD]") -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=220, special_tokens=[pad, "[UNK]", "[CLS]", "[SEP]"]))
    template(tokenizer, "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]")
    return fast(tokenizer, pad_token=pad, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def byte_level(specials: list[str], add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet))


def roberta(add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(["<s>", "<pad>", "</s>"], add_prefix_space)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=add_prefix_space
    )
    names = ["input_ids", "attention_mask"]
    return fast(tokenizer, pad_token="<pad>", cls_token="<s>", sep_token="</s>", model_input_names=names)


def deberta() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(["[PAD]", "[CLS]", "[SEP]"])
    template(tokenizer, "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]")
    return fast(tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def gpt2() -> PreTrainedTokenizerFast:
    """No special tokens; the end-of-text token pads."""
    tokenizer = byte_level(["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return fast(tokenizer, pad_token="<|endoftext|>", model_input_names=["input_ids", "attention_mask"])


def unigram(specials: list[str], lower: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.NFKC(), normalizers.Replace("  ", " ")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if lower else steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return trained(tokenizer, trainers.UnigramTrainer(vocab_size=250, special_tokens=specials, unk_token="<unk>"))


def xlm_roberta() -> PreTrainedTokenizerFast:
    tokenizer = unigram(["<s>", "<pad>", "</s>", "<unk>"])
    template(tokenizer, "<s> $A </s> </s> $B </s>", "<s>", "</s>")
    names = ["input_ids", "attention_mask"]
    return fast(tokenizer, pad_token="<pad>", cls_token="<s>", sep_token="</s>", model_input_names=names)


def albert() -> PreTrainedTokenizerFast:
    tokenizer = unigram(["<pad>", "<unk>", "[CLS]", "[SEP]"], lower=True)
    template(tokenizer, "[CLS] $A [SEP] $B:1 [SEP]:1", "[CLS]", "[SEP]")
    return fast(tokenizer, pad_token="<pad>", cls_token="[CLS]", sep_token="[SEP]")


def xlnet() -> PreTrainedTokenizerFast:
    tokenizer = unigram(["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>"])
    template(tokenizer, "$A <sep> $B:1 <sep>:1 <cls>:2", "<sep>", "<cls>")
    return fast(tokenizer, pad_token="<pad>", cls_token="<cls>", sep_token="<sep>", padding_side="left")


def padding_left() -> PreTrainedTokenizerFast:
    tokenizer = bert()
    tokenizer.padding_side = "left"
    return tokenizer


def truncating_left() -> PreTrainedTokenizerFast:
    tokenizer = bert()
    tokenizer.truncation_side = "left"
    return tokenizer


def with_own_truncation_and_padding() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokenizer.json truncates to 12 tokens and pads to 40."""
    backend = bert().backend_tokenizer
    backend.enable_truncation(max_length=12)
    backend.enable_padding(length=40, pad_id=0, pad_token="[PAD]")
    backend = Tokenizer.from_str(backend.to_str())
    return fast(backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    maker.__name__: cache(maker)
    for maker in (
        bert,
        roberta,
        deberta,
        gpt2,
        xlm_roberta,
        albert,
        xlnet,
        padding_left,
        truncating_left,
        with_own_truncation_and_padding,
    )
}


# --- models ----------------------------------------------------------------------------------------------------------


class Hashing(torch.nn.Module):
    """Logits from 0 to `spread`, hashed from each token's id, its position and the ids of its window.

    `silent` masks what the stock pipeline wrongly searches if a tokenizer pads on the left: question and special
    tokens, and the window's first token, which it takes for CLS.
    """

    device = torch.device("cpu")

    def __init__(self, spread: float = 14.0, silent: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="bert")  # which padding does not change
        self.spread, self.silent, self.logits_dtype = spread, silent, dtype
        self.shapes: list[tuple[int, ...]] = []

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        assert input_ids.dtype == attention_mask.dtype == torch.int64
        self.shapes.append(tuple(input_ids.shape))
        inside = attention_mask.bool()
        ids, position = input_ids * attention_mask, attention_mask.cumsum(1)
        window = (ids * position * 7919).sum(1, keepdim=True)
        logits = [self._hash(ids * 2654435761 + position * 40503 + window * 97 + salt) for salt in (11, 5077)]
        if self.silent:
            assert token_type_ids is not None
            after = torch.nn.functional.pad(token_type_ids[:, 1:], (0, 1), value=2)
            hidden = (token_type_ids != 0) | (after != 0) | (position == 1) | ~inside
            logits = [values.masked_fill(hidden, MASKED) for values in logits]
        return {"start_logits": logits[0].to(self.logits_dtype), "end_logits": logits[1].to(self.logits_dtype)}

    def _hash(self, values: torch.Tensor) -> torch.Tensor:
        values = values & 0xFFFFFFFF
        for shift, factor in ((15, 2246822519), (13, 3266489917)):
            values = ((values ^ (values >> shift)) * factor) & 0xFFFFFFFF
        return ((values ^ (values >> 16)).double() / 2**32 * self.spread).float()


class Reading(torch.nn.Module):
    """Finds one word: the logits of its tokens are high. CLS has logits of 1, everything else 0."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, word: str, height: float = 9.0) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.cls, self.height = tokenizer.cls_token_id, height
        self.ids = torch.tensor(tokenizer(word, add_special_tokens=False).input_ids)

    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.isin(input_ids, self.ids) * self.height + (input_ids == self.cls) * 1.0
        return {"start_logits": logits, "end_logits": logits}


class Heights(torch.nn.Module):
    """Assigns the given logits to some words' tokens, and 0 to all others."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, heights: dict[str, float]) -> None:
        super().__init__()
        self.heights = {tokenizer.vocab[word]: height for word, height in heights.items()}

    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> Any:
        logits = sum((input_ids == token) * height for token, height in self.heights.items())
        return SimpleNamespace(start_logits=logits, end_logits=logits)


# --- examples and results --------------------------------------------------------------------------------------------

ONE = {"question": QUESTION, "context": TEXT}
OTHER = {"question": "Who lives in Berlin?", "context": TEXT}


class Examples(torch.utils.data.Dataset):  # type: ignore[misc]
    def __init__(self, examples: list[dict[str, str]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self.examples[index]


alphabet = st.one_of(
    st.sampled_from(TEXT.split()),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    st.sampled_from(
        [
            "é",
            "ﬁ",
            "\uff21\uff22",
            "İ",
            "ß",
            "한국어",
            "اللغة",
            "हिन्दी",
            "\u200b",
            "\u00ad",
            "🇫🇷",
            "𠮷野家",
            "..",
            "a\u0301\u0323",
        ]
    ),
)
contexts = st.one_of(
    st.lists(alphabet, min_size=1, max_size=60).map(" ".join),
    st.lists(alphabet, min_size=1, max_size=30).map("".join),
    st.builds(lambda words, seed: long_text(words, seed), st.integers(1, 900), st.integers(0, 99)),
)
questions = st.lists(alphabet, min_size=1, max_size=12).map(" ".join)


def question_tokens(kind: str, question: str) -> int:
    maker = WindowMaker(TOKENIZERS[kind]())
    windows = maker([(question, "a")], Cut(max_seq_len=10_000, doc_stride=0, max_question_len=10_000))
    return int(windows.length[0] - windows.size[0] - windows.layout.special_count)


def quietly(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **named)


Results = list[dict[str, Any]]


def possible(result: Any) -> Results:
    """The answers of a result with scores above 0: the stock pipeline pads results with impossible spans."""
    answers = result if isinstance(result, list) else [result]
    return [answer for answer in answers if answer["score"] > 0]


TIE = 1e-6
"""Relative difference of two scores, of fp32 products, whose order rounding decides."""


def assert_same(ours: Any, stock: Any) -> None:
    """Assert the same answers in the same order, with scores within 1e-6.

    Answers whose scores tie may have changed places, also with one that `top_k` cut off.
    """
    ours, stock = possible(ours), possible(stock)
    assert [a["score"] for a in ours] == pytest.approx([a["score"] for a in stock], abs=1e-6, rel=0)
    for number, (own, other) in enumerate(zip(ours, stock, strict=True)):
        if _place(own) != _place(other):
            tied = [a for a in stock if a["score"] == pytest.approx(own["score"], rel=TIE)]
            assert tied, (number, own, other)
            is_last = tied[-1] is stock[-1]
            assert is_last or _place(own) in map(_place, tied), (number, own, other)


def _place(answer: dict[str, Any]) -> tuple[str, int, int]:
    return answer["answer"], answer["start"], answer["end"]


def outcome(call: Callable[[Any], Any], pipeline: Any) -> Any:
    """The call's result, or the type of the exception that it raises."""
    try:
        return quietly(call, pipeline)
    except Exception as error:
        return type(error)
