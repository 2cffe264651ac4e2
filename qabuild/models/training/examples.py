"""Training examples: windows, cut as the pipeline cuts them, with the positions of their answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.training.options import Fit
from qabuild.models.training.vocabulary import require_same_tokens
from qabuild.qa import data
from qabuild.qa.data import QuestionSet
from qabuild.qa.pipeline.windows import Cut, WindowMaker, Windows
from qabuild.system.units import count_of

if TYPE_CHECKING:
    from qabuild.models.training.request import Request
    from qabuild.qa.data import Question
    from qabuild.qa.pipeline.windows import Integers


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The windows of the training questions; arrays are [windows]."""

    windows: Windows
    starts: Integers
    """Column of the first answer token, in the window without padding; that of the CLS token if there is no answer."""
    ends: Integers
    """Column of the last answer token, likewise."""
    questions: tuple[Question, ...]
    held_out: tuple[Question, ...]
    """Questions kept out of training, to evaluate on."""
    counts: Mapping[str, Any]
    """Counts of questions and windows, of windows without an answer, and the ids of questions left out."""
    rows: Integers
    """Indices of the windows to train on: all of them, except in a search."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        """The index of a window: `Collator` turns the windows of a batch into arrays."""
        return int(self.rows[index])


def load(train: Fit, tokenizer: Any, *, offline: bool = False) -> Examples:
    """Load the examples that `train` names, tokenized by `tokenizer`.

    Raises what `qabuild.qa.data.load` raises, BadTarget if no window holds an answer, UntrustedInput for a tokenizer
    without a CLS token.
    """
    dataset = questions_of(train, offline=offline)
    training, held_out = hold_out(dataset.questions, train)
    examples = make(training, tokenizer, train, held_out, misplaced=dataset.misplaced)
    return replace(examples, counts={**dataset.source, **examples.counts})


def examples_of(request: Request) -> tuple[Any, Examples]:
    """Tokenizer and examples. A teacher's tokenizer is used if there is one; it must produce the student's tokens."""
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


def questions_of(train: Fit, *, offline: bool = False) -> QuestionSet:
    """Load the questions that `train` names, including held-out ones. Raises what `qabuild.qa.data.load` raises."""
    return data.load(train.data, offline=offline)


def make(
    questions: Sequence[Question],
    tokenizer: Any,
    train: Fit,
    held_out: Sequence[Question] = (),
    misplaced: Sequence[str] = (),
) -> Examples:
    """Cut `questions` into examples. Of several answers, the first is the label."""
    import numpy as np

    pairs = [(question.question, question.context) for question in questions]
    try:
        windows = WindowMaker(tokenizer)(pairs, cut_of(train, tokenizer))
    except ValueError as error:
        limited = tokenizer.model_max_length < train.max_seq_len  # by the model, whatever the target says
        remedy = f"lower {train.table}.doc_stride" + ("" if limited else f", or raise {train.table}.max_seq_len")
        raise BadTarget(f"[{train.table}]: {error}", remedy) from None
    if windows.layout.cls_place is None:
        raise UntrustedInput(
            f"{type(tokenizer).__name__}: it adds no CLS token, which windows without an answer point to",
            "name a checkpoint whose tokenizer has one, such as a BERT or RoBERTa",
        )
    spans = [(q.answer_starts[0], q.answer_starts[0] + len(q.answers[0])) if q.answers else None for q in questions]
    starts, ends = windows.answer_columns(spans)
    answerless = int((starts == windows.cls).sum())
    if answerless == len(windows):
        raise BadTarget(
            f"[{train.table}]: no window holds an answer",
            "give data with answers, or longer windows",
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


def cut_of(train: Fit, tokenizer: Any) -> Cut:
    """The parameters of cutting windows, as in the pipeline."""
    return Cut(
        max_seq_len=min(train.max_seq_len, tokenizer.model_max_length),
        doc_stride=train.doc_stride,
        from_the_end=tokenizer.truncation_side == "left",
    )


def hold_out(questions: Sequence[Question], train: Fit) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Split into training questions and at least `train.held_out` others: all those of contexts drawn with its seed.

    Whole contexts are held out, since questions on the same context leak answers (train/test leakage). Raises
    BadTarget if no context would be left to train on.
    """
    sizes: dict[str, int] = {}
    for question in questions:
        sizes[question.context] = sizes.get(question.context, 0) + 1
    contexts = sorted(sizes)
    random.Random(train.seed).shuffle(contexts)
    held_out: set[str] = set()
    held_out_questions = 0
    while held_out_questions < train.held_out and contexts:
        context = contexts.pop()
        held_out.add(context)
        held_out_questions += sizes[context]
    if not contexts:
        raise BadTarget(
            f"{train.table}.held_out is {train.held_out}, of {count_of(len(questions), 'question')} on "
            f"{count_of(len(sizes), 'context')}",
            "hold out fewer, or train on more questions",
        )
    return (
        tuple(question for question in questions if question.context not in held_out),
        tuple(question for question in questions if question.context in held_out),
    )
