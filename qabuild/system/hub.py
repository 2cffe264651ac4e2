"""Repositories on the Hub: ids, revisions resolved to commits, and errors with hints."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NoReturn

from qabuild.errors import BadTarget, QABuildError
from qabuild.system import user_folders

SAMPLE = "sample"
"""The name of the embedded data set and checkpoint."""

RepoType = Literal["model", "dataset", "artifact"]
"""What a repository holds. The Hub stores artifacts in model repositories."""

_FULL_SHA = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]*")
_FILE = re.compile(r".+\.(json|jsonl|csv|tsv|parquet)(\.gz)?", re.IGNORECASE)
"""The names of files, which no repository bears."""
_KIND = {"model": "checkpoint", "dataset": "data set", "artifact": "artifact"}


def is_path(source: str | os.PathLike[str]) -> bool:
    """Whether `source` names a file or folder: a path object, or text that begins with '/', '.' or '~'."""
    return not isinstance(source, str) or source.startswith(("/", ".", "~"))


def is_id(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is a Hub id: neither a path nor "sample", which comes with qabuild."""
    return not is_path(source) and source != SAMPLE


def is_revision(name: str) -> bool:
    """Whether `name` is well-formed as a branch, a tag or a commit."""
    return _REVISION.fullmatch(name) is not None


def commit(repo_id: str, revision: str | None, repo_type: RepoType, *, offline: bool = False) -> str:
    """Resolve `revision` (a branch, tag or sha; None: the main branch) of a repository to a full commit sha.

    A full sha is returned unchanged, without a query. For any other the Hub is queried and the answer cached in
    huggingface_hub's `refs`; with `offline` or `HF_HUB_OFFLINE=1` it is read from there.

    Raises BadTarget for a malformed id, an unknown repository or revision; MissingEnvironment where nothing can be
    cached; QABuildError without a network.
    """
    check_id(repo_id, revision, repo_type)
    user_folders.require_hub_cache()
    if revision and _FULL_SHA.fullmatch(revision):
        return revision
    if is_offline(offline):
        return _cached_commit(repo_id, revision, repo_type)
    sha = _query_commit(repo_id, revision, repo_type)
    _cache_commit(repo_id, revision, repo_type, sha)
    return sha


def confirm(repo_id: str, sha: str, repo_type: RepoType) -> None:
    """Check with the Hub that the repository has this commit. Raises as `commit` does."""
    _query_commit(repo_id, sha, repo_type)


def is_offline(offline: bool) -> bool:
    """Whether network access is disabled, by argument or by the environment (`HF_HUB_OFFLINE=1`)."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Hide huggingface_hub's progress bars inside the block unless stderr is a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def network_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a request without a response.

    huggingface_hub sends its requests with requests (before 1.0), httpx (1.x) or httpx2 (2.x). Its own HTTP error
    derives from that library's.
    """
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    library = base.__module__.partition(".")[0]
    *_, root = (error for error in base.__mro__ if error.__module__.partition(".")[0] == library)
    return root, ConnectionError, TimeoutError


@contextmanager
def errors_explained(repo_id: str, revision: str | None, repo_type: RepoType) -> Iterator[None]:
    """Convert huggingface_hub's exceptions inside the block into QABuildErrors with hints."""
    from huggingface_hub import errors

    def not_fetched(error: Exception, hint: str) -> QABuildError:
        return QABuildError(f"the {_KIND[repo_type]} '{repo_id}' could not be fetched: {first_line(error)}", hint)

    try:
        yield
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        _raise_explained(error, repo_id, revision, repo_type)
    except network_errors() as error:
        raise unreachable(repo_id, repo_type, error) from error
    except OSError as error:
        # An errno means a system error, such as a full disk; the caller handles missing files. huggingface_hub raises
        # the rest for malformed responses and corrupt downloads.
        if error.errno is not None or (isinstance(error, FileNotFoundError) and not is_from_xet(error)):
            raise
        raise not_fetched(error, _RETRY_HINT) from error
    except RuntimeError as error:
        if not is_from_xet(error):
            raise
        hint = "check the network and the free space on the disk, or set HF_HUB_DISABLE_XET=1, and try again"
        raise not_fetched(error, hint) from error


