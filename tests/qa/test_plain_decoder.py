"""The plain decoder answers as transformers 4's pipeline, and as ours, whatever the parameters."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.qa import plain_decoder
from qabuild.qa.pipeline import QuestionAnsweringPipeline
from qabuild.qa.pipeline.scripts import unspaced
from qabuild.qa.pipeline.windows import Cut, WindowMaker

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "distilbert", "albert", "mpnet", "deberta-v2", "splinter")
"""One or more of each kind of tokenizer."""

STOCK = getattr(transformers, "QuestionAnsweringPipeline", None)
TIE = 1e-4  # scores this close may change places: our pipeline pads and batches, which changes the last digits

words = st.sampled_from(" ".join(tiny.CORPUS[:7]).split())
questions = st.lists(words, min_size=1, max_size=12).map(" ".join)
contexts = st.lists(words, min_size=1, max_size=120).map(" ".join)
foreign = st.sampled_from(["駅は丘の上", "町", "1911年", "BERT模型", "我喜欢。", "สวัสดี", "ກາ", "한국어", "🚂"])
mixed = st.lists(st.one_of(words.map(lambda word: f" {word}"), foreign), min_size=1, max_size=60).map("".join)
"""Texts in scripts with spaces and without."""
parameters = st.fixed_dictionaries(
    {},
    optional={
        "top_k": st.integers(1, 6),
        "max_answer_len": st.integers(1, 20),
        "max_seq_len": st.integers(120, 160),
        "doc_stride": st.integers(0, 40),
        "handle_impossible_answer": st.booleans(),
        "align_to_words": st.booleans(),
    },
)
beyond_stock = st.fixed_dictionaries(
    {},
    optional={
        "max_question_len": st.integers(2, 80),
        "align_to_words": st.sampled_from([True, False, "auto"]),
        "normalize": st.sampled_from(["window", "context", "none"]),
    },
)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[..., Path]) -> Callable[[str], tuple[Any, Any]]:
    models: dict[str, tuple[Any, Any]] = {}

    def load(model_type: str) -> tuple[Any, Any]:
        if model_type not in models:
            checkpoint = resolve(tiny_checkpoint(model_type))
            models[model_type] = load_model(checkpoint), load_tokenizer(checkpoint.directory)
        return models[model_type]

    return load


def assert_same(one: Any, other: Any) -> None:
    """Equal answers with equal scores; neighbours whose scores tie may have changed places.

    Without spans of probability 0, such as one that ends before it begins: which of those fill up a list is chance.
    """
    one, other = ([answers] if isinstance(answers, dict) else answers for answers in (one, other))
    one, other = ([entry for entry in answers if entry["score"] > 1e-9] for answers in (one, other))
    assert [entry["score"] for entry in one] == pytest.approx([entry["score"] for entry in other], rel=TIE, abs=TIE)
    for entry in one[:-1]:  # the last may tie with one that was cut off
        same = [peer for peer in other if peer["answer"] == entry["answer"]]
        assert any(abs(peer["score"] - entry["score"]) <= TIE * max(1, entry["score"]) for peer in same), entry
    if len(one) == 1:
        assert {**one[0], "score": 0} == {**other[0], "score": 0}


@pytest.mark.line457
@settings(max_examples=120)
@given(st.sampled_from(MODEL_TYPES), questions, contexts, parameters)
def test_it_answers_as_the_pipeline_of_transformers_4(loaded, model_type, question, context, parameters):
    model, tokenizer = loaded(model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = STOCK(model=model, tokenizer=tokenizer, device="cpu")(question=question, context=context, **parameters)
    assert_same(plain_decoder.answer(model, tokenizer, question, context, **parameters), stock)


@settings(max_examples=80)
@given(
    st.sampled_from(MODEL_TYPES),
    st.one_of(questions, mixed),
    st.one_of(contexts, mixed),
    parameters,
    beyond_stock,
)
def test_our_pipeline_answers_as_it_does(loaded, model_type, question, context, parameters, beyond):
    """Questions may be too long, and contexts without spaces."""
    model, tokenizer = loaded(model_type)
    parameters = {**parameters, **beyond}
    ours = QuestionAnsweringPipeline(model, tokenizer)(question=question, context=context, **parameters)
    assert_same(plain_decoder.answer(model, tokenizer, question, context, **parameters), ours)


spaced = st.lists(st.one_of(words, foreign, st.sampled_from([" ", "  ", "\n"])), min_size=1, max_size=12).map("".join)


@given(st.sampled_from(MODEL_TYPES), spaced, st.integers(1, 12))
@example("deberta-v2", "  1911年 a  ", 7)
def test_both_cut_a_question_into_the_same_tokens(loaded, model_type, question, longest):
    """Some tokenizers make a token of a space, which begins the next word or nothing."""
    _, tokenizer = loaded(model_type)
    context, cut = "The lamp was lit. " * 20, Cut(max_seq_len=60, doc_stride=8, max_question_len=longest)
    windows = WindowMaker(tokenizer)([(question, context)], cut)
    column = 1 if windows.layout.question_first else 3
    size = windows.bounds[0, column + 1] - windows.bounds[0, column]
    text = plain_decoder.cut_question(tokenizer, question, context, cut.max_seq_len, cut.doc_stride, longest)
    assert windows.question_ids[:size].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_both_know_the_same_scripts_without_spaces():
    characters = [chr(code) for code in range(sys.maxunicode + 1)]
    known = [bool(plain_decoder.UNSPACED.match(character)) for character in characters]
    assert known == unspaced("".join(characters)).tolist()
    assert not unspaced("Aé ,.1ßяאعअ한ᄀ🚂").any()
    assert unspaced("漢字かなカナｶﾅ。ไทยລາວမြန်မာខ្មែរ").all()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "deberta-v2"])
@pytest.mark.parametrize(
    ("context", "span", "aligned"),
    [
        ("The lamp of 1911", "am", "lamp"),
        ("灯塔建于1911年。", "塔", "塔"),
        ("灯塔建于1911年。", "91", "1911"),
        ("灯塔建于1911年。", "于19", "于1911"),
        ("我喜欢BERT模型", "ER", "BERT"),
        ("駅は丘の上の町", "の", "の"),
    ],
)
def test_words_of_scripts_without_spaces_are_not_completed(loaded, model_type, context, span, aligned):
    """A tokenizer's word is the whole sentence there. An answer is at least the tokens that hold its span."""
    _, tokenizer = loaded(model_type)
    encoding = tokenizer("?", context).encodings[0]
    begin = context.index(span)
    tokens = [
        token
        for token, (part, (start, stop)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True))
        if part == 1 and start < begin + len(span) and stop > begin
    ]
    first, last = tokens[0], tokens[-1]
    own = context[slice(*plain_decoder.characters(encoding, first, last, context, "auto"))]
    windows = WindowMaker(tokenizer)([("?", context)], Cut(max_seq_len=384, doc_stride=128))
    rows, spans = np.array([0]), (np.array([token - int(windows.first[0])]) for token in (first, last))
    begins, ends = windows.characters(rows, *spans, "auto")
    assert context[begins[0] : ends[0]].strip() == own.strip()
    begin = min(encoding.offsets[first][0], context.index(aligned))
    assert own.strip() == context[begin : max(encoding.offsets[last][1], context.index(aligned) + len(aligned))].strip()


