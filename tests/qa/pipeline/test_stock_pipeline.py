"""The pipeline compared with the stock pipeline of transformers 4.57: equal logits, equal answers.

PIPELINE_CASES=2000 in the environment compares the two on more generated cases; `benchmarks/pipeline.py --differential
10570` does so on all real questions.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from layouts import (
    ONE,
    OTHER,
    QUESTION,
    TEXT,
    TOKENIZERS,
    Examples,
    Hashing,
    Reading,
    assert_same,
    byte_level,
    contexts,
    fast,
    long_text,
    outcome,
    possible,
    question_tokens,
    questions,
    quietly,
    roberta,
)
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
from transformers.pipelines.pt_utils import KeyDataset

from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.windows import Cut, WindowMaker

stock_module = pytest.importorskip("transformers.pipelines.question_answering", reason="transformers 4.57 only")

pytestmark = pytest.mark.line457

CASES = int(os.environ.get("PIPELINE_CASES", "100"))


def _script(name: str) -> Any:
    """Import a script of the benchmarks as a module."""
    path = Path(__file__).resolve().parents[3] / "benchmarks" / f"{name}.py"
    sys.path.append(str(path.parent))  # scripts import each other by name
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _script("pipeline")
HERE = Path(sys.prefix)
"""The environment of the stock pipeline: this one, which has transformers 4.57."""


def stock_pipeline(model: torch.nn.Module, tokenizer: Any, **named: Any) -> Any:
    """The stock pipeline, without its warning about the model's class."""
    named = {"framework": "pt", "device": "cpu", **named}
    pipeline = stock_module.QuestionAnsweringPipeline(model, tokenizer, **named)
    return lambda *args, **named: quietly(pipeline, *args, **named)


def both(kind: str, **named: Any) -> tuple[Any, QuestionAnsweringPipeline]:
    tokenizer = TOKENIZERS[kind]()
    model = Hashing(silent=kind in ("xlnet", "padding_left"), **named)
    return stock_pipeline(model, tokenizer), QuestionAnsweringPipeline(model, tokenizer)


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
    tokenizer = AutoTokenizer.from_pretrained(squad_dev.parents[1] / "checkpoints" / "minilm-l6-squad")
    model = Hashing()
    stock = stock_pipeline(model, tokenizer)((example for example in examples), batch_size=8, **parameters)
    ours = QuestionAnsweringPipeline(model, tokenizer)((example for example in examples), **parameters)
    for one, other in zip(ours, stock, strict=True):
        assert_same(one, other)


def test_real_questions_are_answered_like_the_stock_pipeline_with_any_parameters(squad_dev: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(squad_dev.parents[1] / "checkpoints" / "minilm-l6-squad")
    with benchmark.Stock(
        squad_dev.parents[1] / "checkpoints" / "minilm-l6-squad", "hashing", environment=HERE
    ) as stock:
        outcomes = quietly(benchmark.differential, stock, tokenizer, benchmark.read(squad_dev), 10)
    assert outcomes.total() > 1000
    assert not outcomes.keys() - {benchmark.SAME, benchmark.TIED, benchmark.IMPOSSIBLE}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_logits_have_the_stock_pipelines_scores(dtype: torch.dtype) -> None:
    """It normalises fp16 logits in fp16, exact to three digits, and bf16 logits in fp32."""
    stock, ours = both("bert", dtype=dtype)
    rel = 1e-5 if dtype == torch.bfloat16 else 2e-2
    assert ours(**ONE)["score"] == pytest.approx(stock(**ONE)["score"], rel=rel)


# --- the forms of a call --------------------------------------------------------------------------------------------


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
        lambda pipeline: pipeline(stock_module.SquadExample(None, QUESTION, TEXT, None, None, None)),
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
    assert_same_outcome(result, expected)


def assert_same_outcome(result: Any, expected: Any) -> None:
    if isinstance(expected, type):
        assert isinstance(result, type), result
        assert issubclass(result, expected)
        return
    assert type(result) is type(expected)
    for one, other in zip(
        *((answers if isinstance(answers, list) else [answers]) for answers in (result, expected)), strict=True
    ):
        assert_same(one, other)


def as_given(names: tuple[str, ...], examples: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [example[name] for example in examples] for name in names}


def squad(example: dict[str, str]) -> Any:
    return stock_module.SquadExample(None, example["question"], example["context"], None, None, None)


FORMS: dict[str, Callable[..., Any]] = {
    "keywords": lambda pipeline, examples, **named: pipeline(**examples[0], **named),
    "two strings": lambda pipeline, examples, **named: pipeline(*examples[0].values(), **named),
    "lists": lambda pipeline, examples, **named: pipeline(**as_given(("question", "context"), examples), **named),
    "one context": lambda pipeline, examples, **named: pipeline(
        question=[example["question"] for example in examples], context=examples[0]["context"], **named
    ),
    "dictionary": lambda pipeline, examples, **named: pipeline(examples[0], **named),
    "dictionary of lists": lambda pipeline, examples, **named: pipeline(
        as_given(("question", "context"), examples), **named
    ),
    "list": lambda pipeline, examples, **named: pipeline(examples, **named),
    "tuple": lambda pipeline, examples, **named: pipeline(tuple(examples), **named),
    "arguments": lambda pipeline, examples, **named: pipeline(*examples, **named),
    "data": lambda pipeline, examples, **named: pipeline(data=examples, **named),
    "X": lambda pipeline, examples, **named: pipeline(X=examples, **named),
    "SquadExamples": lambda pipeline, examples, **named: pipeline([squad(example) for example in examples], **named),
    "generator": lambda pipeline, examples, **named: list(pipeline((e for e in examples), **named)),
    "generator of SquadExamples": lambda pipeline, examples, **named: list(
        pipeline((squad(e) for e in examples), **named)
    ),
    "Dataset": lambda pipeline, examples, **named: list(pipeline(Examples(examples), **named)),
    "KeyDataset": lambda pipeline, examples, **named: list(
        pipeline(KeyDataset([{"example": example} for example in examples], "example"), **named)
    ),
}
"""Every form of a call with one example or more."""

examples = st.builds(
    lambda question, words, seed: {"question": question, "context": long_text(words, seed)},
    st.sampled_from([QUESTION, "Who?", "Who lives in Berlin?"]),
    st.integers(20, 300),
    st.integers(0, 99),
)


def whole(low: int, high: int, *kinds: Callable[[int], Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda kind, number: kind(number), st.sampled_from([int, np.int64, *kinds]), st.integers(low, high)
    )


flags = st.sampled_from([True, False, 1, 0, np.bool_(True), np.float32(0)])
named_parameters = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.one_of(whole(1, 5), st.just(True)),
        "max_answer_len": st.one_of(whole(1, 20, float, np.float32), st.just(True)),
        "doc_stride": whole(0, 30),
        "max_seq_len": whole(90, 400),
        "max_question_len": whole(30, 70),
        "handle_impossible_answer": flags,
        "align_to_words": flags,
        "padding": st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
        "batch_size": st.integers(1, 4),
        "num_workers": st.just(0),
    },
)


