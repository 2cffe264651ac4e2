"""The pipeline compared with the stock pipeline: equal logits, equal answers.

The tests' model computes every token's logit from its id, position and window, so that a window's logits do not depend
on the rest of its batch. PIPELINE_CASES=2000 in the environment compares the two on more generated cases;
`benchmarks/pipeline.py --differential 10570` does so on all real questions.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast
from transformers.data import SquadExample
from transformers.pipelines import question_answering as stock_module

from qabuild.errors import QABuildError
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.decode import MASKED, best_spans, best_spans_on_device
from qabuild.qa.pipeline.windows import Cut, WindowMaker

CASES = int(os.environ.get("PIPELINE_CASES", "100"))


def _script(name: str) -> Any:
    """Import a script of the benchmarks as a module."""
    path = Path(__file__).resolve().parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _script("pipeline")

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


# --- models, and the two pipelines over them ------------------------------------------------------------------------


class Hashing(torch.nn.Module):
    """Logits from 0 to `spread`, hashed from each token's id, its position and the ids of its window.

    `silent` masks what the stock pipeline wrongly searches if a tokenizer pads on the left: question and special
    tokens, and the window's first token, which it takes for CLS.
    """

    device = torch.device("cpu")

    def __init__(self, spread: float = 14.0, silent: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = SimpleNamespace()
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


def stock_pipeline(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The stock pipeline, without its warning about the model's class."""
    pipeline = stock_module.QuestionAnsweringPipeline(model, tokenizer, framework="pt", device="cpu")
    return lambda *args, **named: quietly(pipeline, *args, **named)


def quietly(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **named)


def both(kind: str, **named: Any) -> tuple[Any, QuestionAnsweringPipeline]:
    tokenizer = TOKENIZERS[kind]()
    model = Hashing(silent=kind in ("xlnet", "padding_left"), **named)
    return stock_pipeline(model, tokenizer), QuestionAnsweringPipeline(model, tokenizer)


Results = list[dict[str, Any]]


def possible(result: Any) -> Results:
    """The answers of a result with scores above 0: the stock pipeline pads results with impossible spans."""
    answers = result if isinstance(result, list) else [result]
    return [answer for answer in answers if answer["score"] > 0]


def assert_same(ours: Any, stock: Any) -> None:
    """Assert the same answers in the same order, with scores within 1e-6."""
    ours, stock = possible(ours), possible(stock)
    assert [(a["answer"], a["start"], a["end"]) for a in ours] == [(a["answer"], a["start"], a["end"]) for a in stock]
    assert [a["score"] for a in ours] == pytest.approx([a["score"] for a in stock], abs=1e-6, rel=0)


