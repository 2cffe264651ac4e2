"""Questions from data sets on the Hub, loaded with `datasets`."""

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
    """The questions of one split: a table with columns id, question, context and answers {text, answer_start}.

    Raises BadTarget for a missing data set, revision or split, UntrustedInput for damaged questions, QABuildError if
    the Hub fails or, with `offline`, if the split is not in the cache.
    """
    if not _SPLIT.fullmatch(split):
        raise BadTarget(f"'{split}' is no name of a split", "name a whole split; use `samples` to draw a part of it")
    sha = hub.commit(name, revision, "dataset", offline=offline)
    where = f"{name} ({split})"
    questions = tuple(_row(row, index, where) for index, row in enumerate(_table(name, sha, split, offline)))
    check(questions, where, max_misplaced)
    return question_set(questions, name, sha, split)


def _table(name: str, sha: str, split: str, offline: bool) -> Any:
    """The split at exactly this commit as a `datasets.Dataset`, from the cache or else from the Hub."""
    table = _cached(name, sha, split)
    if table is not None:
        return table
    if hub.is_offline(offline):
        raise QABuildError(
            f"the data set '{name}' (revision {sha}, split '{split}') is not in the cache, and this run is offline",
            "run once with a network (without HF_HUB_OFFLINE and offline options), or name a file of questions",
        )
    return _fetch(name, sha, split)


def _cache() -> Path:
    """Our folder in the cache of `datasets`; elsewhere may lie other configurations of the same data set."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, "qabuild")


def _cached(name: str, sha: str, split: str) -> Any | None:
    """The split as an earlier `load_dataset` of this commit cached it, or None.

    Read directly, since without a network `load_dataset` takes the newest cached version of any commit.
    """
    import datasets

    arrow_files = sorted(
        path
        for path in _cache().glob(f"{_cache_folder(name)}/*/*/{sha}/*.arrow")
        if (path.parent / "dataset_info.json").is_file() and _is_of_split(path.stem, split)
    )
    if not arrow_files:
        return None
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in arrow_files])


def _cache_folder(name: str) -> str:
    """The name of a data set's folder in the cache of `datasets`."""
    from datasets.naming import camelcase_to_snakecase

    namespace, _, last = name.rpartition("/")
    return "___".join(filter(None, (namespace, camelcase_to_snakecase(last))))


def _is_of_split(stem: str, split: str) -> bool:
    """Whether a cached file belongs to the split: 'squad-train' or 'squad-train-00000-of-00002'."""
    return re.fullmatch(rf".*-{re.escape(split)}(-\d+-of-\d+)?", stem) is not None


def _fetch(name: str, sha: str, split: str) -> Any:
    import datasets

    hub.confirm(name, sha, "dataset")
    with _explained(name, sha), hub.bars_on_terminals_only(), _quiet():
        table = datasets.load_dataset(name, revision=sha, split=split, cache_dir=str(_cache()))
    if not all(sha in Path(file["filename"]).parts for file in table.cache_files):
        raise hub.unreachable(name, "dataset", ConnectionError("another commit was taken from the cache"))
    return table


@contextmanager
def _explained(name: str, sha: str) -> Iterator[None]:
    """Convert the exceptions of `load_dataset` into QABuildErrors."""
    from datasets import exceptions
    from pyarrow import ArrowException  # type: ignore[import-untyped]

    problem = f"the data set '{name}' cannot be loaded"
    try:
        with hub.errors_explained(name, sha, "dataset"):
            yield
    except exceptions.DatasetNotFoundError as error:
        raise BadTarget(
            f"{problem}: {first_line(error)}", "for a gated or private one, log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except (exceptions.DatasetGenerationError, ArrowException) as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:  # such as a full disk
            raise error.__cause__ from error
        raise UntrustedInput(
            f"{problem}: {first_line(error.__cause__ or error)}",
            "its files are damaged or differ in layout: name another revision, or give the questions as a file",
        ) from error
    except (exceptions.DatasetsError, FileNotFoundError, ValueError, RuntimeError) as error:
        raise BadTarget(
            f"{problem}: {first_line(error)}",
            "name a data set with the columns id, question, context and answers, and one of its splits",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of `datasets` (it raises its errors too), and its progress bars unless stderr is a terminal."""
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
