"""From a verified artifact to one commit on the Hub, fetched back and held against the manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from qabuild import artifact as artifacts
from qabuild import card, proof, repository
from qabuild.artifact import Artifact
from qabuild.attempts import log_in, persistently
from qabuild.console import SILENT, Reporter
from qabuild.errors import BadTarget, QABuildError, UntrustedInput, VerificationFailed
from qabuild.evidence import Verification
from qabuild.repository import MAIN, Change, Snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LARGEST_FILE = 50 * 10**9
"""Bytes; https://huggingface.co/docs/hub/storage-limits"""


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
    found = proof.require(artifact)
    repo = _repository(artifact, repo)
    _require_within_limits(artifact)
    api = persistently(log_in, repo, reporter)
    push = _Push(api, artifact, found, repo, private=private, revision=revision, create_pr=create_pr, tag=tag)
    with push.explained():
        persistently(push.look if dry_run else push.attempt, repo, reporter)
        if not dry_run:
            _write_card(artifact, push.wanted[card.FILE])
            if push.changed or verify_remote:
                verified = _fetch_back(push, verify_remote, dataset, reporter)
            persistently(push.name_it, repo, reporter)
    return Published(
        repo=repo,
        revision=revision,
        commit=push.commit,
        pull_request=push.pull_request,
        tag=tag,
        manifest=artifact.digest,
        changes=push.changes,
        changed=push.changed,
        verification=verified if not dry_run and (push.changed or verify_remote) else None,
    )


def require_ready(repo: str | None, where: str, reporter: Reporter = SILENT) -> None:
    """Raise what would keep anything from being published there, before the work that makes it."""
    persistently(log_in, _named(repo, where), reporter)


@dataclass(kw_only=False)
class _Push:
    """One artifact on its way to one repository; `attempt` may be called until it succeeds."""

    api: HfApi
    artifact: Artifact
    found: Verification
    repo: str
    private: bool
    revision: str
    create_pr: bool
    tag: str | None
    snapshot: Snapshot = field(default_factory=lambda: Snapshot(exists=False, files={}))
    wanted: Mapping[str, Path | bytes] = field(default_factory=dict)
    changes: Sequence[Change] = ()
    made: bool = False
    """Whether the repository was made by this run."""
    sent: bool = False
    """Whether a commit was asked for, whatever came of it."""
    commit: str | None = None
    pull_request: str | None = None
    changed: bool = False

    def attempt(self) -> None:
        """Look, and do what is left to do."""
        self.look()
        self._refuse_other_tag()
        if self._is_there() or (self.create_pr and self._is_proposed()):
            self.changed = self.sent
            return
        if not self.snapshot.exists:
            self.api.create_repo(self.repo, private=self.private, exist_ok=True)
            self.made = True
            self.look()
        if self.revision != MAIN and not self.create_pr:
            self.api.create_branch(self.repo, branch=self.revision, exist_ok=True)
        self.sent = True
        self.commit, self.pull_request = repository.commit(
            self.api,
            self.repo,
            self.wanted,
            self.changes,
            self.snapshot,
            revision=self.revision,
            create_pr=self.create_pr,
            message=_message(self.artifact, self.found),
        )
        self.changed = True

    def look(self) -> None:
        """Find out what the repository holds, and what would have to change. Refuses to replace anything else."""
        self.snapshot = repository.look(self.api, self.repo, self.revision)
        if self.private and self.snapshot.exists and not self.snapshot.private:
            raise BadTarget(f"{self.repo} is public", "make it private on its page, or publish without --private")
        with TemporaryDirectory() as folder:
            there = self._fetched(Path(folder))
            if not self.create_pr:
                self._refuse_other_content(Path(folder))
            own = card.merge(card.read(_text(self.artifact.directory / card.FILE)), card.read(there))
            written = card.make(
                self.artifact,
                self.found,
                own,
                repo=self.repo,
                revision=self.revision,
                base_license=repository.license_of(self.api, self.artifact.manifest.checkpoint),
            )
        self.wanted = {**_files(self.artifact), card.FILE: written.encode()}
        self.changes = repository.compare(self.wanted, self.snapshot)

    def name_it(self) -> None:
        """Put the tag on the commit, where one is wanted and is not there."""
        if self.tag and repository.tagged(self.api, self.repo, self.tag) is None:
            self.api.create_tag(self.repo, tag=self.tag, revision=self.commit, exist_ok=True)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add to every error what is on the Hub now."""
        try:
            yield
        except QABuildError as error:
            error.message = f"{error.message}\n  {self._state()}"
            raise

    def _state(self) -> str:
        if self.commit:
            missing = f"; the tag '{self.tag}' is missing" if self.tag else ""
            return f"all files are at {self.repo}, commit {self.commit}{missing}: another run completes it"
        if self.sent:
            return f"whether the commit to {self.repo} was made is not known: another run finds out, and completes it"
        if self.made:
            return f"{self.repo} was made and is empty: another run completes it"
        return f"nothing was published: {self.repo} is as it was"

    def _fetched(self, folder: Path) -> str | None:
        """The card that is there; the manifest is downloaded beside it."""
        commit, files = self.snapshot.commit, self.snapshot.files
        for name in (artifacts.MANIFEST, card.FILE):
            if commit and name in files:
                repository.fetch_file(self.api, self.repo, commit, name, folder)
        return _text(folder / card.FILE)

    def _refuse_other_content(self, folder: Path) -> None:
        try:
            own = {*artifacts.read_manifest(folder).files, artifacts.MANIFEST, artifacts.EVIDENCE}
        except QABuildError:  # there is none, or it is that of something else
            own = set()
        if others := sorted(set(self.snapshot.files) - own - {card.FILE, repository.ATTRIBUTES}):
            shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            raise BadTarget(
                f"{self.repo} ({self.revision}) holds something else, which would be replaced: {shown}",
                "name another repository with --repo, delete these files there, or propose it with --create-pr",
            )

    def _refuse_other_tag(self) -> None:
        if self.tag and self.snapshot.exists:
            at = repository.tagged(self.api, self.repo, self.tag)
            if at is not None and not (self._is_there() and at == self.snapshot.commit):
                raise BadTarget(
                    f"{self.repo}: the tag '{self.tag}' names another commit, {at}", "choose another tag, or delete it"
                )

    def _is_there(self) -> bool:
        if self.changes and all(change.does == "keep" for change in self.changes):
            self.commit = self.snapshot.commit
            return True
        return False

    def _is_proposed(self) -> bool:
        """Whether an open pull request holds this already, as after an answer that was lost."""
        if not self.snapshot.exists:
            return False
        for address, snapshot in repository.pull_requests(self.api, self.repo):
            if all(change.does == "keep" for change in repository.compare(self.wanted, snapshot)):
                self.commit, self.pull_request = snapshot.commit, address
                return True
        return False


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _files(artifact: Artifact) -> dict[str, Path | bytes]:
    """Everything that makes up the artifact, but for the card, by its name in the repository."""
    names = (*artifact.manifest.files, artifacts.MANIFEST, artifacts.EVIDENCE)
    return {name: artifact.directory / name for name in names}


def _message(artifact: Artifact, found: Verification) -> tuple[str, str]:
    """The commit's first line and description."""
    m, key = found.measurement, str(artifact.manifest.steps.get("compile"))[:12]
    result = f"EM {m.exact_match:.2f}, F1 {m.f1:.2f} ({100 * m.f1_retention:.2f} % kept)"
    return f"{artifact.manifest.name} {key}: {result}", f"Manifest SHA-256: {artifact.digest}"


