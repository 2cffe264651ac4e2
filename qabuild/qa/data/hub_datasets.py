"""Questions from data sets on the Hub, through `datasets`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa.data.questions import Question, QuestionSet, check, question_set
from qabuild.qa.data.schema import field, wrong_layout
from qabuild.system import hub
from qabuild.system.hub import first_line

_SPLIT = re.compile(r"\w+(\.\w+)*")


def load_table(name: str, revision: str | None, split: str, offline: bool, max_misplaced: float = 0.0) -> QuestionSet:
    """The questions of one split of a data set: a table of id, question, context and answers {text, answer_start}.

    Raises BadTarget for what is not there, UntrustedInput for questions that are damaged, QABuildError where the Hub
    fails or, with `offline`, where the cache does not hold them.
    """
    if not _SPLIT.fullmatch(split):
        raise BadTarget(f"'{split}' is no name of a split", "name a whole split; samples draws a part of it")
    sha = hub.commit(name, revision, "dataset", offline=offline)
    where = f"{name} ({split})"
    questions = tuple(_row(row, index, where) for index, row in enumerate(_table(name, sha, split, offline)))
    check(questions, where, max_misplaced)
    return question_set(questions, name, sha, split)


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


def _cache() -> Path:
    """A folder of our own in the cache of `datasets`: others may have loaded another configuration of a data set."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, "qabuild")


def _cached(name: str, sha: str, split: str) -> Any | None:
    """What an earlier `load_dataset` of this commit has left in the cache, or None.

    `load_dataset` itself is no way to it: without a network it takes the newest version it finds, of any commit.
    """
    import datasets

    parts = sorted(
        path
        for path in _cache().glob(f"{_folder(name)}/*/*/{sha}/*.arrow")
        if (path.parent / "dataset_info.json").is_file() and _holds(path.stem, split)
    )
    if not parts:
        return None
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in parts])


def _folder(name: str) -> str:
    """What `datasets` calls a data set's folder in its cache."""
    from datasets.naming import camelcase_to_snakecase

    namespace, _, last = name.rpartition("/")
    return "___".join(filter(None, (namespace, camelcase_to_snakecase(last))))


def _holds(stem: str, split: str) -> bool:
    """Whether a file of the cache is (part of) the split: 'squad-train' or 'squad-train-00000-of-00002'."""
    return re.fullmatch(rf".*-{re.escape(split)}(-\d+-of-\d+)?", stem) is not None


def _fetched(name: str, sha: str, split: str) -> Any:
    import datasets

    hub.confirm(name, sha, "dataset")
    with _explained(name, sha), hub.bars_on_terminals_only(), _quiet():
        table = datasets.load_dataset(name, revision=sha, split=split, cache_dir=str(_cache()))
    if not all(sha in Path(file["filename"]).parts for file in table.cache_files):
        raise hub.unreachable(name, "dataset", ConnectionError("another commit was taken from the cache"))
    return table


@contextmanager
def _explained(name: str, sha: str) -> Iterator[None]:
    """Turn what `load_dataset` raises into errors of this program."""
    from datasets import exceptions
    from pyarrow import ArrowException  # type: ignore[import-untyped]

    problem = f"the data set '{name}' cannot be loaded"
    try:
        with hub.explained(name, sha, "dataset"):
            yield
    except exceptions.DatasetNotFoundError as error:
        raise BadTarget(
            f"{problem}: {first_line(error)}", "for a gated or private one, log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except (exceptions.DatasetGenerationError, ArrowException) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:  # a full disk, say: no fault of the data
            raise error.__cause__ from error
        raise UntrustedInput(
            f"{problem}: {first_line(error.__cause__ or error)}",
            "its files are damaged or of different layouts: name another revision, or give the questions as a file",
        ) from error
    except (exceptions.DatasetsError, FileNotFoundError, ValueError, RuntimeError) as error:
        raise BadTarget(
            f"{problem}: {first_line(error)}",
            "name a data set with the columns id, question, context and answers, and one of its splits",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what `datasets` logs (errors are raised as well), and without bars where stderr is no terminal."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, hide = logging.get_verbosity(), not (sys.stderr.isatty() or are_progress_bars_disabled())
    logging.set_verbosity(logging.CRITICAL)
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hide:
            enable_progress_bars()


def _row(row: Mapping[str, Any], index: int, where: str) -> Question:
    """One row of a table with the features id, question, context and answers {text, answer_start}."""
    at = f"row {index}"
    answers = field(row, "answers", dict, where, at)
    texts = _strings(answers, "text", where, at)
    starts = field(answers, "answer_start", list, where, at)
    if len(texts) != len(starts) or not all(type(start) is int for start in starts):
        raise wrong_layout(where, f"{at}.answers.answer_start is not a list of one integer for each text")
    return Question(
        id=field(row, "id", str, where, at),
        question=field(row, "question", str, where, at),
        context=field(row, "context", str, where, at),
        answers=texts,
        answer_starts=tuple(starts),
    )


def _strings(parent: Any, key: str, where: str, at: str) -> tuple[str, ...]:
    values = field(parent, key, list, where, at)
    if not all(isinstance(value, str) for value in values):
        raise wrong_layout(where, f"{at}.answers.{key} is not a list of strings")
    return tuple(values)
