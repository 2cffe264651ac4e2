"""Questions with their contexts and gold answers, from the Hub, a SQuAD-layout file or the embedded sample.

Whatever the source, the same checks hold: ids are unique, texts are not blank, and every gold answer stands in its
context where it says. What passes them can be answered and scored without further looks.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from qabuild import hub
from qabuild.errors import BadTarget, QABuildError, UntrustedInput

SAMPLE = "sample"
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

    @property
    def has_unanswerable(self) -> bool:
        """Whether any question has no answer in its context, so that the set is scored as SQuAD 2.0."""
        return any(not question.answers for question in self.questions)

    def __len__(self) -> int:
        return len(self.questions)


def load(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    split: str = "validation",
    samples: int | None = None,
    seed: int = 0,
    offline: bool = False,
) -> QuestionSet:
    """Read the questions of `source`: "sample", a path (begins with '/', '.' or '~', or is a path object) or a Hub id.

    `revision` is for a Hub id: a branch, tag or sha. `split` is for a Hub id and the sample ("train", or "validation"
    for its held-out questions); a file is one split. `samples` draws a subset by `seed`. `offline` uses the cache only.

    Raises BadTarget for what is not there, UntrustedInput for questions that are damaged, QABuildError where the Hub
    or the disk fails.
    """
    if not hub.is_path(source) and source != SAMPLE:
        found = _from_hub(str(source), revision, split, offline)
    elif revision is not None:
        raise BadTarget(
            f"revision '{revision}' is given for the data '{source}', which is not on the Hub",
            "leave out the revision, or name a Hub id",
        )
    else:
        found = _sample(split) if source == SAMPLE else _from_file(Path(source))
    return found if samples is None else subset(found, samples, seed)


def read_squad(path: Path) -> tuple[Question, ...]:
    """The questions of a SQuAD-layout JSON file (v1.1 or v2.0, plain or gzip), in the file's order.

    Raises BadTarget if there is no such file, UntrustedInput naming file and place if its content is not sound.
    """
    where = str(path)
    questions = tuple(_questions(_parsed(path), where))
    check(questions, where)
    return questions


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


Questions = TypeVar("Questions", QuestionSet, tuple[Question, ...])


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


def check(questions: Sequence[Question], where: str) -> None:
    """Hold the questions against what must be true of them; `where` names their source in messages.

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
        [ascii(question.id) for question in questions if not _encodable(question)],
    )
    ids = Counter(question.id for question in questions)
    _refuse(where, "share an id with another", "give each an id of its own", [i for i, n in ids.items() if n > 1])
    _refuse(
        where,
        "have an answer that does not stand in the context at its answer_start",
        "correct answer_start (in characters, not bytes) or the answer's text",
        [question.id for question in questions if not _in_place(question)],
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
    return _set(chosen, questions.name, questions.revision, questions.split)


def _set(questions: tuple[Question, ...], name: str, revision: str | None, split: str | None) -> QuestionSet:
    return QuestionSet(
        questions=questions, name=name, revision=revision, split=split, fingerprint=fingerprint(questions)
    )


# --- the embedded sample and files -------------------------------------------------------------------------------


def _sample(split: str) -> QuestionSet:
    from qabuild import sample

    files = {"train": sample.TRAIN, "validation": sample.HELDOUT}
    if split not in files:
        raise BadTarget(f"the sample has no split '{split}'", "ask for 'train' or 'validation'")
    return _set(read_squad(Path(files[split])), SAMPLE, None, split)


def _from_file(path: Path) -> QuestionSet:
    path = path.expanduser()
    return _set(read_squad(path), path.name, None, None)


def _parsed(path: Path) -> Any:
    """The JSON value in the file, unpacked first if it begins as gzip files do."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise BadTarget(f"{path}: there is no such file", "check the path; a Hub id is written 'owner/name'") from error
    except OSError as error:
        raise BadTarget(
            f"{path}: cannot be read ({error.strerror})", "give a SQuAD-layout .json or .json.gz file"
        ) from error
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return json.loads(content.decode("utf-8-sig"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UntrustedInput(f"{path}: damaged gzip file ({error})", "fetch or pack it anew") from error
    except UnicodeDecodeError as error:
        raise UntrustedInput(f"{path}: not UTF-8 text (byte {error.start})", "give a SQuAD-layout JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UntrustedInput(f"{path}: not JSON ({error})", "give a SQuAD-layout JSON file") from error


def _questions(root: Any, where: str) -> Iterator[Question]:
    """Walk the SQuAD layout: data[].paragraphs[].qas[]; a context belongs to all questions of its paragraph."""
    for article, at_article in _items(root, "data", where, ""):
        for paragraph, at_paragraph in _items(article, "paragraphs", where, at_article):
            context = _field(paragraph, "context", str, where, at_paragraph)
            for entry, at_entry in _items(paragraph, "qas", where, at_paragraph):
                yield _question(entry, context, where, at_entry)


def _question(entry: Any, context: str, where: str, at: str) -> Question:
    name = _field(entry, "id", str, where, at)
    impossible = _field(entry, "is_impossible", bool, where, at) if "is_impossible" in entry else False
    answers = [] if impossible and "answers" not in entry else list(_items(entry, "answers", where, at))
    if impossible == bool(answers):
        raise UntrustedInput(
            f"{where}: {at}: question '{name}' "
            + ("is marked is_impossible and has answers" if impossible else "has no answers"),
            "an unanswerable question (SQuAD 2.0) has \"is_impossible\": true and no answers; any other has some",
        )
    return Question(
        id=name,
        question=_field(entry, "question", str, where, at),
        context=context,
        answers=tuple(_field(answer, "text", str, where, at_answer) for answer, at_answer in answers),
        answer_starts=tuple(_field(answer, "answer_start", int, where, at_answer) for answer, at_answer in answers),
    )


_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
Kind = TypeVar("Kind")


def _items(parent: Any, key: str, where: str, at: str) -> Iterator[tuple[Any, str]]:
    """The entries of the list `parent[key]`, each with its place."""
    place = f"{at}.{key}" if at else key
    for index, item in enumerate(_field(parent, key, list, where, at)):
        yield item, f"{place}[{index}]"


def _field(parent: Any, key: str, kind: type[Kind], where: str, at: str) -> Kind:
    """`parent[key]`, which must be of that kind."""
    place = at or "the top level"
    if not isinstance(parent, dict):
        raise _wrong_layout(where, f"{place} is not an object")
    if key not in parent:
        raise _wrong_layout(where, f"{place} has no '{key}'")
    value = parent[key]
    # bool is a kind of int in Python, not in JSON.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong_layout(where, f"{f'{at}.{key}' if at else key} is not {_JSON_NAMES[kind]}")
    return value


def _wrong_layout(where: str, problem: str) -> UntrustedInput:
    return UntrustedInput(
        f"{where}: not in the layout of SQuAD: {problem}",
        "the layout is {data: [{paragraphs: [{context, qas: [{id, question, answers: [{text, answer_start}]}]}]}]}",
    )


# --- the Hub -----------------------------------------------------------------------------------------------------


def _from_hub(name: str, revision: str | None, split: str, offline: bool) -> QuestionSet:
    sha = hub.commit(name, revision, "dataset", offline=offline)
    table = _table(name, sha, split, offline)
    where = f"{name} ({split})"
    questions = tuple(_row(row, index, where) for index, row in enumerate(table))
    check(questions, where)
    return _set(questions, name, sha, split)


def _table(name: str, sha: str, split: str, offline: bool) -> Any:
    """The split as a `datasets.Dataset`, of exactly this commit: from the cache if it is there, else from the Hub."""
    table = _cached(name, sha, split)
    if table is not None:
        return table
    if hub.is_offline(offline):
        raise QABuildError(
            f"the data set '{name}' (revision {sha}, split '{split}') is not in the cache, and this run is offline",
            "run once with a network (without HF_HUB_OFFLINE and offline options), or give the questions as a file",
        )
    return _fetched(name, sha, split)


def _cached(name: str, sha: str, split: str) -> Any | None:
    """What an earlier `load_dataset` of this commit has left in the cache, or None.

    `load_dataset` itself is no way to it: without a network it takes the newest version it finds, of any commit.
    """
    import datasets

    namespace, _, last = name.rpartition("/")
    folder = "___".join(filter(None, (namespace, datasets.naming.camelcase_to_snakecase(last))))
    root = Path(datasets.config.HF_DATASETS_CACHE) / folder
    parts = sorted(
        path
        for path in root.glob(f"*/*/{sha}/*.arrow")
        if (path.parent / "dataset_info.json").is_file() and _holds(path.stem, split)
    )
    if not parts or len({path.parent for path in parts}) > 1:
        return None
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in parts])


def _holds(stem: str, split: str) -> bool:
    """Whether a file of the cache is (part of) the split: 'squad-train' or 'squad-train-00000-of-00002'."""
    name, _, number = stem.rpartition("-of-")
    stem = name.rpartition("-")[0] if number.isdigit() else stem
    return stem.endswith(f"-{split}")


def _fetched(name: str, sha: str, split: str) -> Any:
    import datasets

    with hub.explained(name, sha, "dataset"):
        try:
            table = datasets.load_dataset(name, revision=sha, split=split)
        except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
            raise BadTarget(f"the data set '{name}' cannot be loaded: {_first_line(error)}", _LOADABLE) from error
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
            raise BadTarget(f"the data set '{name}' cannot be loaded: {_first_line(error)}", _LOADABLE) from error
    return table


_LOADABLE = "name a data set with the columns id, question, context and answers, and one of its splits"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _row(row: Mapping[str, Any], index: int, where: str) -> Question:
    """One row of a table with the features id, question, context and answers {text, answer_start}."""
    at = f"row {index}"
    answers = _field(row, "answers", dict, where, at)
    texts = _strings(answers, "text", where, at)
    starts = _field(answers, "answer_start", list, where, at)
    if len(texts) != len(starts) or not all(type(start) is int for start in starts):
        raise _wrong_layout(where, f"{at}.answers.answer_start is not a list of one integer for each text")
    return Question(
        id=_field(row, "id", str, where, at),
        question=_field(row, "question", str, where, at),
        context=_field(row, "context", str, where, at),
        answers=texts,
        answer_starts=tuple(starts),
    )


def _strings(parent: Any, key: str, where: str, at: str) -> tuple[str, ...]:
    values = _field(parent, key, list, where, at)
    if not all(isinstance(value, str) for value in values):
        raise _wrong_layout(where, f"{at}.answers.{key} is not a list of strings")
    return tuple(values)