def _fetch_back(push: _Push, verify: bool, dataset: str | None, reporter: Reporter) -> Verification | None:
    """Download the commit, hold it against the manifest, and with `verify` put the questions through it."""
    assert push.commit is not None
    with TemporaryDirectory() as folder:
        reporter.say(f"{push.repo}: fetching commit {push.commit} back")
        persistently(
            lambda: push.api.snapshot_download(push.repo, revision=push.commit, local_dir=folder), push.repo, reporter
        )
        fetched = artifacts.open_artifact(Path(folder), push.artifact.digest)
        for name in (artifacts.EVIDENCE, card.FILE):
            sent, path = push.wanted[name], fetched.directory / name
            if not path.is_file() or path.read_bytes() != (sent if isinstance(sent, bytes) else sent.read_bytes()):
                raise UntrustedInput(f"{push.repo}: {name} is not what was sent", "publish again")
        if not verify:
            return None
        found = proof.remeasure(fetched, dataset, reporter)
    if not found.passed:
        raise VerificationFailed(*proof.explain_failure(found, Path(push.repo)))
    return found


def _write_card(artifact: Artifact, content: Path | bytes) -> None:
    """Put the card beside the manifest, where the next build keeps what people add to it."""
    assert isinstance(content, bytes)
    partial = artifact.directory / f".{artifacts.EVIDENCE}.partial"
    try:
        partial.write_bytes(content)
        os.replace(partial, artifact.directory / card.FILE)
    finally:
        partial.unlink(missing_ok=True)


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


def _require_within_limits(artifact: Artifact) -> None:
    for name, file in artifact.manifest.files.items():
        if file.size > LARGEST_FILE:
            raise BadTarget(
                f"{artifact.directory / name}: {file.size / 1e9:.1f} GB, and the Hub takes no file above "
                f"{LARGEST_FILE / 1e9:.0f} GB",
                "build a smaller one, as in fp16 or int8",
            )
