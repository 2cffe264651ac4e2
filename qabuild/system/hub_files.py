"""The files of a repository at a commit: a Hub's list of names is checked before a file is written."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from qabuild.errors import UntrustedInput
from qabuild.system import files, hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def download(repo_id: str, sha: str, repo_type: hub.RepoType, patterns: list[str], *, offline: bool = False) -> Path:
    """Download the files of the commit whose names match a pattern; return their folder in the Hub's cache.

    Files of the cache suffice if the Hub does not answer. Raises UntrustedInput as `require_plain` does, BadTarget for
    an unknown repository or commit, QABuildError if the Hub fails and files are missing.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    with hub.errors_explained(repo_id, sha, repo_type), hub.bars_on_terminals_only():
        try:
            cached = hub.is_offline(offline)
            allowed = list(patterns) if cached else only(list_names(HfApi(), repo_id, sha, patterns))
        except errors.RevisionNotFoundError:
            raise
        except (errors.HfHubHTTPError, *hub.network_errors()) as error:
            try:
                return Path(snapshot_download(repo_id, revision=sha, allow_patterns=patterns, local_files_only=True))
            except errors.LocalEntryNotFoundError:
                raise error from None
        return Path(snapshot_download(repo_id, revision=sha, allow_patterns=allowed, local_files_only=cached))


def list_names(api: HfApi, repo_id: str, sha: str, patterns: Sequence[str] = ("*",)) -> list[str]:
    """The names of the commit's files that match a pattern. Raises UntrustedInput as `require_plain` does."""
    # Not `list_repo_files`, which retries for half a minute where the cache would suffice.
    listed = [file.rfilename for file in api.model_info(repo_id, revision=sha, timeout=30).siblings or ()]
    names = [name for name in listed if any(fnmatchcase(name, pattern) for pattern in patterns)]
    require_plain(names, repo_id)
    return names


def only(names: Iterable[str]) -> list[str]:
    """Patterns for huggingface_hub that match exactly these names."""
    return [glob.escape(name) for name in names]


def require_plain(names: Sequence[str], repo_id: str) -> None:
    """Raise UntrustedInput unless every name is a path below a folder, and stays another on any file system."""
    for name, problem in files.strange_names(names):
        raise UntrustedInput(
            f"{repo_id}: the Hub lists a file whose name {problem}: {name!r}",
            "nothing was downloaded; ask the owner of the repository to rename it",
        )
