"""Resolves a Hub id, a folder or "sample" to a checkpoint that is safe to load.

`resolve` finds or downloads the files, inspects them without deserialising any, and hashes them; it imports no heavy
package. `load_model` and `load_tokenizer` of `checkpoint.load` refuse what only loading shows.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.checkpoint.inspect import (
    CONFIG,
    TOKENIZER_PATTERNS,
    examine_config,
    examine_tokenizer,
)
from qabuild.models.checkpoint.weights import PATTERNS as WEIGHT_PATTERNS
from qabuild.models.checkpoint.weights import examine_weights, refuse_headless
from qabuild.system import files, hub, hub_files

PATTERNS = (CONFIG, *WEIGHT_PATTERNS, *TOKENIZER_PATTERNS)
"""Names of the files of a checkpoint; all others in its folder do not matter."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder with config.json, safetensors and tokenizer files, inspected and hashed.

    `name` is a Hub id, "sample" or the folder's name, never a full path: it goes into the manifest. `revision` is the
    commit sha of a Hub id. `digest` is the SHA-256, in hex, over the lines `name NUL sha256 LF` of its files, sorted.
    """

    directory: Path
    name: str
    revision: str | None
    digest: str
    config: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The checkpoint in JSON, for a process that finds the same folder."""
        return {**self.__dict__, "directory": str(self.directory)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "directory": Path(document["directory"])})


def resolve(
    source: str | os.PathLike[str],
    revision: str | None = None,
    *,
    digest: str | None = None,
    head: bool = True,
    offline: bool = False,
) -> Checkpoint:
    """Resolve `source`: "sample", a folder (begins with '/', '.' or '~', or is a path object) or a Hub id.

    `revision`, for a Hub id only, is a branch, tag or sha; None means the main branch. `digest` pins the checkpoint's
    digest. `head=False` accepts a checkpoint without a question-answering head, which is yet to be trained. With
    `offline`, or HF_HUB_OFFLINE=1, a Hub id is looked up in the cache only.

    Raises BadTarget if the source does not exist or is no text encoder; UntrustedInput if it is damaged, unsafe to
    load or has another digest; QABuildError if the Hub fails.
    """
    checkpoint = _resolved(source, revision, head, offline)
    if digest not in (None, checkpoint.digest):
        raise UntrustedInput(
            f"{source}: its digest is {checkpoint.digest}, pinned is {digest}",
            "give the checkpoint that was pinned; if the change is wanted, lock the target again",
        )
    return checkpoint


def _resolved(source: str | os.PathLike[str], revision: str | None, head: bool, offline: bool) -> Checkpoint:
    if not hub.is_id(source):
        if revision is not None:
            raise BadTarget(
                f"revision '{revision}' is given for the checkpoint '{source}', which is not on the Hub",
                "leave out the revision, or name a Hub id",
            )
        return _examined(_local(source), hub.SAMPLE if source == hub.SAMPLE else _folder_name(source), None, head)
    sha = hub.commit(str(source), revision, "model", offline=offline)
    directory = _downloaded(str(source), sha, offline)
    return _examined(directory, str(source), sha, head, _other_hub_files(str(source), sha, directory, offline))


def _examined(
    directory: Path, name: str, revision: str | None, head: bool, other_files: Sequence[str] = ()
) -> Checkpoint:
    config = examine_config(directory)
    weights = examine_weights(directory, other_files)
    if head:
        refuse_headless(weights, config, directory)
    tokenizer = examine_tokenizer(directory, weights.embedding_rows or _vocab_size(config))
    return Checkpoint(
        directory=directory,
        name=name,
        revision=revision,
        digest=_digest(directory, (CONFIG, *weights.files, *tokenizer)),
        config=config,
    )


def _vocab_size(config: Mapping[str, Any]) -> int | None:
    size = config.get("vocab_size")
    return size if isinstance(size, int) else None


def _digest(directory: Path, names: Sequence[str]) -> str:
    lines = []
    for name in sorted(names):
        lines.append(f"{name}\0{files.sha256(directory / name)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _local(source: str | os.PathLike[str]) -> Path:
    if source == hub.SAMPLE:
        from qabuild.qa import sample

        return Path(sample.CHECKPOINT)
    directory = Path(os.path.expanduser(source)).absolute()
    if not directory.is_dir():
        problem = "is a file, not a folder" if directory.exists() else "there is no such folder"
        raise BadTarget(
            f"{source}: {problem}",
            "name the folder with config.json, model.safetensors and the tokenizer; a Hub id is written 'owner/name'",
        )
    return directory


def _folder_name(source: str | os.PathLike[str]) -> str:
    return Path(os.path.expanduser(source)).resolve().name or "checkpoint"


def _downloaded(name: str, sha: str, offline: bool) -> Path:
    """Download config, safetensors and tokenizer of this commit, nothing else; return the folder in the Hub's cache."""
    return hub_files.download(name, sha, "model", list(PATTERNS), offline=offline)


def _other_hub_files(name: str, sha: str, directory: Path, offline: bool) -> Sequence[str]:
    """The repository's files, to name the weights' format in an error; queried only if safetensors are missing."""
    if hub.is_offline(offline) or any(path for pattern in WEIGHT_PATTERNS for path in directory.glob(pattern)):
        return ()
    from huggingface_hub import HfApi

    with hub.errors_explained(name, sha, "model"):
        return tuple(HfApi().list_repo_files(name, revision=sha))