def test_it_reads_the_first_tokens_of_a_long_question(loaded):
    model, tokenizer = loaded("bert")
    question = " ".join(["Who built the lighthouse of Port Aldena?"] * 3)
    short = tokenizer.decode(tokenizer(question, add_special_tokens=False)["input_ids"][:9])
    answers = [
        plain_decoder.answer(model, tokenizer, text, tiny.CONTEXT, max_question_len=9) for text in (question, short)
    ]
    assert answers[0]["answer"] == answers[1]["answer"]
    assert answers[0]["score"] == pytest.approx(answers[1]["score"], rel=1e-5)


@pytest.mark.parametrize(
    "parameters", [{"top_k": 0}, {"max_answer_len": 0}, {"max_seq_len": 100, "doc_stride": 101}], ids=str
)
def test_a_parameter_out_of_range_is_an_error(parameters, loaded):
    with pytest.raises(ValueError, match=r"must be at (least|most)"):
        plain_decoder.answer(*loaded("bert"), "Who?", tiny.CONTEXT, **parameters)


def test_real_questions_get_the_answers_of_our_pipeline(shared, squad_dev):
    """All its answers on one question of a hundred, with the real checkpoint."""
    from qabuild.qa import data
    from qabuild.qa.data import DatasetRef

    checkpoint = resolve(shared / "checkpoints" / "minilm-l6-squad")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint.directory)
    ours = QuestionAnsweringPipeline(model, tokenizer)
    for question in data.load(DatasetRef(str(squad_dev))).questions[::200]:
        own = plain_decoder.answer(model, tokenizer, question.question, question.context)
        assert_same(own, ours(question=question.question, context=question.context))
