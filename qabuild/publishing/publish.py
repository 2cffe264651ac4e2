"""From a verified artifact to one commit on the Hub, fetched back and held against the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import readme
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, QABuildError, UntrustedInput, VerificationFailed
from qabuild.publishing import preconditions
from qabuild.publishing.login import log_in
from qabuild.publishing.push import Push
from qabuild.publishing.repository import MAIN, Change
from qabuild.system import hub
from qabuild.system.hub_retry import with_retries
from qabuild.system.reporter import SILENT, Reporter

LARGEST_FILE = 50 * 10**9
"""Bytes; https://huggingface.co/docs/hub/repositories-recommendations"""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What publishing did, or with `dry_run` would do."""

    repo: str
    revision: str
    commit: str | None
    """Where all files are; None where nothing was to be done in earnest."""
    pull_request: str | None
    """Its address, where one was asked for."""
    tag: str | None
    manifest: str
    """Digest of the manifest, to pin when loading."""
    changes: Sequence[Change]
    changed: bool
    """False where all of it was there already."""
    verification: Verification | None
    """What the download answered, where that was asked for."""

    def to_dict(self) -> dict[str, Any]:
        found = self.verification.to_dict() if self.verification else None
        return {**asdict(self), "changes": [asdict(change) for change in self.changes], "verification": found}


def publish(
    path: str | Path,
    repo: str | None = None,
    *,
    private: bool = False,
    revision: str = MAIN,
    create_pr: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
    verify_remote: bool = False,
    dataset: str | None = None,
    reporter: Reporter = SILENT,
) -> Published:
    """Push the artifact at `path` to `repo`, or to where its target says, as one commit; then fetch it back.

    `revision` is the branch that it goes to; with `create_pr` it is proposed there instead. `tag` names the commit.
    `dry_run` only lists what would change. `verify_remote` puts the questions through what was downloaded again;
    `dataset` is where they are, as for `qabuild.verify`.

    Raises BadTarget, VerificationFailed or UntrustedInput for an artifact that must not be published or a repository
    that holds something else, MissingEnvironment without a token that may write, QABuildError where the Hub fails.
    Each of the latter says what is on the Hub now; another run goes on from there.
    """
    artifact = artifacts.open_artifact(Path(path))
    found = preconditions.require(artifact)
    repo = _repository(artifact, repo)
    _require_names(revision, tag)
    _require_within_limits(artifact)
    with _telling(lambda: f"nothing was published: {repo} is as it was"):
        api = with_retries(log_in, repo, reporter)
    push = Push(api, artifact, found, repo, private=private, revision=revision, create_pr=create_pr, tag=tag)
    verified = None
    with _telling(push.state):
        with_retries(push.look if dry_run else push.attempt, repo, reporter)
        if not dry_run:
            _write_card(artifact, push.wanted[readme.FILE])
            if push.changed or verify_remote:
                verified = _fetch_back(push, verify_remote, dataset, reporter)
            with_retries(push.name_it, repo, reporter)
    return Published(
        repo=repo,
        revision=revision,
        commit=push.commit,
        pull_request=push.pull_request,
        tag=tag,
        manifest=artifact.digest,
        changes=push.changes,
        changed=push.changed,
        verification=verified,
    )


def require_ready(repo: str | None, where: str, reporter: Reporter = SILENT) -> None:
    """Raise what would keep anything from being published there, before the work that makes it."""
    with_retries(log_in, _named(repo, where), reporter)


@contextmanager
def _telling(state: Callable[[], str]) -> Iterator[None]:
    """Add to every error what is on the Hub now."""
    try:
        yield
    except QABuildError as error:
        error.message = f"{error.message}\n  {state()}"
        raise


def _fetch_back(push: Push, verify: bool, dataset: str | None, reporter: Reporter) -> Verification | None:
    """Download the commit, hold it against the manifest, and with `verify` put the questions through it."""
    assert push.commit is not None
    with TemporaryDirectory() as folder:
        reporter.say(f"{push.repo}: fetching commit {push.commit} back")
        with_retries(
            lambda: push.api.snapshot_download(push.repo, revision=push.commit, local_dir=folder), push.repo, reporter
        )
        fetched = artifacts.open_artifact(Path(folder), push.artifact.digest)
        for name in (artifacts.EVIDENCE, readme.FILE):
            sent, path = push.wanted[name], fetched.directory / name
            if not path.is_file() or path.read_bytes() != (sent if isinstance(sent, bytes) else sent.read_bytes()):
                raise UntrustedInput(f"{push.repo}: {name} is not what was sent", "publish again")
        if not verify:
            return None
        found = preconditions.remeasure(fetched, dataset, reporter)
    if not found.passed:
        raise VerificationFailed(*preconditions.explain_failure(found, Path(push.repo)))
    return found


def _write_card(artifact: Artifact, content: Path | bytes) -> None:
    """Put the card beside the manifest, where the next build keeps what people add to it."""
    assert isinstance(content, bytes)
    artifacts.write_unsealed(artifact.directory / readme.FILE, content)


def _repository(artifact: Artifact, repo: str | None) -> str:
    return _named(repo or artifact.manifest.publish.get("repo"), str(artifact.directory))


def _named(repo: str | None, where: str) -> str:
    """The repository's name, once it is one. Raises BadTarget."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo is None:
        raise BadTarget(
            f"{where}: its target does not say where to publish it",
            "name a repository with --repo owner/name, or as publish.repo in the target",
        )
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = f"'{repo}'"
    if repo.count("/") != 1 or repo.startswith("'"):
        raise BadTarget(
            f"{repo} is no name of a repository on the Hub",
            "it looks like owner/name, of letters, digits, '-', '_' and '.', and with no '--' or '..' in it",
        )
    return repo


def _require_names(revision: str, tag: str | None) -> None:
    for what, name in (("branch", revision), ("tag", tag)):
        if name is not None and not hub.is_revision(name):
            raise BadTarget(f"'{name}' is no name of a {what}", "use letters, digits, '.', '_', '/', '+' and '-'")


def _require_within_limits(artifact: Artifact) -> None:
    for name, file in artifact.manifest.files.items():
        if file.size > LARGEST_FILE:
            raise BadTarget(
                f"{artifact.directory / name}: {file.size / 1e9:.1f} GB, and the Hub takes no file above "
                f"{LARGEST_FILE / 1e9:.0f} GB",
                "build a smaller one, as in fp16 or int8",
            )
