"""Publishes a verified artifact as one commit on the Hub, downloads it and checks it against the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qabuild.artifact import disclosure, readme, signature
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact, open_artifact, write_unsealed
from qabuild.errors import BadTarget, QABuildError, UntrustedInput, VerificationFailed
from qabuild.publishing import preconditions
from qabuild.publishing.login import log_in
from qabuild.publishing.push import Push, content
from qabuild.publishing.repository import MAIN, Change, Snapshot, compare, is_kept
from qabuild.system import arguments, hub, hub_files
from qabuild.system.hub_retry import with_retries
from qabuild.system.reporter import SILENT, Reporter
from qabuild.system.sealed import MANIFEST

LARGEST_FILE = 50 * 10**9
"""Bytes; https://huggingface.co/docs/hub/repositories-recommendations"""


@dataclass(frozen=True, kw_only=True)
class Published:
    """The result of publishing, or of a dry run."""

    repo: str
    revision: str
    commit: str | None
    """The commit that holds all files; None for a dry run of a change."""
    pull_request: str | None
    """URL of the pull request, with `create_pr`."""
    tag: str | None
    manifest: str
    """Digest of the manifest, to pin when loading."""
    changes: Sequence[Change]
    changed: bool
    """False where the Hub held all of it already."""
    verification: Verification | None
    """Result of verifying the download, with `verify_remote`."""
    data: str
    """What the artifact shows of its questions."""
    unchecked: str | None = None
    """Why a dry run did not ask the Hub."""

    def to_dict(self) -> dict[str, Any]:
        verification = self.verification.to_dict() if self.verification else None
        return {**asdict(self), "changes": [asdict(change) for change in self.changes], "verification": verification}


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
    sign: str | Path | None = None,
    reporter: Reporter = SILENT,
) -> Published:
    """Push the artifact at `path` to `repo`, or to where its target says, as one commit; then download and check it.

    `revision` is the branch to commit to; `create_pr` opens a pull request against it instead. `tag` tags the commit.
    An artifact that was not measured on this machine is verified again before it is sent. `dry_run` only lists the
    changes, and what of the questions is shown. It needs neither token nor network; with both, it checks the name, the
    rights and the card, too. `verify_remote` runs the questions on the download again. For both verifications,
    `dataset` is where the questions are, as for `qabuild.verify`. `sign` is a private key: the artifact is signed
    before it is sent, see `qabuild.sign`; a dry run signs nothing.

    Raises BadTarget, VerificationFailed or UntrustedInput for an artifact that must not be published or a repository
    that holds something else, MissingEnvironment without a token that may write, QABuildError where the Hub fails.
    The message of each of the latter states what is on the Hub now; another run resumes from there.
    """
    artifact = open_artifact(Path(arguments.path("path", path)))
    evidence = preconditions.require_verified(artifact)
    repo = _repository(artifact, repo)
    _require_names(revision, tag)
    _require_within_limits(artifact)
    data = disclosure.describe(artifact.reference.data, len(artifact.reference.answers))
    local = content(artifact, evidence, repo, revision)
    preconditions.require_valid_card(artifact, local)
    if dry_run and sign is not None:
        reporter.say(f"signing would add {', '.join(signature.would_write(artifact, sign))}")
    if dry_run and (unchecked := _without_hub()):
        preconditions.require_measured_here(artifact, evidence, dataset, dry_run=True, reporter=reporter)
        changes = compare(local, Snapshot())
        return Published(
            repo=repo,
            revision=revision,
            commit=None,
            pull_request=None,
            tag=tag,
            manifest=artifact.digest,
            changes=changes,
            changed=False,
            verification=None,
            data=data,
            unchecked=unchecked,
        )
    with _with_hub_state(lambda: f"nothing was published: {repo} is as it was"):
        api = with_retries(log_in, repo, reporter)
        preconditions.require_public_data(api, artifact, reporter)
        evidence = preconditions.require_measured_here(artifact, evidence, dataset, dry_run=dry_run, reporter=reporter)
    if sign is not None and not dry_run:
        signature.sign_artifact(artifact, sign)
    push = Push(api, artifact, evidence, repo, private=private, revision=revision, create_pr=create_pr, tag=tag)
    if artifact.reference.data["file"] and not dry_run:
        reporter.say(f"{repo}: shown {data}")
    verification = None
    with _with_hub_state(push.state):
        with_retries(push.check if dry_run else push.attempt, repo, reporter)
        if not dry_run:
            _write_card(artifact, push.content[readme.FILE])
            if push.changed or verify_remote:
                verification = _verify_download(push, verify_remote, dataset, reporter)
            with_retries(push.create_tag, repo, reporter)
    return Published(
        repo=repo,
        revision=revision,
        commit=push.commit,
        pull_request=push.pull_request,
        tag=tag,
        manifest=artifact.digest,
        changes=push.changes,
        changed=push.changed,
        verification=verification,
        data=data,
    )