@pytest.fixture
def without_impossible_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the spans that the stock pipeline adds if a window has too few; see the tests of its defects."""
    monkeypatch.setattr(stock_module, "decode_spans", decode_possible_spans)


STOCK_DECODE = stock_module.decode_spans


def decode_possible_spans(start: Any, end: Any, topk: int, longest: int, desired: Any) -> Any:
    if start.size**2 == topk:  # the stock code would raise
        topk += 1
    starts, ends, scores = STOCK_DECODE(start, end, topk, longest, desired)
    keep = (scores > 0) & (starts <= ends) & (ends - starts < longest)
    return starts[keep], ends[keep], scores[keep]


# --- the same answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"top_k": 5},
        {"top_k": 20, "handle_impossible_answer": True},
        {"top_k": 7, "align_to_words": False},
        {"max_seq_len": 80, "doc_stride": 20, "top_k": 3},
        {"max_seq_len": 90, "max_answer_len": 3, "handle_impossible_answer": True, "batch_size": 4},
        {"max_seq_len": 103, "doc_stride": 1, "max_answer_len": 60, "top_k": 2},
    ],
    ids=str,
)
def test_answers_like_the_stock_pipeline(kind: str, parameters: dict[str, Any]) -> None:
    stock, ours = both(kind)
    examples = [
        {"question": QUESTION, "context": long_text(words, seed)}
        for seed, words in enumerate((30, 60, 400, 30, 150, 45))
    ] + [{"question": question, "context": TEXT} for question in ("東京は?", "Who 😀?", "a")]
    results = ours(examples, **parameters)
    for example, result in zip(examples, results, strict=True):
        assert_same(result, stock(**example, **parameters))


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


@settings(
    max_examples=CASES,
    deadline=None,
    derandomize=CASES == 100,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # shrinking such cases takes minutes
)
@given(data=st.data())
@pytest.mark.usefixtures("without_impossible_spans")
def test_answers_like_the_stock_pipeline_on_any_text(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(TOKENIZERS)))
    stock, ours = both(kind)
    examples = [
        {"question": data.draw(questions), "context": data.draw(contexts)} for _ in range(data.draw(st.integers(1, 3)))
    ]
    assume(all(example["question"] and example["context"] for example in examples))
    longest = max(question_tokens(kind, example["question"]) for example in examples)
    stride = data.draw(st.integers(0, 40))
    parameters = {
        "top_k": data.draw(st.integers(1, 20)),
        "handle_impossible_answer": data.draw(st.booleans()),
        "align_to_words": data.draw(st.booleans()),
        "max_answer_len": data.draw(st.sampled_from([1, 2, 15, 40])),
        "doc_stride": stride,
        "max_seq_len": longest + stride + 5 + data.draw(st.sampled_from([1, 2, 7, 50, 300])),
        "max_question_len": longest + 1,
    }
    if kind == "xlnet":  # a window's only token would be the silenced one
        cut = Cut(max_seq_len=parameters["max_seq_len"], doc_stride=stride, max_question_len=longest + 1)
        pairs = [(example["question"], example["context"]) for example in examples]
        assume(WindowMaker(TOKENIZERS[kind]())(pairs, cut).size.min() > 1)
    results = ours(examples, **parameters)
    for example, result in zip(examples, results if len(examples) > 1 else [results], strict=True):
        assert_same(result, stock(**example, **parameters))


def question_tokens(kind: str, question: str) -> int:
    maker = WindowMaker(TOKENIZERS[kind]())
    windows = maker([(question, "a")], Cut(max_seq_len=10_000, doc_stride=0, max_question_len=10_000))
    return int(windows.length[0] - windows.size[0] - windows.layout.special_count)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm_roberta", "xlnet"])
@pytest.mark.parametrize("words", [1, 2, 2600])
@pytest.mark.usefixtures("without_impossible_spans")
def test_answers_like_the_stock_pipeline_on_contexts_of_any_length(kind: str, words: int) -> None:
    context = " ".join(["Wolfgang", "lives"][:words]) if words < 3 else long_text(words)
    assert words < 3 or question_tokens(kind, context) > 5000
    stock, ours = both(kind)
    for parameters in ({}, {"top_k": 20, "handle_impossible_answer": True}, {"top_k": 20, "align_to_words": False}):
        example = {"question": QUESTION, "context": context}
        assert_same(ours(**example, **parameters), stock(**example, **parameters))


@pytest.mark.parametrize(
    "parameters",
    [{}, {"max_seq_len": 128, "doc_stride": 40, "top_k": 5, "handle_impossible_answer": True}],
    ids=str,
)
def test_a_stream_of_real_questions_is_answered_like_the_stock_pipeline(
    parameters: dict[str, Any], squad_dev: Path
) -> None:
    examples = benchmark.spread(benchmark.read(squad_dev), 50)
    tokenizer = BertTokenizerFast.from_pretrained(squad_dev.parents[1] / "checkpoints" / "minilm-l6-squad")
    model = Hashing()
    stock = stock_pipeline(model, tokenizer)((example for example in examples), batch_size=8, **parameters)
    ours = QuestionAnsweringPipeline(model, tokenizer)((example for example in examples), **parameters)
    for one, other in zip(ours, stock, strict=True):
        assert_same(one, other)


def test_real_questions_are_answered_like_the_stock_pipeline_with_any_parameters(squad_dev: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(squad_dev.parents[1] / "checkpoints" / "minilm-l6-squad")
    outcomes = quietly(benchmark.differential, tokenizer, benchmark.read(squad_dev), 10)
    assert outcomes.total() > 1000
    assert not outcomes.keys() - {benchmark.SAME, benchmark.TIED, benchmark.IMPOSSIBLE}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_logits_are_normalised_in_fp32(dtype: torch.dtype) -> None:
    """The stock pipeline normalises fp16 logits in fp16, exact to three digits, and bf16 logits in fp32."""
    tokenizer = TOKENIZERS["bert"]()
    low_precision = QuestionAnsweringPipeline(Hashing(dtype=dtype), tokenizer)(**ONE)
    rounded = QuestionAnsweringPipeline(Rounded(dtype), tokenizer)(**ONE)
    assert low_precision == rounded
    stock = stock_pipeline(Hashing(dtype=dtype), tokenizer)(**ONE)
    assert low_precision["score"] == pytest.approx(stock["score"], rel=1e-5 if dtype == torch.bfloat16 else 2e-2)


class Rounded(Hashing):
    """The same logits in fp32, rounded to another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.rounded = dtype

    def forward(self, *args: torch.Tensor, **named: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: logits.to(self.rounded).float() for name, logits in super().forward(*args, **named).items()}


