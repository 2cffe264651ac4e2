"""Questions and question sets: checks, fingerprints, subsets and the check for leakage."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

from qabuild.errors import BadTarget, UntrustedInput

_SHOWN = 5  # ids named in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question; `answers` are the gold answers, each found in `context` at its `answer_starts` (in characters).

    No answers: the question is unanswerable (SQuAD 2.0).
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions and their source.

    `name` is a Hub id, "sample" or a file's name, never a full path; `revision` the commit sha of a Hub data set.
    """

    questions: tuple[Question, ...]
    name: str
    configuration: str | None = None
    revision: str | None
    split: str | None
    fingerprint: str
    """Over all questions of the source, including those left out."""
    misplaced: tuple[str, ...] = ()
    """Ids of questions left out because an answer is not at its `answer_start`."""

    @property
    def has_unanswerable(self) -> bool:
        """Whether any question is unanswerable, so that the set is scored as SQuAD 2.0."""
        return any(not question.answers for question in self.questions)

    def __len__(self) -> int:
        return len(self.questions)


def question_set(
    questions: tuple[Question, ...],
    name: str,
    *,
    configuration: str | None = None,
    revision: str | None = None,
    split: str | None = None,
) -> QuestionSet:
    """The questions as a set, with their fingerprint."""
    return QuestionSet(
        questions=questions,
        name=name,
        configuration=configuration,
        revision=revision,
        split=split,
        fingerprint=fingerprint(questions),
    )


def fingerprint(questions: Iterable[Question]) -> str:
    """SHA-256, in hex, over the questions in order: one line of canonical JSON for each.

    A line is `[id, question, context, [answers], [starts]]`, without spaces, non-ASCII characters as they are, UTF-8.
    """
    digest = hashlib.sha256()
    for question in questions:
        fields = [question.id, question.question, question.context, question.answers, question.answer_starts]
        digest.update(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())
        digest.update(b"\n")
    return digest.hexdigest()


@overload
def subset(questions: QuestionSet, samples: int, seed: int = 0) -> QuestionSet: ...
@overload
def subset(questions: Sequence[Question], samples: int, seed: int = 0) -> tuple[Question, ...]: ...
def subset(
    questions: QuestionSet | Sequence[Question], samples: int, seed: int = 0
) -> QuestionSet | tuple[Question, ...]:
    """Draw `samples` questions with the random seed `seed`; they keep their order, and equal arguments draw the same.

    Raises BadTarget unless 1 <= `samples` <= the number of questions.
    """
    if isinstance(questions, QuestionSet):
        return _part_of(questions, subset(questions.questions, samples, seed))
    if not 1 <= samples <= len(questions):
        raise BadTarget(
            f"{samples} samples are asked for, and there are {len(questions)} questions",
            f"use 1 to {len(questions)}, or leave `samples` out for all of them",
        )
    drawn = sorted(random.Random(seed).sample(range(len(questions)), samples))
    return tuple(questions[index] for index in drawn)


@overload
def select(questions: QuestionSet, ids: Sequence[str]) -> QuestionSet: ...
@overload
def select(questions: Sequence[Question], ids: Sequence[str]) -> tuple[Question, ...]: ...
def select(questions: QuestionSet | Sequence[Question], ids: Sequence[str]) -> QuestionSet | tuple[Question, ...]:
    """The questions with these ids, in the order of `ids`.

    Raises UntrustedInput naming the first missing ids, if any.
    """
    if isinstance(questions, QuestionSet):
        return _part_of(questions, select(questions.questions, ids))
    by_id = {question.id: question for question in questions}
    if missing := [question_id for question_id in ids if question_id not in by_id]:
        raise UntrustedInput(
            f"{len(missing)} of {len(ids)} questions are not in the data: {_some(missing)}",
            "give the data set, the revision and the split that the questions were taken from",
        )
    return tuple(by_id[question_id] for question_id in ids)


def without_misplaced(questions: QuestionSet) -> QuestionSet:
    """The questions whose answers are all at their `answer_start`; `misplaced` names the others."""
    in_place = tuple(filter(_in_place, questions.questions))
    misplaced = tuple(question.id for question in questions.questions if not _in_place(question))
    return replace(questions, questions=in_place, misplaced=misplaced)


def check(questions: Sequence[Question], where: str, max_misplaced: float = 0.0) -> None:
    """Validate the questions; `where` names their source in messages.

    `max_misplaced` is the share of questions that may have an answer not at its `answer_start`.

    Raises UntrustedInput for no questions, blank or unencodable texts, duplicate ids, misplaced answers.
    """
    if not questions:
        raise UntrustedInput(f"{where}: there are no questions in it", "give a file or split with questions")
    _refuse(
        where,
        "have a blank id, question, context or answer",
        "remove or complete them",
        [
            question.id
            for question in questions
            if not all(map(str.strip, (question.id, question.question, question.context, *question.answers)))
        ],
    )
    _refuse(
        where,
        "hold characters that are not valid text (lone surrogates)",
        "write the file again as UTF-8",
        [question.id for question in questions if not _encodable(question)],
    )
    ids = Counter(question.id for question in questions)
    _refuse(where, "share an id with another", "give each an id of its own", [i for i, n in ids.items() if n > 1])
    misplaced = [question.id for question in questions if not _in_place(question)]
    allowed = f" (at most {max_misplaced:.2%} of {len(questions)} are allowed)" if max_misplaced else ""
    _refuse(
        where,
        f"have an answer that is not in the context at its answer_start{allowed}",
        "correct answer_start (in characters, not bytes) or the answer's text",
        misplaced if len(misplaced) > max_misplaced * len(questions) else [],
    )


def _refuse(where: str, problem: str, remedy: str, ids: Sequence[str]) -> None:
    if ids:
        raise UntrustedInput(f"{where}: {len(ids)} questions {problem}: {_some(ids)}", remedy)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")


def _encodable(question: Question) -> bool:
    """Whether the texts can be encoded as UTF-8; JSON can hold lone surrogates, which cannot."""
    try:
        "".join((question.id, question.question, question.context, *question.answers)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_place(question: Question) -> bool:
    return all(
        start >= 0 and question.context.startswith(text, start)
        for text, start in zip(question.answers, question.answer_starts, strict=True)
    )


def _part_of(questions: QuestionSet, chosen: tuple[Question, ...]) -> QuestionSet:
    return replace(questions, questions=chosen, fingerprint=fingerprint(chosen))


def refuse_leakage(training: Sequence[Question], verification: Sequence[Question]) -> None:
    """Raise BadTarget for train/test leakage: a training question in the verification, by its id or by its texts.

    Texts are compared up to whitespace. Scores on questions that were trained on verify nothing.
    """
    ids, texts = {question.id for question in verification}, {_texts(question) for question in verification}
    leaked = [question.id for question in training if question.id in ids or _texts(question) in texts]
    if leaked:
        raise BadTarget(
            f"{len(leaked)} of its {len(training)} questions are asked by the verification as well: {_some(leaked)}",
            "train on other questions (another data set or split), or verify on others",
        )


def _texts(question: Question) -> tuple[str, str]:
    return " ".join(question.question.split()), " ".join(question.context.split())
