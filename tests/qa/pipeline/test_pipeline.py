"""The pipeline, on models whose logits are known; `test_stock_pipeline.py` compares it with transformers' own."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import (
    ONE,
    OTHER,
    QUESTION,
    TEXT,
    TOKENIZERS,
    Examples,
    Hashing,
    Heights,
    Reading,
    assert_same,
    byte_level,
    fast,
    long_text,
    possible,
    question_tokens,
    roberta,
    with_own_truncation_and_padding,
)

from qabuild.errors import QABuildError
from qabuild.qa import plain_decoder
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.decode import MASKED, best_spans, best_spans_on_device
from qabuild.qa.pipeline.parameters import COUNTS
from qabuild.qa.pipeline.pipeline import even_tokens
from qabuild.qa.pipeline.windows import Cut, WindowMaker


def hashing(kind: str, **named: Any) -> QuestionAnsweringPipeline:
    """A pipeline over a hashing model and a tokenizer of this layout."""
    return QuestionAnsweringPipeline(Hashing(silent=kind in ("xlnet", "padding_left"), **named), TOKENIZERS[kind]())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_logits_are_normalised_in_fp32(dtype: torch.dtype) -> None:
    tokenizer = TOKENIZERS["bert"]()
    low_precision = QuestionAnsweringPipeline(Hashing(dtype=dtype), tokenizer)(**ONE)
    rounded = QuestionAnsweringPipeline(Rounded(dtype), tokenizer)(**ONE)
    assert low_precision == rounded


class Rounded(Hashing):
    """The same logits in fp32, rounded to another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.rounded = dtype

    def forward(self, *args: torch.Tensor, **named: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: logits.to(self.rounded).float() for name, logits in super().forward(*args, **named).items()}


# --- the forms of a call --------------------------------------------------------------------------------------------


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


def test_a_misspelt_parameter_is_an_error_with_a_suggestion() -> None:
    pipeline = hashing("bert")
    with pytest.raises(TypeError, match=r"doc_strid \(did you mean doc_stride\?\)"):
        pipeline(**ONE, doc_strid=3)
    with pytest.raises(TypeError, match=r"devise \(did you mean"):
        QuestionAnsweringPipeline(pipeline.model, pipeline.tokenizer, devise="cpu")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float32, float, torch.tensor])
def test_a_whole_number_may_be_of_any_type(name: str, kind: Callable[[int], Any]) -> None:
    pipeline = hashing("bert")
    assert pipeline(**ONE, **{name: kind(150)}) == pipeline(**ONE, **{name: 150})


@pytest.mark.parametrize(
    ("name", "values"), [("handle_impossible_answer", "True or False"), ("align_to_words", "True or False or 'auto'")]
)
def test_a_flag_may_be_0_or_1(name: str, values: str) -> None:
    pipeline = hashing("bert")
    for flag in (True, False):
        expected = pipeline(**ONE, top_k=9, **{name: flag})
        for kind in (int, np.bool_, np.int64):
            assert pipeline(**ONE, top_k=9, **{name: kind(flag)}) == expected
    with pytest.raises(TypeError, match=rf"^{name} parameter should be {values} \(got 'false'\)"):
        pipeline(**ONE, **{name: "false"})


def test_true_is_one_answer() -> None:
    pipeline = hashing("bert")
    assert pipeline(**ONE, top_k=True) == pipeline(**ONE)
    with pytest.warns(UserWarning, match="topk parameter is deprecated"):
        assert pipeline(**ONE, topk=2) == pipeline(**ONE, top_k=2)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"top_k": 0}, ValueError),
        ({"top_k": False}, ValueError),
        ({"top_k": "3"}, TypeError),
        ({"top_k": 2.5}, TypeError),
        ({"top_k": float("inf")}, TypeError),
        ({"max_answer_len": 0}, ValueError),
        ({"max_seq_len": 20, "doc_stride": 21}, ValueError),
        ({"max_question_len": 0}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"batch_size": "8"}, ValueError),
        ({"padding": "sideways"}, ValueError),
        ({"padding": 1}, ValueError),
        ({"padding": ["longest"]}, ValueError),
    ],
    ids=str,
)
def test_a_wrong_parameter_raises_the_error_of_its_kind(parameters: dict[str, Any], error: type[Exception]) -> None:
    pipeline = hashing("bert")
    with pytest.raises(error):
        pipeline(**ONE, **parameters)
    with pytest.raises(error):
        QuestionAnsweringPipeline(pipeline.model, pipeline.tokenizer, **parameters)(**ONE)