# --- the forms of a call --------------------------------------------------------------------------------------------

ONE = {"question": QUESTION, "context": TEXT}
OTHER = {"question": "Who lives in Berlin?", "context": TEXT}


@pytest.mark.parametrize(
    "call",
    [
        lambda pipeline: pipeline(**ONE),
        lambda pipeline: pipeline(ONE["question"], ONE["context"]),
        lambda pipeline: pipeline(ONE),
        lambda pipeline: pipeline([ONE]),
        lambda pipeline: pipeline((ONE, OTHER)),
        lambda pipeline: pipeline(ONE, OTHER),
        lambda pipeline: pipeline([]),
        lambda pipeline: pipeline(data=[ONE, OTHER]),
        lambda pipeline: pipeline(X=ONE),
        lambda pipeline: pipeline(question=[QUESTION, "Who?"], context=TEXT),
        lambda pipeline: pipeline(question=[QUESTION, "Who?"], context=[TEXT, long_text(40)]),
        lambda pipeline: pipeline(question=[QUESTION], context=[TEXT]),
        lambda pipeline: pipeline({"question": [QUESTION], "context": [TEXT]}),
        lambda pipeline: pipeline({"question": [QUESTION, "Who?"], "context": [TEXT, TEXT]}),
        lambda pipeline: pipeline(SquadExample(None, QUESTION, TEXT, None, None, None)),
        lambda pipeline: list(pipeline(example for example in (ONE, {**OTHER, "id": 7}))),
        lambda pipeline: list(pipeline(Examples([ONE, OTHER]))),
        lambda pipeline: next(iter(pipeline(example for example in (ONE,)))),
        lambda pipeline: pipeline(**ONE, top_k=3),
        lambda pipeline: pipeline(**ONE, topk=2),
        lambda pipeline: pipeline(**ONE, top_k=None, doc_stride=None, padding="max_length", max_seq_len=200),
        lambda pipeline: pipeline([ONE, OTHER], batch_size=2, num_workers=0),
        lambda pipeline: pipeline(data=[ONE, OTHER], top_k=2, handle_impossible_answer=True),
        lambda pipeline: pipeline("one string"),
        lambda pipeline: pipeline(),
        lambda pipeline: pipeline(7),
        lambda pipeline: pipeline([7]),
        lambda pipeline: pipeline(question=QUESTION),
        lambda pipeline: pipeline(question=QUESTION, context=[TEXT]),
        lambda pipeline: pipeline(question=[QUESTION], context=[TEXT, TEXT]),
        lambda pipeline: pipeline(question="", context=TEXT),
        lambda pipeline: pipeline(question=QUESTION, context=""),
        lambda pipeline: pipeline({"question": QUESTION}),
        lambda pipeline: pipeline({"question": QUESTION, "context": None}),
        lambda pipeline: pipeline({**ONE, "id": "7"}),
        lambda pipeline: list(pipeline({"question": QUESTION} for _ in range(2))),
        lambda pipeline: pipeline(**ONE, top_k=0),
        lambda pipeline: pipeline(**ONE, max_answer_len=0),
        lambda pipeline: pipeline(**ONE, max_seq_len=20, doc_stride=21),
        lambda pipeline: pipeline(**ONE, padding="sideways"),
    ],
)
def test_calls_return_or_raise_like_the_stock_pipeline(call: Callable[[Any], Any]) -> None:
    stock, ours = both("bert")
    expected, result = outcome(call, stock), outcome(call, ours)
    if isinstance(expected, type):
        assert result is expected
        return
    assert type(result) is type(expected)
    for one, other in zip(
        *((answers if isinstance(answers, list) else [answers]) for answers in (result, expected)), strict=True
    ):
        assert_same(one, other)