@settings(max_examples=CASES, deadline=None, derandomize=CASES == 100, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(sorted(FORMS)),
    examples=st.lists(examples, min_size=1, max_size=3),
    defaults=named_parameters,
    named=named_parameters,
)
@pytest.mark.usefixtures("without_impossible_spans")
def test_every_form_of_a_call_has_the_stock_pipelines_result(
    form: str, examples: list[dict[str, str]], defaults: dict[str, Any], named: dict[str, Any]
) -> None:
    """With parameters in the constructor and in the call, as Python's numbers and as numpy's."""
    tokenizer, model = TOKENIZERS["bert"](), Hashing()
    stock = stock_pipeline(model, tokenizer, **defaults)
    ours = QuestionAnsweringPipeline(model, tokenizer, **defaults)
    call = lambda pipeline: FORMS[form](pipeline, examples, **named)  # noqa: E731
    assert_same_outcome(outcome(call, ours), outcome(call, stock))


@pytest.mark.parametrize(
    "item",
    [
        {"question": 3, "context": TEXT},
        {"question": QUESTION, "context": 5},
        {"question": QUESTION, "context": None},
        {"question": None, "context": TEXT},
        {"question": QUESTION, "context": [TEXT]},
        {"question": QUESTION, "context": "\ud800 a"},
        {"question": QUESTION, "context": b"bytes"},
        {"question": QUESTION, "context": ""},
        {"question": "", "context": TEXT},
        {"context": TEXT},
        {},
        {"question": QUESTION, "context": TEXT, "id": 3},
        None,
        "text",
        7,
    ],
    ids=str,
)
def test_a_wrong_example_raises_what_the_stock_pipeline_raises(item: Any) -> None:
    stock, ours = both("bert")
    for call in (
        lambda pipeline: pipeline(item),
        lambda pipeline: pipeline([item, ONE]),
        lambda pipeline: list(pipeline(example for example in (item,))),
    ):
        expected = outcome(call, stock)
        if isinstance(expected, type):
            assert_same_outcome(outcome(call, ours), expected)


@pytest.mark.parametrize("name", ["top_k", "max_answer_len", "doc_stride", "max_seq_len", "batch_size", "padding"])
@pytest.mark.parametrize("value", ["3", [1], 2.5, "sideways"], ids=repr)
def test_a_wrong_parameter_raises_what_the_stock_pipeline_raises(name: str, value: Any) -> None:
    stock, ours = both("bert")
    call = lambda pipeline: pipeline(**ONE, **{name: value})  # noqa: E731
    expected = outcome(call, stock)
    if isinstance(expected, type):  # it takes half tokens of an answer
        assert_same_outcome(outcome(call, ours), expected)


