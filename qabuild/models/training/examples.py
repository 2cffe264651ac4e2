"""What is learnt from: windows, cut as the pipeline cuts them, and where their answers are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.training.options import Train
from qabuild.models.training.vocabulary import require_same_tokens
from qabuild.qa import data
from qabuild.qa.data import QuestionSet
from qabuild.qa.pipeline.parameters import Parameters
from qabuild.qa.pipeline.windows import Cut, WindowMaker, Windows

if TYPE_CHECKING:
    from qabuild.models.training.request import Request
    from qabuild.qa.data import Question
    from qabuild.qa.pipeline.windows import Integers


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The windows of the questions that are learnt from; arrays are [windows]."""

    windows: Windows
    starts: Integers
    """Column of the first answer token, in the window without padding; of the CLS token where there is no answer."""
    ends: Integers
    questions: tuple[Question, ...]
    held_out: tuple[Question, ...]
    """Questions that are not learnt from."""
    counts: Mapping[str, Any]
    """questions, windows, windows without an answer, questions left out"""
    rows: Integers
    """The windows that are learnt from: all, but in a search."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        """A window's index only: windows become arrays batch by batch, see `Collator`."""
        return int(self.rows[index])


def load(train: Train, tokenizer: Any, *, offline: bool = False) -> Examples:
    """The examples that `train` names, for `tokenizer`.

    Raises what `qabuild.qa.data.load` raises, BadTarget where there is nothing to learn, UntrustedInput for a tokenizer
    without a CLS token.
    """
    found = questions_of(train, offline=offline)
    learnt, held_out = hold_out(found.questions, train.held_out, train.seed)
    made = make(learnt, tokenizer, train, held_out, misplaced=found.misplaced)
    source = {"dataset": found.name, "revision": found.revision, "fingerprint": found.fingerprint}
    return replace(made, counts={**source, **made.counts})


def examples_of(request: Request) -> tuple[Any, Examples]:
    """Tokenizer and examples; with a teacher those of the teacher, which must be the student's as well."""
    from qabuild.models.checkpoint.load import load_tokenizer

    tokenizer = load_tokenizer((request.teacher or request.start).directory)
    examples = load(request.train, tokenizer, offline=request.offline)
    if request.teacher:
        require_same_tokens(
            (request.teacher.name, tokenizer),
            (request.start.name, load_tokenizer(request.start.directory)),
            examples.questions,
            cut_of(request.train, tokenizer),
        )
    return tokenizer, examples


def questions_of(train: Train, *, offline: bool = False) -> QuestionSet:
    """The questions that `train` names, held-out ones among them. Raises what `qabuild.qa.data.load` raises."""
    return data.load(train.data, offline=offline)


def make(
    questions: Sequence[Question],
    tokenizer: Any,
    train: Train,
    held_out: Sequence[Question] = (),
    misplaced: Sequence[str] = (),
) -> Examples:
    """The examples of `questions`. A question with several answers is learnt by its first."""
    import numpy as np

    pairs = [(question.question, question.context) for question in questions]
    try:
        windows = WindowMaker(tokenizer)(pairs, cut_of(train, tokenizer))
    except ValueError as error:
        raise BadTarget(f"[train]: {error}", "lower train.doc_stride, or raise train.max_seq_len") from None
    if windows.layout.cls_place is None:
        raise UntrustedInput(
            f"{type(tokenizer).__name__}: it puts no CLS token, at which windows without an answer point",
            "name a checkpoint whose tokenizer has one, such as a BERT or RoBERTa",
        )
    spans = [(q.answer_starts[0], q.answer_starts[0] + len(q.answers[0])) if q.answers else None for q in questions]
    starts, ends = windows.answer_columns(spans)
    answerless = int((starts == windows.cls).sum())
    if answerless == len(windows):
        raise BadTarget(
            f"[train]: none of the {len(windows)} windows holds an answer", "give data with answers, or longer windows"
        )
    counts = {
        "questions": len(questions),
        "windows": len(windows),
        "windows without an answer": answerless,
        "left out": list(misplaced),
    }
    return Examples(
        windows=windows,
        starts=starts,
        ends=ends,
        questions=tuple(questions),
        held_out=tuple(held_out),
        counts=counts,
        rows=np.arange(len(windows)),
    )


def cut_of(train: Train, tokenizer: Any) -> Cut:
    """How windows are cut, as the pipeline cuts them."""
    return Cut(
        max_seq_len=min(train.max_seq_len, tokenizer.model_max_length),
        doc_stride=train.doc_stride,
        max_question_len=Parameters().max_question_len,
        from_the_end=tokenizer.truncation_side == "left",
    )


def hold_out(questions: Sequence[Question], count: int, seed: int) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """What is learnt from, and at least `count` questions that are not: those of contexts drawn by `seed`.

    Whole contexts, since a question is half answered by another on the same context. Raises BadTarget where nothing
    would be left.
    """
    sizes: dict[str, int] = {}
    for question in questions:
        sizes[question.context] = sizes.get(question.context, 0) + 1
    contexts = sorted(sizes)
    random.Random(seed).shuffle(contexts)
    aside: set[str] = set()
    held = 0
    while held < count and contexts:
        context = contexts.pop()
        aside.add(context)
        held += sizes[context]
    if not contexts:
        raise BadTarget(
            f"train.held_out is {count}, and there are {len(questions)} questions on {len(sizes)} contexts",
            "hold out fewer, or give more to learn from",
        )
    return (
        tuple(question for question in questions if question.context not in aside),
        tuple(question for question in questions if question.context in aside),
    )