@pytest.mark.parametrize(
    ("item", "error"),
    [
        ({"question": QUESTION}, KeyError),
        ({"question": QUESTION, "context": ""}, ValueError),
        ({"question": None, "context": TEXT}, ValueError),
        ({"question": 3, "context": TEXT}, ValueError),
        ({"question": QUESTION, "context": 3}, TypeError),
        ({"question": QUESTION, "context": "\ud800"}, TypeError),
        ({"question": QUESTION, "context": TEXT, "id": 3}, TypeError),
        ("text", ValueError),
        (7, ValueError),
    ],
    ids=str,
)
def test_a_wrong_example_raises_the_error_of_its_kind(item: Any, error: type[Exception]) -> None:
    pipeline = hashing("bert")
    with pytest.raises(error):
        pipeline([item, ONE])
    with pytest.raises(error):
        pipeline([ONE, item])


def test_every_form_of_a_call_has_the_same_results() -> None:
    pipeline = hashing("bert")
    texts = [ONE["question"], OTHER["question"]], [ONE["context"], OTHER["context"]]
    objects = [SimpleNamespace(question_text=e["question"], context_text=e["context"]) for e in (ONE, OTHER)]
    expected = pipeline([ONE, OTHER])
    assert len(expected) == 2
    assert [pipeline(**ONE), pipeline(*OTHER.values())] == expected
    assert pipeline(question=texts[0], context=texts[1]) == expected
    assert pipeline(question=texts[0], context=TEXT) == expected
    assert pipeline({"question": texts[0], "context": texts[1]}) == expected
    assert pipeline(ONE, OTHER) == pipeline((ONE, OTHER)) == pipeline(data=[ONE, OTHER]) == pipeline(X=[ONE, OTHER])
    assert pipeline.predict([ONE, OTHER]) == pipeline.transform([ONE, OTHER]) == pipeline(objects) == expected
    assert list(pipeline(example for example in (ONE, OTHER))) == expected
    assert list(pipeline(Examples([ONE, OTHER]))) == expected
    assert pipeline([ONE, OTHER], batch_size=2, num_workers=4) == expected
    assert pipeline([]) == pipeline(question=[], context=[]) == list(pipeline(Examples([]))) == []


def test_the_results_of_a_dataset_have_its_length_and_can_be_read_again() -> None:
    pipeline = hashing("bert")
    results = pipeline(Examples([ONE, OTHER, ONE]))
    assert len(results) == 3
    assert next(results) == pipeline(**ONE)
    assert list(results) == list(results) == pipeline([ONE, OTHER, ONE])


def test_the_constructor_takes_what_the_stock_one_takes_and_says_what_has_no_effect() -> None:
    model, tokenizer = Hashing(), TOKENIZERS["bert"]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = {"task": "question-answering", "framework": "pt", "device": "cpu", "modelcard": None, "dtype": None}
        pipeline = QuestionAnsweringPipeline(model, tokenizer, **named, binary_output=False, batch_size=2, top_k=2)
        assert len(pipeline(**ONE)) == 2
    named = {"modelcard": "card", "feature_extractor": "none", "torch_dtype": torch.float16, "num_workers": 3}
    named |= {"trust_remote_code": False, "use_fast": True, "model_kwargs": {}}
    with pytest.warns(UserWarning, match="without effect") as caught:
        pipeline = QuestionAnsweringPipeline(model, tokenizer, **named)
    assert [str(warning.message) for warning in caught] == [
        "without effect in this pipeline: feature_extractor, modelcard, num_workers, torch_dtype, use_fast"
    ]
    assert pipeline(**ONE) == hashing("bert")(**ONE)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipeline: pickle.loads(pickle.dumps(pipeline))])
def test_a_copy_answers_alike(copied: Callable[[Any], Any]) -> None:
    pipeline = QuestionAnsweringPipeline(Hashing(), TOKENIZERS["bert"](), top_k=2)
    expected = pipeline(**ONE)
    assert copied(pipeline)(**ONE) == expected


