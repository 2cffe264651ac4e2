"""The benchmarks' baseline: the stock pipeline in a process of its own, and the environment that it runs in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tiny

from benchmarks import stock
from benchmarks.stock import Stock
from qabuild.errors import MissingEnvironment
from qabuild.qa.data import Question

HERE = Path(sys.prefix)
"""The environment that runs the tests."""

TEXTS = (tiny.QUESTION, "What does the museum keep?", "Where did the keeper find the glass?")
QUESTIONS = [
    Question(
        id=str(number),
        question=text,
        context=" ".join(tiny.CORPUS[number : number + 3]),
        answers=(),
        answer_starts=(),
    )
    for number, text in enumerate(TEXTS)
]


@pytest.mark.line457
def test_the_stock_pipeline_answers_as_in_this_process(tiny_checkpoint: Callable[..., Path]) -> None:
    from transformers import pipeline

    here = pipeline("question-answering", model=str(tiny_checkpoint()))
    with Stock(tiny_checkpoint(), environment=HERE) as ask:
        for questions in (QUESTIONS, QUESTIONS[:1]):
            answered = ask(questions)
            expected = {question.id: here(stock.example(question))["answer"] for question in questions}
            assert answered.answers == expected
            assert answered.seconds > 0


@pytest.mark.line457
def test_a_search_finds_what_the_stock_pipeline_does(tiny_checkpoint: Callable[..., Path]) -> None:
    from transformers import pipeline

    here = pipeline("question-answering", model=str(tiny_checkpoint()))
    examples = [stock.example(question) for question in QUESTIONS]
    cut, searches = {"max_seq_len": 96, "doc_stride": 8}, [{"top_k": 2}, {"top_k": 3, "max_answer_len": 5}]
    with Stock(tiny_checkpoint(), environment=HERE) as ask:
        results, windows = ask.search(examples, cut, searches)
    assert windows > len(examples)
    for search, result in zip(searches, results, strict=True):
        expected = [here(example, **cut, **search) for example in examples]
        assert spans(result) == spans(expected)


def spans(results: list[list[dict[str, Any]]]) -> list[list[tuple[int, int, str]]]:
    return [[(answer["start"], answer["end"], answer["answer"]) for answer in answers] for answers in results]


@pytest.mark.skipif(version("transformers").startswith("4.57."), reason="transformers 4.57 has the pipeline")
def test_an_environment_of_transformers_5_is_refused(tiny_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(MissingEnvironment, match="has no question-answering pipeline"):
        Stock(tiny_checkpoint(), environment=HERE)


def test_benchmarks_use_the_environment_that_was_made_last(tmp_path: Path) -> None:
    for folder in (tmp_path / "earlier", tmp_path / "later"):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").touch()
        stock.remember(folder)
    assert stock.python() == tmp_path / "later" / "bin" / "python"
    assert stock.python(tmp_path / "earlier") == tmp_path / "earlier" / "bin" / "python"


def test_without_an_environment_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    for environment in (None, tmp_path):
        with pytest.raises(MissingEnvironment, match="--make-environment"):
            stock.python(environment)
