"""A model repository on the Hub as publishing sees it: what a revision of it holds, and one commit on top of that.

Every function is one attempt and raises what huggingface_hub raises, see `attempts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qabuild.system import files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
ATTRIBUTES = ".gitattributes"
"""What the Hub puts into every repository, and git needs there."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file at a commit: git's own sum of it, and the SHA-256 where it is kept in large file storage."""

    size: int
    oid: str
    sha256: str | None

    def holds(self, content: Path | bytes) -> bool:
        """Whether this is the very same file."""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return self.size == size and (self.sha256 or self.oid) == _sum(content, large=self.sha256 is not None)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a revision of a repository holds; nothing where there is no such repository."""

    exists: bool = False
    private: bool = False
    branch: bool = False
    """Whether the revision is there; if not, this is what the main branch holds, from which it would start."""
    commit: str | None = None
    files: Mapping[str, Blob] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a commit does to one file; `size` is that of the file afterwards, or of the one deleted."""

    name: str
    does: Literal["add", "replace", "delete", "keep"]
    size: int


def look(api: HfApi, repo: str, revision: str) -> Snapshot:
    """What the revision holds now."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info, branch = api.model_info(repo, revision=revision, files_metadata=True), True
    except RepositoryNotFoundError:
        return Snapshot()
    except RevisionNotFoundError:
        info, branch = api.model_info(repo, files_metadata=True), False
    files = {
        file.rfilename: Blob(
            size=file.size or 0, oid=file.blob_id or "", sha256=file.lfs.sha256 if file.lfs is not None else None
        )
        for file in info.siblings or []
    }
    return Snapshot(exists=True, private=bool(info.private), branch=branch, commit=info.sha, files=files)


def compare(wanted: Mapping[str, Path | bytes], snapshot: Snapshot) -> list[Change]:
    """What makes the snapshot hold what is wanted and nothing else, but for what git itself needs there."""
    changes = []
    for name, content in sorted(wanted.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        there = snapshot.files.get(name)
        does: Any = "add" if there is None else "keep" if there.holds(content) else "replace"
        changes.append(Change(name=name, does=does, size=size))
    gone = sorted(set(snapshot.files) - set(wanted) - {ATTRIBUTES})
    return changes + [Change(name=name, does="delete", size=snapshot.files[name].size) for name in gone]


def operations(wanted: Mapping[str, Path | bytes], changes: Sequence[Change]) -> tuple[list[Any], list[Any]]:
    """The changes as huggingface_hub's CommitOperationAdd and CommitOperationDelete."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    return (
        [CommitOperationAdd(c.name, _payload(wanted[c.name])) for c in changes if c.does in ("add", "replace")],
        [CommitOperationDelete(c.name, is_folder=False) for c in changes if c.does == "delete"],
    )


def _payload(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def pull_requests(api: HfApi, repo: str) -> Iterator[tuple[str, Snapshot]]:
    """Address and content of each open pull request."""
    for request in api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"):
        yield request.url, look(api, repo, request.git_reference or f"refs/pr/{request.num}")


def license_of(api: HfApi, checkpoint: Mapping[str, Any]) -> str | None:
    """The license that the checkpoint's own card states; None where it is not on the Hub, or states none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    if not checkpoint["revision"]:
        return None
    try:
        data = api.model_info(checkpoint["name"]).card_data
    except RepositoryNotFoundError:  # renamed or deleted since
        return None
    license = data.get("license") if data is not None else None
    return license if isinstance(license, str) else None


def tagged(api: HfApi, repo: str, tag: str) -> str | None:
    """The commit that the tag names; None where there is no such tag."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return str(api.model_info(repo, revision=tag).sha)
    except RevisionNotFoundError:
        return None


def _sum(content: Path | bytes, *, large: bool) -> str:
    from huggingface_hub.utils.sha import git_hash

    if large:
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else files.sha256(content)
    return str(git_hash(content if isinstance(content, bytes) else content.read_bytes()))
