"""Checks that teacher and student tokenize texts alike: otherwise their logits are on different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qabuild.errors import BadTarget
from qabuild.qa.data import Question
from qabuild.qa.pipeline.windows import Cut, WindowMaker

CHECKED = 64
"""Number of questions that both tokenizers are compared on."""


def require_same_tokens(
    teacher: tuple[str, Any], student: tuple[str, Any], questions: Sequence[Question], cut: Cut
) -> None:
    """Raise BadTarget unless both tokenizers produce the same windows of `questions`.

    `teacher` and `student`: the name of the checkpoint and its tokenizer.
    """
    (teacher_name, one), (student_name, other) = teacher, student
    if problem := _difference(one, other, questions[:CHECKED], cut):
        raise BadTarget(
            f"the teacher {teacher_name} and the student {student_name} read texts as different tokens: {problem}",
            "name a student of the teacher's vocabulary, or leave [checkpoint] out and set train.layers",
        )


def _difference(one: Any, other: Any, questions: Sequence[Question], cut: Cut) -> str | None:
    vocabularies = one.get_vocab(), other.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        differing = dict(vocabularies[0].items() ^ vocabularies[1].items())
        sizes = " and ".join(str(len(vocabulary)) for vocabulary in vocabularies)
        return f"vocabularies of {sizes} tokens, {len(differing)} of which differ, such as {min(differing)!r}"
    if other.model_max_length < cut.max_seq_len:
        return (
            f"windows of {cut.max_seq_len} tokens (train.max_seq_len), and the student reads {other.model_max_length}"
        )
    pairs = [(question.question, question.context) for question in questions]
    first, second = WindowMaker(one)(pairs, cut), WindowMaker(other)(pairs, cut)
    if first.layout != second.layout:
        return "special tokens in other places"
    for ids in ("question_ids", "context_ids"):
        if getattr(first, ids).tolist() != getattr(second, ids).tolist():
            return "texts are split otherwise"
    return None