class Examples(torch.utils.data.Dataset):  # type: ignore[misc]
    def __init__(self, examples: list[dict[str, str]]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self.examples[index]


def outcome(call: Callable[[Any], Any], pipeline: Any) -> Any:
    """The call's result, or the type of the exception that it raises."""
    try:
        return quietly(call, pipeline)
    except Exception as error:
        return type(error)


def test_parameters_of_the_pipeline_are_defaults_of_its_calls() -> None:
    tokenizer = TOKENIZERS["bert"]()
    pipeline = QuestionAnsweringPipeline(Hashing(), tokenizer, top_k=3, max_answer_len=2)
    assert len(pipeline(**ONE)) == 3
    assert isinstance(pipeline(**ONE, top_k=1), dict)
    with pytest.raises(TypeError, match="topp_k"):
        pipeline(**ONE, topp_k=3)
    with pytest.raises(ValueError, match="normalize"):
        pipeline(**ONE, normalize="document")
    with pytest.raises(QABuildError, match="fast tokenizer"):
        QuestionAnsweringPipeline(Hashing(), SimpleNamespace(is_fast=False))


def test_the_tokenizer_keeps_its_own_settings() -> None:
    tokenizer = with_own_truncation_and_padding()
    before = tokenizer.backend_tokenizer.to_str()
    pipeline = QuestionAnsweringPipeline(Hashing(), tokenizer)
    first = pipeline(**ONE)
    assert tokenizer.backend_tokenizer.to_str() == before
    tokenizer(TEXT, truncation=True, max_length=5)
    assert pipeline({"question": QUESTION + " ", "context": TEXT + " "})["answer"] is not None
    assert pipeline(**ONE) == first


# --- streams and batches --------------------------------------------------------------------------------------------


def test_a_stream_is_answered_in_order_with_bounded_read_ahead() -> None:
    read = 0

    def questions() -> Iterator[dict[str, str]]:
        nonlocal read
        for number in range(5000):
            read += 1
            yield {"question": "When?", "context": f"It was in {number} then. " + "So it was. " * (number % 7)}

    tokenizer = TOKENIZERS["bert"]()
    pipeline = QuestionAnsweringPipeline(Hashing(), tokenizer, max_answer_len=40)
    stream = pipeline(questions())
    assert read == 0
    first = next(stream)
    assert 1 <= read <= 1024
    results = [first, *(next(stream) for _ in range(2000))]
    assert read <= 3072
    for number in (*range(20), 1023, 1024, 2000):
        assert_same(results[number], pipeline(next(itertools.islice(questions(), number, None))))
    one_by_one = pipeline(questions(), batch_size=1)
    read = 0
    next(one_by_one)
    assert read == 1


def test_a_stream_that_raises_answers_the_questions_before() -> None:
    def questions() -> Iterator[dict[str, str]]:
        yield ONE
        yield OTHER
        raise OSError("the disk is gone")

    stream = both("bert")[1](questions())
    assert {next(stream)["answer"], next(stream)["answer"]}
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_windows_of_similar_length_share_a_batch_of_bounded_size() -> None:
    pipeline = both("bert")[1]
    examples = [
        {"question": "Who?", "context": long_text(words, words)}
        for words in random.Random(0).choices(range(5, 300), k=60)
    ]
    pipeline(examples, batch_tokens=1000)
    shapes = pipeline.model.shapes
    assert all(rows * columns <= 1000 and columns % 16 == 0 for rows, columns in shapes)
    assert [columns for _, columns in shapes] == sorted((columns for _, columns in shapes), reverse=True)
    pipeline.model.shapes = []
    pipeline(examples, batch_size=7)
    assert {rows for rows, _ in pipeline.model.shapes[:-1]} == {7}
    pipeline.model.shapes = []
    pipeline(**ONE, batch_size=1)
    assert pipeline.model.shapes == [(1, len(TOKENIZERS["bert"]()(QUESTION, TEXT).input_ids))]


def test_every_text_is_tokenised_once() -> None:
    pipeline = both("bert")[1]
    tokenised: list[str] = []

    class RecordingBackend:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch(self, texts: list[str], **named: Any) -> Any:
            tokenised.extend(texts)
            return backend.encode_batch(texts, **named)

        def encode_batch_fast(self, texts: list[str], **named: Any) -> Any:
            tokenised.extend(texts)
            return backend.encode_batch_fast(texts, **named)

    backend, pipeline._make_windows._backend = pipeline._make_windows._backend, RecordingBackend()
    list(pipeline({"question": f"{number % 3}?", "context": f"{number // 1000} " + TEXT} for number in range(3000)))
    assert sorted(tokenised) == sorted(set(tokenised))
    assert len(tokenised) == 6


# --- where the stock pipeline is wrong ------------------------------------------------------------------------------


def test_impossible_spans_are_never_answers() -> None:
    """The stock pipeline returns spans that end before they begin, or begin at CLS, with score 0."""
    stock, ours = both("bert")
    junk = stock(question="Who?", context="Berlin it", top_k=20, max_answer_len=1)
    assert any(answer["score"] == 0 for answer in junk)
    answers = ours(question="Who?", context="Berlin it", top_k=20, max_answer_len=1)
    assert all(answer["score"] > 0 and answer["answer"] for answer in answers)


def test_ties_are_in_the_order_of_the_context() -> None:
    """The stock pipeline has them in the arbitrary order of a partial sort."""
    tokenizer = TOKENIZERS["bert"]()
    model = Heights(tokenizer, {"a": 8.0, "b": 8.0})
    answers = QuestionAnsweringPipeline(model, tokenizer)(question="?", context=", b , a ,", top_k=3)
    assert [answer["answer"] for answer in answers] == ["b", "b , a", "a"]
    assert len({answer["score"] for answer in answers}) == 1


def test_top_k_may_be_any_number() -> None:
    """The stock pipeline raises if top_k is exactly the number of spans, impossible ones included."""
    stock, ours = both("bert")
    tokens = question_tokens("bert", "a") + question_tokens("bert", "Who? it") + 3
    example = {"question": "a", "context": "Who? it", "align_to_words": False, "top_k": tokens**2}
    with pytest.raises(ValueError, match="kth"):
        stock(**example)
    assert possible(ours(**example))


def test_a_context_without_tokens_has_the_empty_answer() -> None:
    """The stock pipeline returns an empty list, or answers with the CLS token."""
    stock, ours = both("bert")
    assert not possible(stock(question="Who?", context=" \n"))
    assert ours(question="Who?", context=" \n") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    answers = ours([{"question": "Who?", "context": " "}, ONE], handle_impossible_answer=True)
    assert answers[0] == {"score": 1.0, "start": 0, "end": 0, "answer": ""}
    assert answers[1] == ours(**ONE, handle_impossible_answer=True)


def test_a_question_is_truncated_to_max_question_len() -> None:
    """The stock pipeline ignores `max_question_len` with fast tokenizers, and raises on long questions."""
    stock, ours = both("bert")
    long = {"question": long_text(400), "context": TEXT}
    with pytest.raises(Exception, match="too short"):
        stock(**long)
    ours(**long)
    assert ours.model.shapes[-1] <= (1, 384)
    windows = WindowMaker(TOKENIZERS["bert"]())(
        [(long["question"], TEXT)], Cut(max_seq_len=384, doc_stride=128, max_question_len=64)
    )
    assert windows.bounds[0, 2] - windows.bounds[0, 1] == 64


def test_a_question_is_truncated_further_to_leave_space_for_its_context() -> None:
    """The stock pipeline panics if the context gets no more tokens than the overlap."""
    ours = both("bert")[1]
    cut = Cut(max_seq_len=64, doc_stride=32, max_question_len=1000)
    windows = WindowMaker(TOKENIZERS["bert"]())([(long_text(100), long_text(100))], cut)
    assert windows.size.max() == 33
    assert windows.length.max() == 64
    assert possible(
        ours(question=long_text(100), context=long_text(100), max_seq_len=64, doc_stride=32, max_question_len=1000)
    )
    with pytest.raises(ValueError, match="leaves no tokens"):
        ours(**ONE, max_seq_len=64, doc_stride=61)


def test_answers_come_from_the_context_whichever_side_is_padded() -> None:
    """If a tokenizer pads on the left, the stock pipeline searches the question too."""
    tokenizer = TOKENIZERS["xlnet"]()
    model = Reading(tokenizer, "Wolfgang")
    question, other_text = "Wolfgang is where?", 5 * "東京は日本の首都です。人口は千四百万人。"
    stock = stock_pipeline(model, tokenizer)(question=question, context=other_text)
    ours = QuestionAnsweringPipeline(model, tokenizer)
    assert stock["score"] > 10 * ours(question=question, context=other_text)["score"]
    answer = ours(question=question, context="Wolfgang lives in Berlin. " + other_text)
    assert (answer["start"], answer["answer"].strip()) == (0, "Wolfgang")


def test_no_answer_is_scored_at_the_cls_token_whichever_side_is_padded() -> None:
    """The stock pipeline uses the first token, which is text or padding if a tokenizer pads on the left."""
    tokenizer = TOKENIZERS["xlnet"]()
    model = Reading(tokenizer, "nowhere", height=0.0)
    example = {"question": "a?", "context": "it lives in Berlin", "handle_impossible_answer": True, "top_k": 50}
    empty = next(a for a in QuestionAnsweringPipeline(model, tokenizer)(**example) if a["answer"] == "")
    tokens = question_tokens("xlnet", example["context"])
    assert empty["score"] == pytest.approx((np.e / (np.e + tokens)) ** 2)


def test_special_tokens_written_in_a_question_are_not_answers() -> None:
    """The stock pipeline accepts every CLS token as an answer, even in the question."""
    tokenizer = TOKENIZERS["bert"]()
    model = Reading(tokenizer, "nowhere", height=0.0)
    example = {"question": "[CLS] [CLS] who?", "context": "Wolfgang lives", "top_k": 30, "align_to_words": False}
    ours = QuestionAnsweringPipeline(model, tokenizer)(**example)
    assert all(TEXT.count(answer["answer"]) and answer["end"] > answer["start"] for answer in ours)
    tokens = question_tokens("bert", "Wolfgang lives")
    assert sum(answer["score"] for answer in ours) <= (tokens / (tokens + np.e)) ** 2 + 1e-6


def test_answers_in_later_windows_begin_at_their_words() -> None:
    """With byte-level tokenizers that trim offsets, the stock pipeline trims later windows unlike the first."""
    tokenizer = roberta(add_prefix_space=True)
    model = Hashing()
    parameters = {"max_seq_len": 40, "doc_stride": 3, "top_k": 20}
    context = "the battle of Hastings in 1066 and " * 20
    stock = stock_pipeline(model, tokenizer)(question="When?", context=context, **parameters)
    assert any(answer["answer"].startswith(" ") for answer in stock)
    ours = QuestionAnsweringPipeline(model, tokenizer)(question="When?", context=context, **parameters)
    assert all(answer["answer"] == answer["answer"].strip() != "" for answer in ours)


def test_later_windows_are_searched_without_a_post_processor() -> None:
    """The stock pipeline masks them, since `tokenizers` does not mark their context tokens."""
    tokenizer = fast(
        byte_level(["<|endoftext|>"]), pad_token="<|endoftext|>", model_input_names=["input_ids", "attention_mask"]
    )
    model = Reading(tokenizer, "#")
    context = "It was long ago. " * 40 + "There was # then. " + "It was long ago. " * 40
    parameters = {"max_seq_len": 80, "doc_stride": 20}
    assert "#" not in stock_pipeline(model, tokenizer)(question="Who?", context=context, **parameters)["answer"]
    answer = QuestionAnsweringPipeline(model, tokenizer)(question="Who?", context=context, **parameters)
    assert answer["answer"].strip() == "#"


# --- long contexts --------------------------------------------------------------------------------------------------


class Heights(torch.nn.Module):
    """Assigns the given logits to some words' tokens, and 0 to all others."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, heights: dict[str, float]) -> None:
        super().__init__()
        self.heights = {tokenizer.vocab[word]: height for word, height in heights.items()}

    def forward(self, input_ids: torch.Tensor, **_: torch.Tensor) -> Any:
        logits = sum((input_ids == token) * height for token, height in self.heights.items())
        return SimpleNamespace(start_logits=logits, end_logits=logits)


def test_normalised_over_the_context_the_highest_logits_win() -> None:
    """Normalised by window, a window without the answer wins, since nothing competes with its best token."""
    tokenizer = TOKENIZERS["bert"]()
    model = Heights(tokenizer, {"a": 8.0, "b": 7.9, "c": 7.0})
    filler = " ".join("?" * 50)
    example = {"question": "?", "context": f"a b {filler} c {filler}", "max_seq_len": 58, "doc_stride": 5}
    pipeline = QuestionAnsweringPipeline(model, tokenizer)
    assert pipeline(**example)["answer"] == "c"
    answers = pipeline(**example, normalize="context", top_k=5, max_answer_len=1)
    assert [answer["answer"] for answer in answers][:3] == ["a", "b", "c"]
    assert answers[0]["score"] / answers[2]["score"] == pytest.approx(np.exp(2.0))
    assert sum(answer["score"] for answer in answers) <= 1
    tall = QuestionAnsweringPipeline(model, tokenizer, normalize="context", handle_impossible_answer=True, top_k=9)
    empty = next(answer["score"] for answer in tall(**example, max_answer_len=1) if not answer["answer"])
    assert empty == pytest.approx(answers[0]["score"] * np.exp(-16.0), rel=1e-4)


def test_in_one_window_both_normalisations_are_equal() -> None:
    pipeline = both("bert")[1]
    one, other = (pipeline(**ONE, top_k=9, normalize=scope) for scope in ("window", "context"))
    assert_same(one, other)


def test_an_answer_in_the_overlap_of_windows_counts_once() -> None:
    tokenizer = TOKENIZERS["bert"]()
    model = Heights(tokenizer, {"a": 9.0})
    filler = " ".join("?" * 20)
    example = {"question": "?", "context": f"{filler} a {filler}", "max_seq_len": 38, "doc_stride": 25}
    pipeline = QuestionAnsweringPipeline(model, tokenizer)
    assert pipeline(**example)["score"] > 1
    assert pipeline(**example, normalize="context")["score"] < 1


# --- windows alone, as training cuts them ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm_roberta", "albert", "xlnet", "deberta", "truncating_left"])
def test_windows_equal_those_of_the_tokenizer(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    question, context = QUESTION, long_text(300)
    left = tokenizer.padding_side == "left"
    texts = (context, question) if left else (question, context)
    expected = tokenizer(
        *texts,
        truncation="only_first" if left else "only_second",
        max_length=90,
        stride=30,
        padding="max_length",
        return_overflowing_tokens=True,
        return_token_type_ids=True,
        pad_to_multiple_of=None,
    )
    cut = Cut(max_seq_len=90, doc_stride=30, max_question_len=64, from_the_end=tokenizer.truncation_side == "left")
    windows = WindowMaker(tokenizer)([(question, context)], cut)
    names = tokenizer.model_input_names  # not token types that no model reads: `tokenizers` gets some of them wrong
    arrays = windows.arrays(np.arange(len(windows)), 90, names)
    for name in names:
        assert arrays[name].dtype == np.int64
        assert arrays[name].tolist() == expected[name]


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet", "truncating_left"])
def test_every_answer_is_found_in_its_windows(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    maker = WindowMaker(tokenizer)
    context = long_text(300)
    pairs, answers = [], []
    for begin in range(0, len(context) - 30, 37):
        begin = context.index(" ", begin) + 1
        answers.append((begin, context.index(" ", begin + 10)))
        pairs.append((QUESTION, context))
    pairs.append((QUESTION, "Nothing of this kind."))
    windows = maker(pairs, Cut(max_seq_len=90, doc_stride=30, max_question_len=64))
    starts, ends = windows.answer_columns([*answers, None])
    has_answer = starts != windows.cls
    assert set(windows.pair[has_answer]) == set(range(len(answers)))
    assert (starts[~has_answer] == ends[~has_answer]).all()
    rows = np.flatnonzero(has_answer)
    begins, stops = windows.characters(rows, (starts - windows.first)[rows], (ends - windows.first)[rows], False)
    for pair, begin, stop in zip(windows.pair[rows], begins, stops, strict=True):
        assert context[begin:stop].strip() == context[slice(*answers[pair])].strip()


# --- the search alone -----------------------------------------------------------------------------------------------


def every_span(start: np.ndarray, end: np.ndarray, size: int, longest: int) -> list[tuple[float, int, int]]:
    """All spans of a window, best first, by exhaustive search."""
    start, end = (np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() for logits in (start, end))
    spans = [(float(start[1 + i] * end[1 + j]), i, j) for i in range(size) for j in range(i, min(size, i + longest))]
    return sorted(spans, key=lambda span: (-span[0], span[1], span[2]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 40), st.integers(1, 60), st.integers(1, 45))
def test_the_search_equals_an_exhaustive_search(seed: int, rows: int, width: int, n_best: int, longest: int) -> None:
    generator = np.random.default_rng(seed)
    size = generator.integers(0, width + 1, rows)
    logits = generator.choice(np.arange(0, 20, 0.5, dtype=np.float32), (2, rows, width + 1))  # with many ties
    logits[:, np.arange(width + 1) > size[:, None]] = MASKED
    spans = best_spans(logits[0], logits[1], size, n_best, longest)
    tensors = torch.from_numpy(logits)
    place = torch.from_numpy(np.stack([np.ones(rows, np.int64), size, np.zeros(rows, np.int64)]))
    _, device_score, null, mass = best_spans_on_device(tensors[0], tensors[1], place, width, n_best, longest)
    for row in range(rows):
        expected = every_span(logits[0, row], logits[1, row], size[row], longest)[:n_best]
        count = int((spans.score[row] >= 0).sum())
        assert count == len(expected) == int((device_score[row] >= 0).sum())
        scores = [score for score, _, _ in expected]
        assert spans.score[row, :count] == pytest.approx(scores, rel=1e-5, abs=1e-30)
        assert device_score[row, :count].numpy() == pytest.approx(scores, rel=1e-5, abs=1e-30)
        found_spans = list(zip(spans.first[row, :count].tolist(), spans.last[row, :count].tolist(), strict=True))
        assert len(set(found_spans)) == count
        assert all(first <= last < min(size[row], first + longest) for first, last in found_spans)
    assert null.numpy() == pytest.approx(spans.null, rel=1e-5, abs=1e-30)
    assert mass.numpy() == pytest.approx(spans.mass, rel=1e-5)


def test_a_model_with_concurrent_batches_answers_like_a_sequential_one() -> None:
    class Submitting(Hashing):
        """Completes its batches in any order."""

        sent = 0

        def submit(self, **tensors: torch.Tensor) -> Any:
            self.sent += 1
            return pool.submit(self._late, self.sent, tensors)

        def _late(self, number: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            time.sleep(0.003 * (number % 3))
            return self(**tensors)

    tokenizer, model = TOKENIZERS["bert"](), Submitting()
    examples = [{"question": QUESTION, "context": long_text(20 + number % 300, number)} for number in range(200)]
    expected = QuestionAnsweringPipeline(Hashing(), tokenizer, top_k=3)(examples)
    with ThreadPoolExecutor(3) as pool:
        assert QuestionAnsweringPipeline(model, tokenizer, top_k=3)(examples) == expected
        assert list(QuestionAnsweringPipeline(model, tokenizer, top_k=3)(iter(examples))) == expected
        assert model.sent > 20
        sent = model.sent
        QuestionAnsweringPipeline(model, tokenizer)(examples[:1])
        assert model.sent == sent  # a single batch is not submitted


def test_an_error_of_a_submitted_batch_is_raised() -> None:
    class Failing(Hashing):
        def submit(self, **tensors: torch.Tensor) -> Any:
            future: Any = Future()
            future.set_exception(RuntimeError("out of memory"))
            return future

    examples = [{"question": QUESTION, "context": long_text(100, number)} for number in range(60)]
    with pytest.raises(RuntimeError, match="out of memory"):
        QuestionAnsweringPipeline(Failing(), TOKENIZERS["bert"]())(examples)


@pytest.mark.gpu
def test_a_gpu_answers_like_the_cpu() -> None:
    """Scores differ slightly, since the GPU adds in another order."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    tokenizer = TOKENIZERS["bert"]()
    gpu_model = Hashing()
    gpu_model.device = torch.device("cuda")
    examples = [{"question": QUESTION, "context": long_text(20 + number % 700, number)} for number in range(3000)]
    ours = QuestionAnsweringPipeline(gpu_model, tokenizer, top_k=3, handle_impossible_answer=True)
    expected = QuestionAnsweringPipeline(Hashing(), tokenizer, top_k=3, handle_impossible_answer=True)(examples)
    for one, other in zip(ours(example for example in examples), expected, strict=True):
        assert_same(one, other)
