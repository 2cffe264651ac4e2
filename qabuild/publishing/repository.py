"""A model repository on the Hub: the content of a revision, and the changes of one commit on top of it.

No function retries; each raises what huggingface_hub raises, see `qabuild.system.hub_retry`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qabuild.publishing import eval_results
from qabuild.system import files, hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
ATTRIBUTES = ".gitattributes"
"""The Hub adds this file to every repository, and git needs it."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file at a commit: its git object id, and its SHA-256 where it is in Git LFS."""

    size: int
    oid: str
    sha256: str | None

    def holds(self, content: Path | bytes) -> bool:
        """Whether its bytes are those of `content`."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return self.size == size and (self.sha256 or self.oid) == _digest(content, large=self.sha256 is not None)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The content of a revision of a repository; empty where the repository does not exist."""

    exists: bool = False
    private: bool = False
    branch: bool = False
    """Whether the revision exists; if not, this is the content of the main branch, from which it would start."""
    commit: str | None = None
    files: Mapping[str, Blob] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit does to one file; `size` is in bytes, of the new file or of the deleted one."""

    name: str
    does: Literal["add", "replace", "delete", "keep"]
    size: int


def inspect(api: HfApi, repo: str, revision: str) -> Snapshot:
    """The present content of the revision."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info, branch = api.model_info(repo, revision=revision, files_metadata=True), True
    except RepositoryNotFoundError:
        return Snapshot()
    except RevisionNotFoundError:
        info, branch = api.model_info(repo, files_metadata=True), False
    blobs = {
        file.rfilename: Blob(
            size=file.size or 0, oid=file.blob_id or "", sha256=file.lfs.sha256 if file.lfs is not None else None
        )
        for file in info.siblings or []
    }
    sha = hub.require_sha(info.sha, repo)
    return Snapshot(exists=True, private=bool(info.private), branch=branch, commit=sha, files=blobs)


def is_kept(name: str) -> bool:
    """Whether publishing never deletes that file: git's attributes, and evaluation results that others added."""
    return name == ATTRIBUTES or eval_results.is_of_others(name)


def compare(content: Mapping[str, Path | bytes], snapshot: Snapshot) -> list[Change]:
    """The changes that turn the snapshot into `content`, by file name, but for files that are kept."""
    changes = []
    for name, file in sorted(content.items()):
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        blob = snapshot.files.get(name)
        does: Any = "add" if blob is None else "keep" if blob.holds(file) else "replace"
        changes.append(Change(name=name, does=does, size=size))
    deleted = sorted(name for name in set(snapshot.files) - set(content) if not is_kept(name))
    return changes + [Change(name=name, does="delete", size=snapshot.files[name].size) for name in deleted]


def operations(content: Mapping[str, Path | bytes], changes: Sequence[Change]) -> tuple[list[Any], list[Any]]:
    """The changes as huggingface_hub's CommitOperationAdd and CommitOperationDelete."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    return (
        [CommitOperationAdd(c.name, _payload(content[c.name])) for c in changes if c.does in ("add", "replace")],
        [CommitOperationDelete(c.name, is_folder=False) for c in changes if c.does == "delete"],
    )


def _payload(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def pull_requests(api: HfApi, repo: str) -> Iterator[tuple[str, Snapshot]]:
    """URL and content of each open pull request."""
    for request in api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"):
        yield request.url, inspect(api, repo, request.git_reference or f"refs/pr/{request.num}")


def license_of(api: HfApi, checkpoint: Mapping[str, Any]) -> str | None:
    """The license that the checkpoint's model card states; None where it states none or is not on the Hub."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if not checkpoint["revision"]:
        return None
    try:
        data = api.model_info(checkpoint["name"]).card_data
    except RepositoryNotFoundError:  # renamed or deleted since
        return None
    license = data.get("license") if data is not None else None
    return license if isinstance(license, str) else None


def validate_card(api: HfApi, text: str) -> None:
    """Let the Hub check the card, as it does before a commit. Raises ValueError for metadata that it refuses."""
    api._validate_yaml(text, repo_type="model")


def is_public(api: HfApi, dataset: str) -> bool | None:
    """Whether anyone can read the data set; None if this account cannot find it either."""
    from huggingface_hub.errors import RepositoryNotFoundError

    for token in (False, None):
        try:
            info = api.dataset_info(dataset, token=token)
        except RepositoryNotFoundError:
            continue
        return token is False and not info.gated
    return None


def tagged_commit(api: HfApi, repo: str, tag: str) -> str | None:
    """The commit that the tag names; None where the tag does not exist."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return str(api.model_info(repo, revision=tag).sha)
    except RevisionNotFoundError:
        return None


def _digest(content: Path | bytes, *, large: bool) -> str:
    from huggingface_hub.utils.sha import git_hash

    if large:
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else files.sha256(content)
    return str(git_hash(content if isinstance(content, bytes) else content.read_bytes()))
