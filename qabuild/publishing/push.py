"""One artifact on its way to one repository: looking, one commit, a tag. Each step finds out what is left to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import readme
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import Artifact
from qabuild.errors import BadTarget, QABuildError
from qabuild.publishing import card, repository
from qabuild.publishing.repository import Change, Snapshot

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass
class Push:
    """`attempt` and `name_it` may be called again after any failure, in this run or another."""

    api: HfApi
    artifact: Artifact
    found: Verification
    repo: str
    private: bool
    revision: str
    create_pr: bool
    tag: str | None
    snapshot: Snapshot = field(default_factory=Snapshot)
    """What the repository held when it was looked at last."""
    wanted: Mapping[str, Path | bytes] = field(default_factory=dict)
    """What it is to hold: the artifact and its card."""
    changes: Sequence[Change] = ()
    made: bool = False
    """Whether this run made the repository."""
    sent: bool = False
    """Whether a commit was asked for that may have been made, though no answer said so."""
    commit: str | None = None
    pull_request: str | None = None
    changed: bool = False
    """Whether this run made the commit."""

    def attempt(self) -> None:
        """Look, and make the commit that is left to make."""
        self.look()
        self._refuse_other_tag()
        if self._is_there() or (self.create_pr and self._is_proposed()):
            self.changed = self.sent
            return
        if not self.snapshot.exists:
            self.api.create_repo(self.repo, private=self.private)
            self.made = True
            self.look()
        if not self.snapshot.branch:
            self.api.create_branch(self.repo, branch=self.revision, revision=self.snapshot.commit)
        self._commit()

    def look(self) -> None:
        """Find out what the repository holds, and what would have to change. Refuses to replace anything else."""
        self.snapshot = repository.look(self.api, self.repo, self.revision)
        if self.private and self.snapshot.exists and not self.snapshot.private:
            raise BadTarget(f"{self.repo} is public", "make it private on its page, or publish without --private")
        with TemporaryDirectory() as folder:
            self._fetch(artifacts.MANIFEST, Path(folder))
            if self.snapshot.branch and not self.create_pr:  # else all that is there stays where it is
                self._refuse_other_content(Path(folder))
            there = self._fetch(readme.FILE, Path(folder))
        self.wanted = {**_files(self.artifact), readme.FILE: self._card(there).encode()}
        self.changes = repository.compare(self.wanted, self.snapshot)

    def name_it(self) -> None:
        """Put the tag on the commit, where one is wanted and is not there."""
        if self.tag and repository.tagged(self.api, self.repo, self.tag) != self.commit:
            self.api.create_tag(self.repo, tag=self.tag, revision=self.commit)

    def state(self) -> str:
        """What is on the Hub now, in words, after something went wrong."""
        if self.sent and not self.commit:
            with suppress(Exception):  # what the Hub has just refused to say, it may still not say
                self.look()
                self.sent = self._is_there()
        if self.commit:
            tag = f"; the tag '{self.tag}' may be missing" if self.tag else ""
            return f"all files are at {self.repo}, commit {self.commit}{tag}: another run completes it"
        if self.sent:
            return f"whether the commit to {self.repo} was made is not known: another run finds out, and completes it"
        if self.made:
            return f"{self.repo} was made and is empty: another run completes it"
        return f"nothing was published: {self.repo} is as it was"

    def _commit(self) -> None:
        from huggingface_hub.errors import HfHubHTTPError

        add, delete = repository.operations(self.wanted, self.changes)
        self.api.preupload_lfs_files(
            self.repo, add, revision=self.revision, create_pr=self.create_pr, free_memory=False
        )
        title, description = _message(self.artifact, self.found)
        self.sent = True
        try:
            made = self.api.create_commit(
                self.repo,
                [*add, *delete],
                commit_message=title,
                commit_description=description,
                revision=self.revision,
                create_pr=self.create_pr,
                # Else a commit that came in between would be half replaced; so it is refused, and looked at again.
                parent_commit=self.snapshot.commit,
            )
        except HfHubHTTPError as error:
            self.sent = error.response.status_code >= 500
            raise
        self.commit, self.pull_request, self.changed = made.oid, made.pr_url, True

    def _fetch(self, name: str, folder: Path) -> str | None:
        """The text of a file of the snapshot, which is put into `folder`."""
        if self.snapshot.commit is None or name not in self.snapshot.files:
            return None
        path = self.api.hf_hub_download(self.repo, name, revision=self.snapshot.commit, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")

    def _card(self, there: str | None) -> str:
        beside = self.artifact.directory / readme.FILE
        here = beside.read_text(encoding="utf-8") if beside.exists() else None
        return card.make(
            self.artifact,
            self.found,
            readme.merge(readme.read(here), readme.read(there)),
            repo=self.repo,
            revision=self.revision,
            base_license=repository.license_of(self.api, card.base(self.artifact)),
        )

    def _refuse_other_content(self, folder: Path) -> None:
        """Only an earlier build of the same target is replaced unasked."""
        own: set[str] = set()
        others: list[str] = []
        with suppress(QABuildError):  # there is no manifest, or it is that of something else
            manifest = artifacts.read_manifest(folder)
            own = {*manifest.files, artifacts.MANIFEST, artifacts.EVIDENCE}
            others = [f"the artifact '{manifest.name}'"] if manifest.name != self.artifact.manifest.name else []
        others += sorted(set(self.snapshot.files) - own - {readme.FILE, repository.ATTRIBUTES})
        if others:
            shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
            raise BadTarget(
                f"{self.repo} ({self.revision}) holds something else, which would be replaced: {shown}",
                "name another repository with --repo or another branch with --revision, delete it there, "
                "or propose it with --create-pr",
            )

    def _refuse_other_tag(self) -> None:
        at = repository.tagged(self.api, self.repo, self.tag) if self.tag and self.snapshot.exists else None
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
        for address, proposed in repository.pull_requests(self.api, self.repo) if self.snapshot.exists else ():
            if all(change.does == "keep" for change in repository.compare(self.wanted, proposed)):
                self.commit, self.pull_request = proposed.commit, address
                return True
        return False


def _files(artifact: Artifact) -> dict[str, Path | bytes]:
    """Everything that makes up the artifact, but for the card, by its name in the repository."""
    names = (*artifact.manifest.files, artifacts.MANIFEST, artifacts.EVIDENCE)
    return {name: artifact.directory / name for name in names}


def _message(artifact: Artifact, found: Verification) -> tuple[str, str]:
    """The commit's first line and description."""
    m, key = found.measurement, str(artifact.manifest.steps.get("compile"))[:12]
    result = f"EM {m.exact_match:.2f}, F1 {m.f1:.2f} ({100 * m.f1_retention:.2f} % kept)"
    return f"{artifact.manifest.name} {key}: {result}", f"Manifest SHA-256: {artifact.digest}"
