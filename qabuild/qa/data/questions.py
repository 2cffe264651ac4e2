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
from qabuild.qa.data import placement
from qabuild.system.units import count_of

_SHOWN = 5  # ids named in a message
_SHOWN_MISPLACED = 3


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
    def source(self) -> dict[str, str | None]:
        """Where the questions are from, as records say it."""
        return {
            "dataset": self.name,
            "configuration": self.configuration,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
        }

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
            f"{samples} samples are asked for, of {count_of(len(questions), 'question')}",
            f"set `samples` to at most {len(questions)}",
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
    """Validate the questions together; `where` names their source in messages.

    `max_misplaced` is the share of questions that may have an answer not at its `answer_start`.

    Raises UntrustedInput for no questions, duplicate ids, misplaced answers.
    """
    if not questions:
        raise UntrustedInput(f"{where}: there are no questions in it", "give a file or split with questions")
    ids = Counter(question.id for question in questions)
    if shared := [question_id for question_id, count in ids.items() if count > 1]:
        raise UntrustedInput(
            f"{where}: {count_of(len(shared), 'id')} of more than one question: {_some(shared)}",
            "give each an id of its own, and remove rows that repeat a question: without ids, they get the same. "
            "`qabuild data check FILE --fix OUT.json` does both for a file",
        )
    misplaced = [question for question in questions if not _in_place(question)]
    if len(misplaced) > max_misplaced * len(questions):
        allowed = f" (at most {max_misplaced:.2%} of {len(questions)} are allowed)" if max_misplaced else ""
        shown = ", ".join(map(placement.describe, misplaced[:_SHOWN_MISPLACED]))
        raise UntrustedInput(
            f"{where}: {len(misplaced)} questions have an answer that is not in the context at its "
            f"answer_start{allowed}: {shown}{', ...' if len(misplaced) > _SHOWN_MISPLACED else ''}",
            "correct answer_start (in characters, not bytes), as `qabuild data check FILE --fix OUT.json` does, or "
            "leave a share of them out by max_misplaced",
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")


def _in_place(question: Question) -> bool:
    return all(
        placement.is_in_place(question.context, text, start)
        for text, start in zip(question.answers, question.answer_starts, strict=True)
    )


def _part_of(questions: QuestionSet, chosen: tuple[Question, ...]) -> QuestionSet:
    return replace(questions, questions=chosen, fingerprint=fingerprint(chosen))


def refuse_leakage(training: Sequence[Question], verification: Sequence[Question]) -> None:
    """Raise BadTarget for train/test leakage: a training question in the verification.

    It is one with the same question and context, up to whitespace, or with the same id and one of the two: two files
    may number their rows alike. Scores on questions that were trained on verify nothing.
    """
    asked = {key for question in verification for key in _identities(question)}
    leaked = [question.id for question in training if not asked.isdisjoint(_identities(question))]
    if leaked:
        raise BadTarget(
            f"{len(leaked)} of its {len(training)} questions are asked by the verification as well: {_some(leaked)}",
            "train on other questions (another data set or split), or verify on others",
        )


def _identities(question: Question) -> tuple[tuple[str, str, str], ...]:
    """What makes it the same question as another; the parts are kept apart by their places."""
    text, context = " ".join(question.question.split()), " ".join(question.context.split())
    return ("", text, context), (question.id, text, ""), (question.id, "", context)