def test_the_results_of_a_dataset_have_its_length() -> None:
    stock, ours = both("bert")
    for pipeline in (stock, ours):
        results = pipeline(Examples([ONE, OTHER, ONE]))
        assert len(results) == 3
        assert len(list(results)) == len(list(results)) == 3
        with pytest.raises(TypeError):
            len(pipeline(example for example in (ONE,)))


def test_the_constructor_takes_what_the_stock_one_takes() -> None:
    tokenizer, model = TOKENIZERS["bert"](), Hashing()
    named = {
        "modelcard": None,
        "framework": "pt",
        "task": "question-answering",
        "feature_extractor": None,
        "image_processor": None,
        "processor": None,
        "device": "cpu",
        "binary_output": False,
        "args_parser": None,
        "torch_dtype": torch.float32,
        "dtype": None,
        "batch_size": 2,
        "num_workers": 0,
        "top_k": 2,
    }
    ours = quietly(QuestionAnsweringPipeline, model, tokenizer, **named)
    assert_same(ours(**ONE), stock_pipeline(model, tokenizer, **named)(**ONE))


# --- models of transformers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["do_not_pad", "longest", "max_length"])
@pytest.mark.parametrize("model_type", ["convbert", "nystromformer", "mobilebert", "big_bird", "bert", "roberta"])
def test_models_answer_as_in_the_stock_pipeline(
    model_type: str, padding: str, tiny_checkpoint: Callable[..., Path]
) -> None:
    """Those whose logits padding changes, too: one window more or less of padding, and the answers were others."""
    directory = tiny_checkpoint(model_type)
    model, tokenizer = unpadded_model(directory), AutoTokenizer.from_pretrained(directory)
    questions = [
        {"question": "Who built it?", "context": " ".join(tiny.CORPUS[:count])[: 300 + 9 * count]}
        for count in (1, 2, 2, 3, 5, 6)
    ]
    parameters = {"max_seq_len": 200, "doc_stride": 20, "padding": padding}
    stock = stock_pipeline(model, tokenizer)(questions, **parameters)
    for batch_size in (None, 1, 3):
        ours = QuestionAnsweringPipeline(model, tokenizer)(questions, **parameters, batch_size=batch_size)
        for one, other in zip(ours, stock, strict=True):
            assert (one["answer"], one["start"]) == (other["answer"], other["start"])
            assert one["score"] == pytest.approx(other["score"], rel=1e-3)


def unpadded_model(directory: Path) -> Any:
    """The model, with an embedding of the padding token that is not 0, as in checkpoints that TensorFlow trained."""
    model = AutoModelForQuestionAnswering.from_pretrained(directory).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.pad_token_id].fill_(0.3)
    return model


# --- where the stock pipeline is wrong; `test_pipeline.py` has what ours does instead --------------------------------


def test_its_answers_may_be_impossible_spans() -> None:
    answers = both("bert")[0](question="Who?", context="Berlin it", top_k=20, max_answer_len=1)
    assert any(answer["score"] == 0 for answer in answers)


def test_it_raises_if_top_k_is_the_number_of_spans() -> None:
    tokens = question_tokens("bert", "a") + question_tokens("bert", "Who? it") + 3
    with pytest.raises(ValueError, match="kth"):
        both("bert")[0](question="a", context="Who? it", align_to_words=False, top_k=tokens**2)


def test_it_has_no_answer_in_a_context_without_tokens() -> None:
    assert not possible(both("bert")[0](question="Who?", context=" \n"))


def test_it_raises_on_a_long_question() -> None:
    with pytest.raises(Exception, match="too short"):
        both("bert")[0](question=long_text(400), context=TEXT)


def test_it_searches_the_question_if_a_tokenizer_pads_on_the_left() -> None:
    tokenizer = TOKENIZERS["xlnet"]()
    model = Reading(tokenizer, "Wolfgang")
    example = {"question": "Wolfgang is where?", "context": 5 * "東京は日本の首都です。人口は千四百万人。"}
    ours = QuestionAnsweringPipeline(model, tokenizer)(**example)
    assert stock_pipeline(model, tokenizer)(**example)["score"] > 10 * ours["score"]


def test_it_trims_later_windows_unlike_the_first() -> None:
    context = "the battle of Hastings in 1066 and " * 20
    stock = stock_pipeline(Hashing(), roberta(add_prefix_space=True))
    answers = stock(question="When?", context=context, max_seq_len=40, doc_stride=3, top_k=20)
    assert any(answer["answer"].startswith(" ") for answer in answers)


def test_it_masks_later_windows_without_a_post_processor() -> None:
    tokenizer = fast(
        byte_level(["<|endoftext|>"]), pad_token="<|endoftext|>", model_input_names=["input_ids", "attention_mask"]
    )
    context = "It was long ago. " * 40 + "There was # then. " + "It was long ago. " * 40
    stock = stock_pipeline(Reading(tokenizer, "#"), tokenizer)
    assert "#" not in stock(question="Who?", context=context, max_seq_len=80, doc_stride=20)["answer"]
