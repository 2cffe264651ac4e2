"""Questions and sets of them: what must be true of them, their fingerprint, and parts of a set."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

from qabuild.errors import BadTarget, UntrustedInput

_SHOWN = 5  # ids named in a message; the rest is counted


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
    """Questions and where they came from.

    `name` is a Hub id, "sample" or a file's name, never a full path; `revision` the commit sha of a Hub data set.
    """

    questions: tuple[Question, ...]
    name: str
    revision: str | None
    split: str | None
    fingerprint: str
    """Of all questions that the source holds, those left out among them."""
    misplaced: tuple[str, ...] = ()
    """Ids of questions that were left out, since an answer does not stand where it should."""

    @property
    def has_unanswerable(self) -> bool:
        """Whether any question has no answer in its context, so that the set is scored as SQuAD 2.0."""
        return any(not question.answers for question in self.questions)

    def __len__(self) -> int:
        return len(self.questions)


def question_set(questions: tuple[Question, ...], name: str, revision: str | None, split: str | None) -> QuestionSet:
    """The questions as a set, with their fingerprint."""
    return QuestionSet(
        questions=questions, name=name, revision=revision, split=split, fingerprint=fingerprint(questions)
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
    """`samples` questions drawn by `seed`, in their original order; the same arguments draw the same ones.

    Raises BadTarget if there are fewer, or if none are asked for.
    """
    if isinstance(questions, QuestionSet):
        return _with(questions, subset(questions.questions, samples, seed))
    if not 1 <= samples <= len(questions):
        raise BadTarget(
            f"{samples} samples are asked for, and there are {len(questions)} questions",
            f"ask for 1 to {len(questions)}, or leave the number out for all of them",
        )
    drawn = sorted(random.Random(seed).sample(range(len(questions)), samples))
    return tuple(questions[index] for index in drawn)


@overload
def select(questions: QuestionSet, ids: Sequence[str]) -> QuestionSet: ...
@overload
def select(questions: Sequence[Question], ids: Sequence[str]) -> tuple[Question, ...]: ...
def select(questions: QuestionSet | Sequence[Question], ids: Sequence[str]) -> QuestionSet | tuple[Question, ...]:
    """The questions with these ids, in the order of `ids`.

    Raises UntrustedInput if some are not there, naming the first.
    """
    if isinstance(questions, QuestionSet):
        return _with(questions, select(questions.questions, ids))
    known = {question.id: question for question in questions}
    if missing := [name for name in ids if name not in known]:
        raise UntrustedInput(
            f"{len(missing)} of {len(ids)} questions are not in the data: {_some(missing)}",
            "give the data set, the revision and the split that the questions were taken from",
        )
    return tuple(known[name] for name in ids)


def without_misplaced(questions: QuestionSet) -> QuestionSet:
    """The questions whose answers all stand where they should; the others are named."""
    kept = tuple(filter(_in_place, questions.questions))
    misplaced = tuple(question.id for question in questions.questions if not _in_place(question))
    return replace(questions, questions=kept, misplaced=misplaced)


def check(questions: Sequence[Question], where: str, max_misplaced: float = 0.0) -> None:
    """Hold the questions against what must be true of them; `where` names their source in messages.

    `max_misplaced` is the share of them that may have an answer that is not in place.

    Raises UntrustedInput for no questions, blank or unencodable texts, duplicate ids, answers that are not in place.
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
        "hold characters that are no text (lone surrogates)",
        "write the file anew as UTF-8",
        [question.id for question in questions if not _encodable(question)],
    )
    ids = Counter(question.id for question in questions)
    _refuse(where, "share an id with another", "give each an id of its own", [i for i, n in ids.items() if n > 1])
    misplaced = [question.id for question in questions if not _in_place(question)]
    allowed = f" (at most {max_misplaced:.2%} of {len(questions)} are allowed)" if max_misplaced else ""
    _refuse(
        where,
        f"have an answer that does not stand in the context at its answer_start{allowed}",
        "correct answer_start (in characters, not bytes) or the answer's text",
        misplaced if len(misplaced) > max_misplaced * len(questions) else [],
    )


def _refuse(where: str, problem: str, remedy: str, ids: Sequence[str]) -> None:
    if ids:
        raise UntrustedInput(f"{where}: {len(ids)} questions {problem}: {_some(ids)}", remedy)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")


def _encodable(question: Question) -> bool:
    """Whether the texts can be written as UTF-8; JSON can hold halves of characters, which cannot."""
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


def _with(questions: QuestionSet, chosen: tuple[Question, ...]) -> QuestionSet:
    chosen_set = question_set(chosen, questions.name, questions.revision, questions.split)
    return replace(chosen_set, misplaced=questions.misplaced)


def refuse_asked(learnt: Sequence[Question], asked: Sequence[Question]) -> None:
    """Raise BadTarget where a question is learnt from that the verification asks, by its id or by its texts.

    What fits the very questions that are to prove it proves nothing.
    """
    ids, texts = {question.id for question in asked}, {_texts(question) for question in asked}
    both = [question.id for question in learnt if question.id in ids or _texts(question) in texts]
    if both:
        shown = ", ".join(map(repr, both[:_SHOWN])) + (", ..." if len(both) > _SHOWN else "")
        raise BadTarget(
            f"{len(both)} of its {len(learnt)} questions are asked by the verification as well: {shown}",
            "take training questions (another data set or split), or verify on others",
        )


def _texts(question: Question) -> tuple[str, str]:
    return " ".join(question.question.split()), " ".join(question.context.split())