def test_a_model_by_name_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="from_pretrained"):
        QuestionAnsweringPipeline("me/model", TOKENIZERS["bert"]())


def test_a_device_moves_the_model() -> None:
    tokenizer = TOKENIZERS["bert"]()
    moves: list[torch.device] = []

    class Moving(Hashing):
        def to(self, device: torch.device) -> Any:
            moves.append(device)
            return self

    for device in ("meta", torch.device("meta"), -1, "cpu", None):
        QuestionAnsweringPipeline(Moving(), tokenizer, device=device)
    assert moves == [torch.device("meta")] * 2
    model = Moving()
    model.hf_device_map = {"": 0}
    with pytest.raises(ValueError, match="accelerate"):
        QuestionAnsweringPipeline(model, tokenizer, device="cpu")


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

    stream = hashing("bert")(questions())
    assert {next(stream)["answer"], next(stream)["answer"]}
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_windows_of_similar_length_share_a_batch_of_bounded_size() -> None:
    pipeline = hashing("bert")
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
    pipeline = hashing("bert")
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
    answers = hashing("bert")(question="Who?", context="Berlin it", top_k=20, max_answer_len=1)
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
    tokens = question_tokens("bert", "a") + question_tokens("bert", "Who? it") + 3
    example = {"question": "a", "context": "Who? it", "align_to_words": False, "top_k": tokens**2}
    assert possible(hashing("bert")(**example))


