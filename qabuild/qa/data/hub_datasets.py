"""Questions from data sets on the Hub, loaded with `datasets`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa.data.dataset_ref import DatasetRef
from qabuild.qa.data.questions import QuestionSet, check, question_set
from qabuild.qa.data.records import Record
from qabuild.qa.data.rows import questions_of
from qabuild.system import hub
from qabuild.system.hub import first_line

_SPLIT = re.compile(r"\w+(\.\w+)*")
_CONFIGURATION = re.compile(r"\w[\w.+-]*")


def load_table(ref: DatasetRef, offline: bool) -> QuestionSet:
    """The questions of one split, a table.

    Raises BadTarget for a missing data set, configuration, revision or split, UntrustedInput for damaged questions,
    QABuildError if the Hub fails or, with `offline`, if the split is not in the cache.
    """
    if not _SPLIT.fullmatch(ref.split):
        raise BadTarget(
            f"'{ref.split}' is no name of a split", "name a whole split; use `samples` to draw a part of it"
        )
    if ref.configuration is not None and not _CONFIGURATION.fullmatch(ref.configuration):
        raise BadTarget(f"'{ref.configuration}' is no name of a configuration", f"see the card of '{ref.dataset}'")
    name = str(ref.dataset)
    table = _Table(name, ref.configuration, hub.commit(name, ref.revision, "dataset", offline=offline), ref.split)
    where = str(table)
    records = (Record(f"row {index}", row, row) for index, row in enumerate(table.load(offline)))
    questions = questions_of(records, ref.columns, where)
    check(questions, where, ref.max_misplaced)
    return question_set(questions, name, configuration=ref.configuration, revision=table.sha, split=ref.split)


class _Table(NamedTuple):
    """One split of a data set at exactly this commit."""

    name: str
    configuration: str | None
    sha: str
    split: str

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(filter(None, (self.configuration, self.split)))})"

    def load(self, offline: bool) -> Any:
        """The split as a `datasets.Dataset`, from the cache or else from the Hub."""
        if (cached := _cached(self)) is not None:
            return cached
        if hub.is_offline(offline):
            configuration = f"configuration '{self.configuration}', " if self.configuration else ""
            raise QABuildError(
                f"the data set '{self.name}' ({configuration}revision {self.sha}, split '{self.split}') is not in the "
                "cache, and this run is offline",
                "run once with a network (without HF_HUB_OFFLINE and offline options), or name a file of questions",
            )
        return _fetch(self)


def _cache(configuration: str | None) -> Path:
    """Our folder in the cache of `datasets`, one for each configuration; elsewhere may lie other configurations."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE, "qabuild", configuration or "")


def _cached(table: _Table) -> Any | None:
    """The split as an earlier `load_dataset` of this commit cached it, or None.

    Read directly, since without a network `load_dataset` takes the newest cached version of any commit.
    """
    import datasets

    arrow_files = sorted(
        path
        for path in _cache(table.configuration).glob(f"{_cache_folder(table.name)}/*/*/{table.sha}/*.arrow")
        if (path.parent / "dataset_info.json").is_file() and _is_of_split(path.stem, table.split)
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


def _fetch(table: _Table) -> Any:
    import datasets

    name, configuration, sha, split = table
    hub.confirm(name, sha, "dataset")
    with _explained(name, sha), hub.bars_on_terminals_only(), _quiet():
        loaded = datasets.load_dataset(
            name, configuration, revision=sha, split=split, cache_dir=str(_cache(configuration))
        )
    if not all(sha in Path(file["filename"]).parts for file in loaded.cache_files):
        raise hub.unreachable(name, "dataset", ConnectionError("another commit was taken from the cache"))
    return loaded


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
            f"{problem}: {' '.join(str(error).partition('Example of usage')[0].split())}",
            "name a data set with the columns id, question, context and answers, one of its splits, and its "
            "`configuration` if it has several",
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