def is_from_xet(error: Exception) -> bool:
    """Whether huggingface_hub's transfer by Xet raised the error; the types of its errors differ between versions."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any("xet" in code.co_name and "huggingface_hub" in Path(code.co_filename).parts for code in frames)


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the exception's class name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def unreachable(repo_id: str, repo_type: RepoType, error: Exception) -> QABuildError:
    """The error for a Hub that does not answer."""
    from huggingface_hub import constants

    return QABuildError(
        f"no answer from {constants.ENDPOINT} about the {_KIND[repo_type]} '{repo_id}' ({type(error).__name__})",
        f"check the network and try again; with HF_HUB_OFFLINE=1 only what is in the cache is used; "
        f"{_local_hint(repo_id)}",
    )


def _local_hint(repo_id: str) -> str:
    """For who meant a file or a folder: nothing of that name is here, see `check_id`."""
    return f"a file or folder of yours is written './{repo_id}', and none of that name is here"


_RETRY_HINT = "try again later; if it persists, check https://status.huggingface.co"


def _raise_explained(error: Exception, repo_id: str, revision: str | None, repo_type: RepoType) -> NoReturn:
    """`error` is an HfHubHTTPError or a LocalEntryNotFoundError, which is none from huggingface_hub 1 on."""
    from huggingface_hub import errors

    kind = _KIND[repo_type]
    if isinstance(error, errors.GatedRepoError):
        raise BadTarget(
            f"the {kind} '{repo_id}' is gated",
            "request access on its Hub page, then log in with `hf auth login` or set HF_TOKEN",
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise BadTarget(
            f"there is no {kind} '{repo_id}' on the Hub, or it is private",
            "check the spelling; for a private one log in with `hf auth login`; for a local one write './...'",
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise BadTarget(
            f"the {kind} '{repo_id}' has no revision '{revision or 'main'}'",
            "name a branch, a tag or a commit sha from its history on the Hub",
        ) from error
    if isinstance(error, errors.LocalEntryNotFoundError):
        raise QABuildError(
            f"parts of the {kind} '{repo_id}' ({revision or 'main'}) could not be fetched and are not in the cache",
            "check the network; run once without HF_HUB_OFFLINE and without offline options",
        ) from error
    status = getattr(getattr(error, "response", None), "status_code", None)
    raise QABuildError(f"the Hub refused the {kind} '{repo_id}' (HTTP status {status})", _RETRY_HINT) from error


def check_id(repo_id: str, revision: str | None, repo_type: RepoType) -> None:
    """Raise BadTarget unless they can be the id and a revision of a repository; asks no Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    kind = _KIND[repo_type]
    if _FILE.fullmatch(repo_id) and not os.path.exists(repo_id):
        raise BadTarget(
            f"{repo_id}: there is no such file",
            f"check the path, which begins with './', '../', '/' or '~', as in './{repo_id}'; a {kind} on the Hub has "
            "an id like 'owner/name'",
        )
    if repo_type != "artifact" and difflib.get_close_matches(repo_id.lower(), [SAMPLE], cutoff=0.8):
        raise BadTarget(f"there is no {kind} '{repo_id}'; perhaps you meant 'sample'", "'sample' is the embedded one")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise BadTarget(
            f"no {kind} on the Hub has the id '{repo_id}'",
            "an id looks like 'owner/name'; a local path begins with './', '../', '/' or '~'",
        ) from error
    if Path(repo_id).exists():
        raise BadTarget(
            f"'{repo_id}' is taken as the id of a {kind} on the Hub, but a local file or folder has that name",
            f"write './{repo_id}' for the local one, or run in another folder",
        )
    if revision is not None and not is_revision(revision):
        raise BadTarget(f"'{revision}' is no revision of a repository", "name a branch, a tag or a commit sha")


def _hub_repo_type(repo_type: RepoType) -> str:
    return "dataset" if repo_type == "dataset" else "model"


def _query_commit(repo_id: str, revision: str | None, repo_type: RepoType) -> str:
    from huggingface_hub import HfApi

    with errors_explained(repo_id, revision, repo_type):
        sha = HfApi().repo_info(repo_id, revision=revision, repo_type=_hub_repo_type(repo_type), timeout=30).sha
    return require_sha(sha, f"the {_KIND[repo_type]} '{repo_id}'")


def require_sha(sha: object, about: str) -> str:
    """`sha`, if it is the full sha of a commit, as it becomes the name of a folder. Raises QABuildError otherwise."""
    if not isinstance(sha, str) or not _FULL_SHA.fullmatch(sha):
        raise QABuildError(f"the Hub named no commit of {about}", _RETRY_HINT)
    return sha


def _ref_path(repo_id: str, revision: str | None, repo_type: RepoType) -> Path:
    """The file in huggingface_hub's cache with the commit that a branch or tag had when last queried."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repo_id, repo_type=_hub_repo_type(repo_type))
    return Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main")


def _cache_commit(repo_id: str, revision: str | None, repo_type: RepoType, sha: str) -> None:
    ref = _ref_path(repo_id, revision, repo_type)
    with suppress(OSError):  # a cache that is not writable does not stop this run
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(sha)


def _cached_commit(repo_id: str, revision: str | None, repo_type: RepoType) -> str:
    ref = _ref_path(repo_id, revision, repo_type)
    sha = ref.read_text().strip() if ref.is_file() else ""
    if not _FULL_SHA.fullmatch(sha):
        raise QABuildError(
            f"the {_KIND[repo_type]} '{repo_id}' ({revision or 'main'}) is not in the cache, and this run is offline",
            f"run once with a network (without HF_HUB_OFFLINE and offline options); {_local_hint(repo_id)}",
        )
    return sha