def _without_hub() -> str | None:
    """Why the Hub cannot be asked; None if it can."""
    from huggingface_hub import get_token

    if hub.is_offline(False):
        return "this run is offline"
    if get_token() is None:
        return "there is no token on this machine"
    try:
        log_in()
    except hub.network_errors() as error:
        return f"it could not be reached: {hub.first_line(error)}" if getattr(error, "response", None) is None else None
    return None


def require_ready(repo: str | None, where: str, reporter: Reporter = SILENT) -> None:
    """Raise, before a build starts, what would prevent publishing: an invalid `repo`, or no token that may write.

    `where` names the target in the message.
    """
    with_retries(log_in, _valid_repo(repo, where), reporter)


@contextmanager
def _with_hub_state(state: Callable[[], str]) -> Iterator[None]:
    """Add the present state of the Hub to every QABuildError."""
    try:
        yield
    except QABuildError as error:
        error.message = f"{error.message}\n  {state()}"
        raise


def _verify_download(push: Push, verify: bool, dataset: str | None, reporter: Reporter) -> Verification | None:
    """Download the commit, check it against the manifest, and with `verify` run the questions on it."""
    assert push.commit is not None
    with TemporaryDirectory() as folder:
        reporter.say(f"{push.repo}: fetching commit {push.commit} back")
        commit = push.commit
        with_retries(lambda: _fetch_back(push, commit, Path(folder)), push.repo, reporter)
        downloaded = open_artifact(Path(folder), push.artifact.digest)
        for name in sorted(set(push.content) - {*push.artifact.manifest.files, MANIFEST}):
            sent, path = push.content[name], downloaded.directory / name
            if not path.is_file() or path.read_bytes() != (sent if isinstance(sent, bytes) else sent.read_bytes()):
                raise UntrustedInput(f"{push.repo}: {name} is not what was sent", "publish again")
        if not verify:
            return None
        verification = preconditions.remeasure(downloaded, dataset, reporter)
    if not verification.passed:
        raise VerificationFailed(*preconditions.explain_failure(verification, Path(push.repo)))
    return verification


def _fetch_back(push: Push, commit: str, folder: Path) -> None:
    """Download the files of the commit. Raises UntrustedInput where the Hub lists others than those sent."""
    names = hub_files.list_names(push.api, push.repo, commit)
    if differing := sorted(name for name in {*names} ^ {*push.content} if not is_kept(name)):
        raise UntrustedInput(
            f"{push.repo}: the commit {commit} does not hold the files that were sent: {', '.join(differing[:5])}",
            "publish again; if the repository is not yours alone, ask who else commits to it",
        )
    push.api.snapshot_download(push.repo, revision=commit, local_dir=folder, allow_patterns=hub_files.only(names))


def _write_card(artifact: Artifact, content: Path | bytes) -> None:
    """Write the card beside the manifest, where the next build preserves what users add to it."""
    assert isinstance(content, bytes)
    write_unsealed(artifact.directory / readme.FILE, content)


def _repository(artifact: Artifact, repo: str | None) -> str:
    return _valid_repo(repo or artifact.manifest.publish.get("repo"), str(artifact.directory))


def _valid_repo(repo: str | None, where: str) -> str:
    """`repo`, if it is a valid repository name. Raises BadTarget otherwise."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if repo is None:
        raise BadTarget(
            f"{where}: its target does not say where to publish it",
            "name a repository as publish.repo in the target, or with --repo of `qabuild publish`",
        )
    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo = f"'{repo}'"
    if repo.count("/") != 1 or repo.startswith("'"):
        raise BadTarget(
            f"{repo} is not a valid name of a repository on the Hub",
            "write owner/name with letters, digits, '-', '_' and '.', without '--' or '..'",
        )
    return repo


def _require_names(revision: str, tag: str | None) -> None:
    for what, name in (("branch", revision), ("tag", tag)):
        if name is not None and not hub.is_revision(name):
            raise BadTarget(
                f"'{name}' is not a valid name of a {what}",
                "use letters, digits, '.', '_', '/', '+' and '-', and no '..'",
            )


def _require_within_limits(artifact: Artifact) -> None:
    for name, file in artifact.manifest.files.items():
        if file.size > LARGEST_FILE:
            raise BadTarget(
                f"{artifact.directory / name}: {file.size / 1e9:.1f} GB, and the Hub accepts no file above "
                f"{LARGEST_FILE / 1e9:.0f} GB",
                "build a smaller artifact, for example in fp16 or int8",
            )
