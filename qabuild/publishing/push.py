"""Pushes one artifact to one repository: inspect, commit, tag. Each step is idempotent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from qabuild.artifact import readme, stages
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import EVIDENCE, SIGNATURES, Artifact, read_manifest
from qabuild.errors import BadTarget, QABuildError
from qabuild.publishing import card, eval_results, login, repository
from qabuild.publishing.repository import Change, Snapshot
from qabuild.system import files, hub
from qabuild.system.sealed import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass
class Push:
    """`attempt` and `create_tag` may be called again after any failure, in this run or another."""

    api: HfApi
    artifact: Artifact
    evidence: Verification
    repo: str
    private: bool
    revision: str
    create_pr: bool
    tag: str | None
    snapshot: Snapshot = field(default_factory=Snapshot)
    """What the repository held at the last `refresh`."""
    content: Mapping[str, Path | bytes] = field(default_factory=dict)
    """What it shall hold: the files of the artifact and its card, by name."""
    changes: Sequence[Change] = ()
    created: bool = False
    """Whether this run created the repository."""
    sent: bool = False
    """Whether a commit was sent that the Hub may have made without its response arriving."""
    commit: str | None = None
    pull_request: str | None = None
    changed: bool = False
    """Whether this run made the commit."""

    def attempt(self) -> None:
        """Inspect the repository, and make the commit if it is missing."""
        self.refresh()
        self._refuse_other_tag()
        if self._is_published() or (self.create_pr and self._is_proposed()):
            self.changed = self.sent
            return
        repository.validate_card(self.api, _text(self.content[readme.FILE]))
        if not self.snapshot.exists:
            self.api.create_repo(self.repo, private=self.private)
            self.created = True
            self.refresh()
        if not self.snapshot.branch:
            self.api.create_branch(self.repo, branch=self.revision, revision=self.snapshot.commit)
        self._commit()

    def check(self) -> None:
        """Check everything that `attempt` needs, and change nothing. Raises as `attempt` does."""
        self.refresh()
        self._refuse_other_tag()
        if not self.create_pr:
            login.require_rights(self.api, self.repo)
        repository.validate_card(self.api, _text(self.content[readme.FILE]))

    def refresh(self) -> None:
        """Read the repository and compute the changes. Raises BadTarget where they would replace other content."""
        self.snapshot = repository.inspect(self.api, self.repo, self.revision)
        if self.private and self.snapshot.exists and not self.snapshot.private:
            raise BadTarget(f"{self.repo} is public", "make it private on its page, or publish without --private")
        with TemporaryDirectory() as folder:
            self._fetch(MANIFEST, Path(folder))
            if self.snapshot.branch and not self.create_pr:  # a pull request leaves the branch as it is
                self._refuse_other_content(Path(folder))
            remote_card = self._fetch(readme.FILE, Path(folder))
        license = repository.license_of(self.api, stages.source(self.artifact.manifest))
        self.content = content(self.artifact, self.evidence, self.repo, self.revision, remote_card, license)
        self.changes = repository.compare(self.content, self.snapshot)

    def create_tag(self) -> None:
        """Tag the commit, where a tag is requested and missing."""
        if self.tag and repository.tagged_commit(self.api, self.repo, self.tag) != self.commit:
            self.api.create_tag(self.repo, tag=self.tag, revision=self.commit)

    def state(self) -> str:
        """The state of the Hub after an error, for its message."""
        if self.sent and not self.commit:
            with suppress(Exception):  # the Hub may still fail as it just did
                self.refresh()
                self.sent = self._is_published()
        if self.commit:
            tag = f"; the tag '{self.tag}' may be missing" if self.tag else ""
            return f"all files are at {self.repo}, commit {self.commit}{tag}: another run completes it"
        if self.sent:
            return f"whether the commit to {self.repo} was made is not known: another run checks, and completes it"
        if self.created:
            return f"{self.repo} was made and is empty: another run completes it"
        return f"nothing was published: {self.repo} is as it was"

    def _commit(self) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        add, delete = repository.operations(self.content, self.changes)
        self.api.preupload_lfs_files(
            self.repo, add, revision=self.revision, create_pr=self.create_pr, free_memory=False
        )
        title, description = _message(self.artifact, self.evidence)
        self.sent = True
        try:
            commit = self.api.create_commit(
                self.repo,
                [*add, *delete],
                commit_message=title,
                commit_description=description,
                revision=self.revision,
                create_pr=self.create_pr,
                # If the branch has a newer commit, the Hub refuses this one, and the retry reads the repository again.
                # Without the parent, this commit would overwrite parts of the newer one.
                parent_commit=self.snapshot.commit,
            )
        except HfHubHTTPError as error:
            self.sent = error.response.status_code >= 500
            raise
        self.pull_request, self.changed = commit.pr_url, True
        self.commit = hub.require_sha(commit.oid, self.repo)

    def _fetch(self, name: str, folder: Path) -> str | None:
        """The text of a file of the snapshot, downloaded into `folder`; None where the snapshot lacks it."""
        if self.snapshot.commit is None or name not in self.snapshot.files:
            return None
        path = self.api.hf_hub_download(self.repo, name, revision=self.snapshot.commit, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def _refuse_other_content(self, folder: Path) -> None:
        """Raise BadTarget unless the repository holds only an earlier build of the same target."""
        replaceable: set[str] = set()
        others: list[str] = []
        with suppress(QABuildError):  # no manifest, or not one of qabuild
            manifest = read_manifest(folder)
            results = filter(eval_results.is_ours, self.snapshot.files)
            replaceable = {*manifest.files, MANIFEST, EVIDENCE, *SIGNATURES, *results}
            others = [f"the artifact '{manifest.name}'"] if manifest.name != self.artifact.manifest.name else []
        known = {*replaceable, *filter(repository.is_kept, self.snapshot.files)}
        others += sorted(set(self.snapshot.files) - known - {readme.FILE})
        if others:
            shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            raise BadTarget(
                f"{self.repo} ({self.revision}) holds something else, which would be replaced: {shown}",
                "name another repository with --repo or another branch with --revision, delete it there, "
                "or propose it with --create-pr",
            )

    def _refuse_other_tag(self) -> None:
        commit = repository.tagged_commit(self.api, self.repo, self.tag) if self.tag and self.snapshot.exists else None
        if commit is not None and not (self._is_published() and commit == self.snapshot.commit):
            raise BadTarget(
                f"{self.repo}: the tag '{self.tag}' names another commit, {commit}", "choose another tag, or delete it"
            )

    def _is_published(self) -> bool:
        if self.changes and all(change.does == "keep" for change in self.changes):
            self.commit = self.snapshot.commit
            return True
        return False

    def _is_proposed(self) -> bool:
        """Whether an open pull request holds this already, as after a lost response."""
        for url, proposed in repository.pull_requests(self.api, self.repo) if self.snapshot.exists else ():
            if all(change.does == "keep" for change in repository.compare(self.content, proposed)):
                self.commit, self.pull_request = proposed.commit, url
                return True
        return False


def content(
    artifact: Artifact,
    evidence: Verification,
    repo: str,
    revision: str,
    remote_card: str | None = None,
    base_license: str | None = None,
) -> dict[str, Path | bytes]:
    """What the repository shall hold: all files of the artifact, its card and its evaluation results, by name."""
    path = artifact.directory / readme.FILE
    try:
        local = files.read(path, follow=False).decode() if path.exists() else None
    except UnicodeDecodeError as error:
        raise BadTarget(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    user = readme.merge(readme.read(local), readme.read(remote_card))
    text = card.make(artifact, evidence, user, repo=repo, revision=revision, base_license=base_license)
    signatures = (name for name in SIGNATURES if (artifact.directory / name).exists())
    names = (*artifact.manifest.files, MANIFEST, EVIDENCE, *signatures)
    results = eval_results.make(artifact, evidence, repo, revision)
    return {**{name: artifact.directory / name for name in names}, readme.FILE: text.encode(), **results}


def _text(content: Path | bytes) -> str:
    assert isinstance(content, bytes)
    return content.decode()


def _message(artifact: Artifact, evidence: Verification) -> tuple[str, str]:
    """The commit's title and description."""
    m, key = evidence.measurement, str(artifact.manifest.steps.get("compile"))[:12]
    result = f"EM {m.exact_match:.2f}, F1 {m.f1:.2f} ({100 * m.f1_retention:.2f} % of the reference)"
    return f"{artifact.manifest.name} {key}: {result}", f"Manifest SHA-256: {artifact.digest}"