def test_a_context_without_tokens_has_the_empty_answer() -> None:
    """The stock pipeline returns an empty list, or answers with the CLS token."""
    ours = hashing("bert")
    assert ours(question="Who?", context=" \n") == {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    answers = ours([{"question": "Who?", "context": " "}, ONE], handle_impossible_answer=True)
    assert answers[0] == {"score": 1.0, "start": 0, "end": 0, "answer": ""}
    assert answers[1] == ours(**ONE, handle_impossible_answer=True)


def question_size(question: str, context: str, **limits: Any) -> int:
    """The tokens of a question that a BERT reads, of windows of 384 tokens that share 128 of the context."""
    windows = WindowMaker(TOKENIZERS["bert"]())([(question, context)], Cut(max_seq_len=384, doc_stride=128, **limits))
    size = int(windows.bounds[0, 2] - windows.bounds[0, 1])
    assert windows.truncated.tolist() == [size < question_tokens("bert", question)]
    return size


def test_a_question_is_truncated_to_max_question_len_and_its_result_says_so() -> None:
    """The stock pipeline ignores `max_question_len` with fast tokenizers, and raises on long questions."""
    long = long_text(400)
    assert question_size(long, TEXT, max_question_len=64) == 64
    ours = hashing("bert")
    assert ours(question=long, context=TEXT)["question_truncated"] is True
    assert [one["question_truncated"] for one in ours(question=long, context=TEXT, top_k=2)] == [True, True]
    assert "question_truncated" not in ours(question=QUESTION, context=long)
    assert ours(question=QUESTION, context=long, max_question_len=2)["question_truncated"]


def test_a_question_is_read_whole_if_it_fits_one_window_with_its_context() -> None:
    """The telling part of a question may come last."""
    long = next(text for words in itertools.count(1) if question_tokens("bert", text := long_text(words)) > 300)
    assert question_size(long, "Berlin") == question_tokens("bert", long)
    ours = hashing("bert")
    assert ours(question=f"{long} when?", context=TEXT[:40]) != ours(question=f"{long} who?", context=TEXT[:40])


def test_a_longer_question_leaves_a_long_context_an_eighth_of_each_window() -> None:
    """Beside the overlap and special tokens: 384 - 3 - 128 are 253."""
    assert question_size(long_text(400), long_text(400)) == 253 * 7 // 8
    windows = WindowMaker(TOKENIZERS["bert"]())(
        [(long_text(400), long_text(400))], Cut(max_seq_len=384, doc_stride=128)
    )
    assert len(windows) <= 1 + question_tokens("bert", long_text(400)) // 32


@pytest.mark.parametrize("limit", range(1, 40))
def test_no_character_of_a_question_is_divided(limit: int) -> None:
    """A byte-level tokenizer has several tokens for one; the second pipeline gets text, not tokens."""
    tokenizer = TOKENIZERS["roberta"]()
    question = "東京 é 👩‍👩‍👧 人口は千四百万人。"
    maker = WindowMaker(tokenizer)
    windows = maker([(question, "a")], Cut(max_seq_len=384, doc_stride=8, max_question_len=limit))
    ids = windows.question_ids[: windows.bounds[0, 2] - windows.bounds[0, 1]]
    cut = plain_decoder.cut_question(tokenizer, question, "a", 384, 8, limit)
    assert tokenizer(cut, add_special_tokens=False)["input_ids"] == ids.tolist()
    assert question.startswith(tokenizer.decode(ids).strip())


def test_a_question_is_truncated_further_to_leave_space_for_its_context() -> None:
    """The stock pipeline panics if the context gets no more tokens than the overlap."""
    ours = hashing("bert")
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
    ours = QuestionAnsweringPipeline(model, tokenizer)
    assert ours(question=question, context=other_text)["score"] < 0.1
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
    answer = QuestionAnsweringPipeline(model, tokenizer)(question="Who?", context=context, **parameters)
    assert answer["answer"].strip() == "#"


# --- long contexts --------------------------------------------------------------------------------------------------


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


def test_not_normalised_scores_are_exponentials_of_the_logits() -> None:
    tokenizer = TOKENIZERS["bert"]()
    model = Heights(tokenizer, {"a": 8.0, "b": 7.0})
    filler = " ".join("?" * 50)
    pipeline = QuestionAnsweringPipeline(model, tokenizer, normalize="none", max_seq_len=58, doc_stride=5)
    for context in ("a b", f"a {filler} b {filler}"):
        results = pipeline(question="?", context=context, top_k=99, handle_impossible_answer=True, max_answer_len=1)
        scores = {result["answer"]: result["score"] for result in results}
        assert scores["a"] == pytest.approx(np.exp(16.0), rel=1e-4)
        assert scores["b"] == pytest.approx(np.exp(14.0), rel=1e-4)
        assert scores[""] == pytest.approx(1.0, rel=1e-4)


def test_in_one_window_both_normalisations_are_equal() -> None:
    pipeline = hashing("bert")
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


@pytest.mark.parametrize(("count", "expected"), [(1, []), (2, []), (3, [1, 1, 1]), (7, [3, 3, 1]), (8, [3, 3, 2])])
def test_few_windows_are_divided_among_the_concurrent_batches(count: int, expected: list[int]) -> None:
    class Submitting(Hashing):
        at_once = 3
        sent: ClassVar[list[int]] = []

        def submit(self, **tensors: torch.Tensor) -> Any:
            self.sent.append(len(tensors["input_ids"]))
            future: Any = Future()
            future.set_result(self(**tensors))
            return future

    examples = [{"question": QUESTION, "context": long_text(60, number)[:200]} for number in range(count)]
    pipeline = QuestionAnsweringPipeline(Submitting(), TOKENIZERS["bert"](), padding="max_length", max_seq_len=128)
    assert pipeline(examples) == QuestionAnsweringPipeline(Hashing(), TOKENIZERS["bert"]())(examples)
    assert Submitting.sent == expected


@given(
    lengths=st.lists(st.integers(1, 384), min_size=1, max_size=60),
    tokens=st.integers(1, 1536),
    concurrent=st.integers(2, 5),
)
def test_even_batches_are_no_larger_and_hardly_more(lengths: list[int], tokens: int, concurrent: int) -> None:
    def batches(tokens: int) -> list[int]:
        rest, sizes = sorted(lengths, reverse=True), []
        while rest:
            size = max(1, tokens // rest[0])
            sizes.append(rest[0] * len(rest[:size]))
            rest = rest[size:]
        return sizes

    fewer = even_tokens(sorted(lengths, reverse=True), tokens, concurrent)
    before, after = batches(tokens), batches(fewer)
    assert fewer <= tokens
    assert max(after) <= max(before)
    assert len(before) <= len(after) <= -(-len(before) // concurrent) * concurrent


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
