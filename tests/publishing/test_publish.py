"""Publishing, with the real client, to a Hub on loopback: what goes, what is refused, and what is there afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import proven
import pytest
import yaml
from hub import Hub, Repository
from hypothesis import given, settings
from hypothesis import strategies as st

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import readme
from qabuild.artifact.evidence import Verification
from qabuild.artifact.manifest import open_artifact
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.publishing import card
from qabuild.publishing import publish as publishing
from qabuild.publishing.publish import publish
from qabuild.system import hub_retry
from qabuild.system.reporter import SILENT

pytestmark = pytest.mark.hub

TOKEN, READER = "hf_plantedsecretofme", "hf_plantedreader"
SEALED = {
    *("config.json", "handler.py", "manifest.json", "model.safetensors", "reference/answers.json"),
    *("requirements.txt", "verification.json"),
}
# The command line, which waits for no time between two attempts.
RUN = "from qabuild.system import hub_retry; hub_retry.WAITS = (0.01,) * 4; from qabuild.cli import main; main()"


@dataclass
class Desk:
    """Someone with artifacts, a token and a Hub."""

    folder: Path
    hub: Hub

    def artifact(self, name: str = "tiny", **facts: Any) -> Path:
        return proven.make(self.folder / name, **facts)

    def run(self, *arguments: object, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.hub.environment(self.folder / "home")}
        environment.pop("HF_HUB_DISABLE_XET")  # this Hub offers none, and the client must find that out
        if token is not None:
            environment["HF_TOKEN"] = token
        command = [sys.executable, "-c", RUN, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr or "-v" in arguments
        return done

    def publish(self, *arguments: object, status: int = 0, token: str | None = TOKEN) -> str:
        """What the command said, on both streams, once it ended with that status."""
        done = self.run("publish", *arguments, token=token)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repository(self, name: str = "me/tiny") -> Repository:
        return self.hub.repositories["model", name]

    def files(self, revision: str = "main", name: str = "me/tiny") -> dict[str, bytes]:
        repository = self.repository(name)
        return dict(repository.commits[repository.sha(revision) or ""])

    def commits(self) -> list[str]:
        """Messages of the commits that were made by publishing."""
        return [message for message in self.repository().messages.values() if message]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with Hub({TOKEN: ("me", "write"), READER: ("me", "read")}) as hub:
        yield Desk(tmp_path, hub)


# --- what goes ------------------------------------------------------------------------------------------------------


def test_every_file_goes_in_one_commit_and_comes_back_the_same(desk, tmp_path):
    artifact = desk.artifact()
    said = desk.publish(artifact, "--tag", "v1")
    files = desk.files()
    assert set(files) == {*SEALED, "README.md", ".gitattributes"}
    for name in (*SEALED, "README.md"):
        assert files[name] == (artifact / name).read_bytes()
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(files[name])
    open_artifact(tmp_path / "fetched", open_artifact(artifact).digest)
    assert desk.commits() == ["tiny cccccccccccc: EM 50.00, F1 50.00 (50.00 % kept)"]
    assert desk.repository().branches["v1"] == desk.repository().branches["main"]
    assert f"published: commit {desk.repository().branches['main']}, tag v1" in said
    assert not any("xet" in request for request in desk.hub.requests)
    assert any("resolve" in request and "model.safetensors" in request for request in desk.hub.requests)


def test_publishing_again_does_nothing_and_says_so(desk):
    artifact = desk.artifact()
    desk.publish(artifact)
    desk.hub.requests.clear()
    said = desk.publish(artifact)
    assert "nothing to do, it is there already" in said
    assert len(desk.commits()) == 1
    assert not any(request.startswith(("PUT", "POST")) for request in desk.hub.requests)


def test_a_missing_tag_is_made_up_for(desk):
    artifact = desk.artifact()
    desk.publish(artifact)
    assert "tag v2" in desk.publish(artifact, "--tag", "v2")
    assert desk.repository().branches["v2"] == desk.repository().branches["main"]
    assert len(desk.commits()) == 1


def test_files_of_the_artifact_that_is_replaced_are_deleted(desk):
    desk.publish(desk.artifact())
    other = proven.make(desk.folder / "other" / "tiny", weights=b"other")
    sealed = open_artifact(other)
    (other / "extra.json").write_text("{}")
    sealed = artifacts.seal(other, **{k: v for k, v in sealed.manifest.__dict__.items() if k != "files"})
    proven.verify(sealed)
    desk.publish(other)
    assert "extra.json" in desk.files()
    said = desk.publish(desk.folder / "tiny")
    assert set(desk.files()) == {*SEALED, "README.md", ".gitattributes"}
    assert [line.split()[:2] for line in said.splitlines() if "extra.json" in line] == [["extra.json", "delete"]]


def test_a_dry_run_lists_and_changes_nothing(desk):
    artifact = desk.artifact()
    size = sum((artifact / name).stat().st_size for name in SEALED)
    said = desk.publish(artifact, "--dry-run")
    assert ("model.safetensors", "add", "7.0", "KB") in [tuple(line.split()) for line in said.splitlines()]
    assert "8 files" in said
    document = json.loads(desk.run("publish", artifact, "--dry-run", "--json").stdout)
    assert document["commit"] is None
    assert sum(c["size"] for c in document["changes"] if c["name"] != "README.md") == size
    assert not desk.hub.repositories
    assert not (artifact / "README.md").exists()


def test_a_branch_is_made_where_there_is_none(desk):
    desk.publish(desk.artifact())
    other = proven.make(desk.folder / "other" / "tiny", weights=b"other")
    main = desk.files()
    desk.publish(other, "--revision", "small")
    assert desk.files() == main
    assert desk.files("small")["model.safetensors"] == b"other"
    assert 'revision="small"' in desk.files("small")["README.md"].decode()


def test_a_private_repository_is_made_private_and_a_public_one_is_not_taken_for_it(desk):
    artifact = desk.artifact()
    desk.publish(artifact, "--private")
    assert desk.repository().private
    desk.publish(artifact, "--private")
    desk.repository().private = False
    assert "me/tiny is public" in desk.publish(artifact, "--private", status=2)


def test_a_pull_request_proposes_it_and_is_made_once(desk):
    desk.hub.commit("model", "them/model", {"theirs.bin": b"theirs", "README.md": b"# Theirs\n"})
    artifact = desk.artifact()
    said = desk.publish(artifact, "--repo", "them/model", "--create-pr")
    assert f"{desk.hub.url}/them/model/discussions/1: published" in said
    assert set(desk.files("refs/pr/1", "them/model")) == {*SEALED, "README.md"}
    assert "# Theirs" in desk.files("refs/pr/1", "them/model")["README.md"].decode()
    assert set(desk.files("main", "them/model")) == {"theirs.bin", "README.md"}
    again = desk.publish(artifact, "--repo", "them/model", "--create-pr")
    assert "discussions/1: nothing to do" in again
    assert len(desk.repository("them/model").pull_requests) == 1


def test_a_pull_request_whose_answer_was_lost_is_found_again(desk):
    desk.hub.commit("model", "them/model", {})
    desk.hub.fail("POST .*/commit/main", lose=True)
    said = desk.publish(desk.artifact(), "--repo", "them/model", "--create-pr")
    assert "no answer (ConnectionError); trying again" in said
    assert "discussions/1: published" in said
    assert len(desk.repository("them/model").pull_requests) == 1


# --- what is refused ------------------------------------------------------------------------------------------------


def measured(artifact: Path, **found: Any) -> None:
    """Put other evidence beside the artifact."""
    proven.verify(open_artifact(artifact), **found)


def measured_and_denied(artifact: Path) -> None:
    measured(artifact, f1=1.0)
    path = artifact / "verification.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "passed": True}))


def reseal(artifact: Path) -> None:
    facts = {name: value for name, value in open_artifact(artifact).manifest.__dict__.items() if name != "files"}
    (artifact / "model.safetensors").write_bytes(b"other")
    artifacts.seal(artifact, **facts)


def older(artifact: Path) -> None:
    facts = {name: value for name, value in open_artifact(artifact).manifest.__dict__.items() if name != "files"}
    (artifact / "handler.py").unlink()
    proven.verify(artifacts.seal(artifact, **facts))


UNPROVED: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "unverified": (lambda a: (a / "verification.json").unlink(), 1, "not verified"),
    "failed": (lambda a: measured(a, f1=1.0), 1, "min_f1_retention"),
    "failed, and said to have passed": (measured_and_denied, 1, "min_f1_retention"),
    "changed since": (lambda a: (a / "config.json").write_text("{}"), 4, "config.json: 2 bytes instead of"),
    "changed and sealed anew": (reseal, 4, "changed since it was verified"),
    "other data": (lambda a: measured(a, data={**proven.DATA, "fingerprint": "0" * 64}), 4, "other questions"),
    "fewer questions": (lambda a: measured(a, questions=1), 4, "other questions"),
    "other versions": (lambda a: measured(a, versions={"torch": "1.0"}), 1, "transformers (none)"),
    "damaged evidence": (lambda a: (a / "verification.json").write_text("{}"), 4, "damaged"),
    "no handler": (older, 2, "build it again"),
}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no one get as far as the Hub."""
    monkeypatch.setattr(publishing, "log_in", lambda: pytest.fail("the Hub was asked"))


@pytest.mark.parametrize(("change", "status", "expected"), UNPROVED.values(), ids=UNPROVED)
def test_what_is_not_proved_is_not_published(tmp_path, no_hub, change, status, expected):
    artifact = proven.make(tmp_path / "tiny")
    change(artifact)
    with pytest.raises(QABuildError) as caught:
        publish(artifact)
    assert caught.value.exit_status == status
    assert expected in str(caught.value)


def test_a_failure_on_the_command_line_has_its_status(desk):
    artifact = desk.artifact()
    measured(artifact, f1=1.0)
    assert "verification failed" in desk.publish(artifact, status=1)
    assert not desk.hub.requests


def test_an_artifact_of_fewer_questions_than_its_target_asks_for_is_refused(tmp_path, no_hub):
    asked = open_artifact(proven.make(tmp_path / "tiny")).manifest.verify
    fewer = proven.make(tmp_path / "fewer", verify={**asked, "samples": 100})
    with pytest.raises(UntrustedInput, match=r"other questions than its target names \(samples\)"):
        publish(fewer)


def test_a_verification_under_other_versions_is_recorded_as_such(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    assert proof_of(open_artifact(artifact)).other_versions == {}
    measured(artifact, versions={"torch": "1.0"})
    found = proof_of(open_artifact(artifact))
    assert found.passed
    assert found.other_versions == {"tokenizers": "(none)", "torch": "1.0", "transformers": "(none)"}


def test_a_build_of_another_machine_is_published_where_the_release_is_the_same(desk):
    artifact = desk.artifact()
    versions = open_artifact(artifact).manifest.versions
    measured(artifact, versions={name: f"{version.partition('+')[0]}+cu128" for name, version in versions.items()})
    desk.publish(artifact)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"repo": "tiny"}, "tiny is no name of a repository"),
        ({"repo": "me/ti--ny"}, "no name of a repository"),
        ({"repo": "me/.tiny"}, "no name of a repository"),
        ({"repo": "a/b/c"}, "no name of a repository"),
        ({"revision": "no such"}, "'no such' is no name of a branch"),
        ({"tag": "v 1"}, "'v 1' is no name of a tag"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path, no_hub, place, expected):
    with pytest.raises(BadTarget, match=expected):
        publish(proven.make(tmp_path / "tiny"), **place)


def test_an_artifact_whose_target_names_no_repository_is_refused(tmp_path, no_hub):
    artifact = proven.make(tmp_path / "tiny", publish={"repo": None, "license": None})
    with pytest.raises(BadTarget, match="its target does not say where to publish it"):
        publish(artifact)


def test_a_namespace_of_others_is_refused(desk):
    said = desk.publish(desk.artifact(), "--repo", "them/tiny", status=3)
    assert 'You don\'t have the rights to create a model under "them"' in said
    assert "nothing was published: them/tiny is as it was" in said
    assert not desk.hub.repositories


@pytest.mark.parametrize(
    ("token", "expected"), [(None, "no token"), (READER, "may read only"), ("hf_unknown", "does not accept the token")]
)
def test_a_token_that_cannot_write_is_told_before_anything_is_sent(desk, token, expected):
    said = desk.publish(desk.artifact(), status=3, token=token)
    assert expected in said
    assert "hf auth login" in said
    assert {*desk.hub.requests} <= {"GET /api/whoami-v2"}


@pytest.mark.parametrize("theirs", ["model.bin", "docs/picture.png", "manifest.json"])
def test_a_repository_that_holds_something_else_is_refused(desk, theirs):
    desk.hub.commit("model", "me/tiny", {theirs: b"{}", "README.md": b"# Theirs\n"})
    said = desk.publish(desk.artifact(), status=2)
    assert f"holds something else, which would be replaced: {theirs}" in said
    assert "--create-pr" in said
    assert set(desk.files()) == {theirs, "README.md"}


def test_an_artifact_of_another_target_is_refused_but_on_a_branch_of_its_own(desk):
    desk.publish(desk.artifact())
    other = desk.artifact("other")
    assert "which would be replaced: the artifact 'tiny'" in desk.publish(other, status=2)
    desk.publish(other, "--revision", "other")
    assert json.loads(desk.files("other")["manifest.json"])["name"] == "other"
    assert json.loads(desk.files("main")["manifest.json"])["name"] == "tiny"


def test_a_file_that_came_to_an_artifact_on_the_hub_is_not_deleted_unasked(desk):
    desk.publish(desk.artifact())
    desk.hub.commit("model", "me/tiny", {**desk.files(), "LICENSE": b"mine"})
    other = proven.make(desk.folder / "other" / "tiny", weights=b"other")
    assert "would be replaced: LICENSE" in desk.publish(other, status=2)


def test_a_tag_that_names_another_commit_is_refused_before_anything_is_sent(desk):
    desk.publish(desk.artifact(), "--tag", "v1")
    other = proven.make(desk.folder / "other" / "tiny", weights=b"other")
    assert "the tag 'v1' names another commit" in desk.publish(other, "--tag", "v1", status=2)
    assert len(desk.commits()) == 1


def test_a_file_that_the_hub_finds_too_large_is_told(desk, monkeypatch):
    import hub_writing

    monkeypatch.setattr(hub_writing, "LARGEST", 100)
    said = desk.publish(desk.artifact(), status=2)
    assert "the file is larger than this Hub takes" in said
    assert "me/tiny was made and is empty: another run completes it" in said
    assert set(desk.files()) == {".gitattributes"}


def test_a_file_above_the_known_limit_is_refused_unsent(tmp_path, no_hub, monkeypatch):
    monkeypatch.setattr(publishing, "LARGEST_FILE", 6000)
    with pytest.raises(BadTarget, match=r"model\.safetensors: .* the Hub takes no file above"):
        publish(proven.make(tmp_path / "tiny"))


# --- what the Hub does ----------------------------------------------------------------------------------------------


def test_a_busy_hub_is_asked_again_when_it_says_so(desk):
    desk.hub.fail("POST .*/commit/main", status=429, headers={"Retry_After": "1"})
    said = desk.publish(desk.artifact())
    assert "HTTP status 429; trying again in 1 s" in said
    assert len(desk.commits()) == 1


def test_a_commit_that_landed_unanswered_is_not_made_twice(desk):
    desk.hub.fail("POST .*/commit/main", lose=True)
    said = desk.publish(desk.artifact(), "--tag", "v1")
    assert "published: commit" in said
    assert len(desk.commits()) == 1


def test_a_commit_that_someone_else_made_meanwhile_is_looked_at_again(desk):
    desk.publish(desk.artifact())
    theirs = {**desk.files(), "LICENSE": b"theirs"}
    other = proven.make(desk.folder / "other" / "tiny", weights=b"other")
    desk.hub.fail("PUT /objects/.*", then=lambda: desk.hub.commit("model", "me/tiny", theirs))
    assert "would be replaced: LICENSE" in desk.publish(other, status=2)
    assert desk.files() == theirs


@pytest.mark.parametrize("arguments", [(), ("-v",)])
def test_a_hub_that_repeats_the_token_is_not_repeated(desk, arguments):
    desk.hub.fail("POST .*/preupload/main", status=403, says=f"token {TOKEN} has no rights", times=9)
    said = desk.publish(desk.artifact(), *arguments, status=3)
    assert "token (token) has no rights" in said


def test_a_transfer_that_breaks_is_tried_again_and_a_defect_is_not(monkeypatch):
    monkeypatch.setattr(hub_retry, "WAITS", (0, 0))
    tried: list[str] = []

    def of(file: str) -> Callable[[], object]:
        """A function of that file, which fails as the library that transfers by Xet does."""
        scope: dict[str, Any] = {"tried": tried}
        exec(compile("def work():\n tried.append('x')\n raise RuntimeError('CAS error')", file, "exec"), scope)
        return cast(Callable[[], object], scope["work"])

    with pytest.raises(QABuildError, match="me/tiny: the transfer failed: CAS error") as caught:
        hub_retry.with_retries(of("/site-packages/huggingface_hub/_commit_api.py"), "me/tiny", SILENT)
    assert "HF_HUB_DISABLE_XET=1" in (caught.value.hint or "")
    assert len(tried) == 3
    with pytest.raises(RuntimeError, match="CAS error"):
        hub_retry.with_retries(of("/site-packages/qabuild/pushing.py"), "me/tiny", SILENT)
    assert len(tried) == 4


def test_no_token_is_in_anything_that_was_published(desk):
    desk.publish(desk.artifact(), "--tag", "v1")
    repository = desk.repository()
    assert not any(TOKEN.encode() in content for content in desk.files().values())
    assert TOKEN not in json.dumps([*repository.messages.values(), *desk.hub.requests])


def test_every_request_may_fail_in_every_way_and_nothing_is_lost():
    """Every eleventh case; `python tests/hub_faults.py` tries them all."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "hub_faults.py"), "--every", "11"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["losses"] == []
    assert report["tried"] >= 25


# --- the card -------------------------------------------------------------------------------------------------------


def metadata(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_says_what_was_measured(desk):
    desk.hub.commit("model", "them/base", {"README.md": b"---\nlicense: mit\n---\n"})
    desk.publish(desk.artifact())
    text = desk.files()["README.md"].decode()
    found = metadata(text)
    assert found["pipeline_tag"] == "question-answering"
    assert (found["base_model"], found["base_model_relation"]) == ("them/base", "quantized")
    assert found["license"] == "mit"
    assert found["datasets"] == ["rajpurkar/squad"]
    assert found["library_name"] == "transformers"
    result = found["model-index"][0]["results"][0]
    assert result["dataset"] == {
        "name": "rajpurkar/squad",
        "type": "rajpurkar/squad",
        "split": "validation",
        "revision": "a" * 40,
    }
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"exact_match": 50.0, "f1": 50.0}
    assert "| this model | 50.00 | 50.00 |" in text
    assert "F1 kept: 50.00 %, 95 % interval 0.00 to 100.00 %" in text
    assert "2.00 times as fast, 95 % interval\n1.90 to 2.10" in text
    assert r"| Who \| built \*it\*? | Ann | \<b\>Ben\</b\> | Ann |" in text


def test_the_target_on_the_card_is_one(tmp_path):
    from qabuild.target.read import load

    artifact = open_artifact(proven.make(tmp_path / "tiny"))
    text = card.make(artifact, proof_of(artifact), readme.Own(), repo="me/tiny", revision="main", base_license=None)
    (tmp_path / "tiny.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    target = load(tmp_path / "tiny.toml")
    assert target.backend.model_dump() == artifact.manifest.backend
    assert target.runtime.model_dump() == artifact.manifest.runtime
    assert target.checkpoint.model_dump() == {
        "model": "them/base",
        "revision": "b" * 40,
        "digest": "d" * 64,
        "target": None,
    }
    assert target.verify.gates.model_dump() == artifact.manifest.verify["gates"]


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")) | st.just("\n"), max_size=60)


@settings(max_examples=15)
@given(before=WORDS, after=WORDS, license=st.sampled_from([None, "mit"]), tags=st.lists(WORDS, max_size=2))
def test_whatever_people_write_is_read_again_as_they_wrote_it(small, before, after, license, tags):
    metadata = {"license": license, "tags": sorted({tag for tag in tags if tag})}
    own = readme.Own(
        before=before.strip(), after=after.strip(), metadata={key: value for key, value in metadata.items() if value}
    )
    made = card.make(small, proof_of(small), own, repo="me/tiny", revision="main", base_license=None)
    found = readme.read(made)
    assert replace(found, published=None) == own
    assert found.published == found.sum == own.sum
    assert card.make(small, proof_of(small), found, repo="me/tiny", revision="main", base_license=None) == made


@given(text=st.text(max_size=40))
def test_a_cell_of_a_table_is_one_line_without_markup(text):
    cell = card._cell(text)
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)(\\\\)*[|<*`]", cell)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> artifacts.Artifact:
    return open_artifact(proven.make(tmp_path_factory.mktemp("small") / "tiny"))


def proof_of(artifact: artifacts.Artifact) -> Verification:
    assert artifact.evidence is not None
    return Verification.from_dict(artifact.evidence)


def test_what_people_wrote_into_the_card_survives_wherever_they_wrote_it(desk):
    artifact = desk.artifact()
    (artifact / "README.md").write_text("---\nlanguage: en\ntags: [mine]\nlicense: mit\n---\n# My own title\n")
    desk.publish(artifact)
    first = desk.files()["README.md"].decode()
    assert first.index("# My own title") < first.index("# tiny")
    assert metadata(first)["tags"] == ["qabuild", "eager", "fp32", "mine"]
    assert (metadata(first)["language"], metadata(first)["license"]) == ("en", "mit")

    # On the Hub's page, after the part that is made, and into it, where it cannot stay.
    edited = first.replace("## Speed", "## Much speed") + "\nAsk me anything.\n"
    desk.hub.commit("model", "me/tiny", {**desk.files(), "README.md": edited.encode()})
    desk.publish(artifact)
    second = desk.files()["README.md"].decode()
    assert second.rstrip().endswith("Ask me anything.")
    assert "Much speed" not in second
    assert (artifact / "README.md").read_text() == second

    # Beside the artifact, again.
    (artifact / "README.md").write_text(second.replace("My own title", "My other title"))
    desk.publish(artifact)
    assert "# My other title" in desk.files()["README.md"].decode()
    assert "nothing to do" in desk.publish(artifact)


def test_a_card_that_was_edited_in_two_places_is_for_people_to_mend(desk):
    artifact = desk.artifact()
    desk.publish(artifact)
    text = desk.files()["README.md"].decode()
    desk.hub.commit("model", "me/tiny", {**desk.files(), "README.md": f"{text}\nOn the Hub.\n".encode()})
    (artifact / "README.md").write_text(f"{text}\nBeside the artifact.\n")
    said = desk.publish(artifact, status=2)
    assert "was edited both beside the artifact and on the Hub" in said
    assert "nothing was published: me/tiny is as it was" in said


def test_a_card_with_metadata_that_is_none_is_refused(desk):
    artifact = desk.artifact()
    (artifact / "README.md").write_text("---\n{: :\n---\n")
    assert "README.md: its metadata cannot be read" in desk.publish(artifact, status=2)
    (artifact / "README.md").write_text("---\nlicense: [1]\n---\n")
    said = desk.publish(artifact, status=2)
    assert '"license" must be a string' in said


def test_a_rebuilt_artifact_keeps_the_words_and_drops_the_figures():
    made = readme.OPENED.format(sum="0" * 64) + "\n# tiny\n\nF1 50.00\n" + readme.CLOSED
    text = f"---\nlicense: mit\nmodel-index:\n- name: tiny\n---\nBefore.\n\n{made}\n\nAfter.\n"
    kept = readme.without_made(text)
    assert "F1" not in kept
    assert "model-index" not in kept
    assert readme.read(kept) == readme.read(text)
    assert replace(readme.read(kept), published=None) == readme.Own(
        before="Before.", after="After.", metadata={"license": "mit"}
    )
    assert readme.without_made("# Wholly my own\n") == "# Wholly my own\n"


# --- on the real Hub as well ----------------------------------------------------------------------------------------

THERE_AND_BACK = """\
import secrets, sys
from pathlib import Path
from huggingface_hub import HfApi
from qabuild.artifact.manifest import open_artifact
from qabuild.artifact.load import find
from qabuild.publishing.publish import publish
api, artifact = HfApi(), Path(sys.argv[1])
repo = f"{api.whoami()['name']}/qabuild-test-{secrets.token_hex(4)}"
try:
    first = publish(artifact, repo, private=True, tag="v1")
    again = publish(artifact, repo, private=True, tag="v1")
    found = find(repo, revision="v1", digest=open_artifact(artifact).digest)
    print(first.changed, again.changed, again.commit == first.commit, len(found.manifest.files))
    (artifact / "README.md").write_text("Other words.")
    proposed = publish(artifact, repo, private=True, create_pr=True)
    again = publish(artifact, repo, private=True, create_pr=True)
    print(proposed.changed, again.changed, proposed.pull_request == again.pull_request)
finally:
    api.delete_repo(repo)
"""


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.real_hub)])
def test_there_and_back(desk, real):
    token = os.environ.get("QABUILD_TEST_TOKEN") if real else TOKEN
    if token is None:
        pytest.skip("no token for the real Hub in QABUILD_TEST_TOKEN")
    environment = {**os.environ, **desk.hub.environment(desk.folder / "home"), "HF_TOKEN": token}
    if real:
        del environment["HF_ENDPOINT"]
    command = [sys.executable, "-c", THERE_AND_BACK, desk.artifact()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True False True 5", "True False True"]


# --- the whole way --------------------------------------------------------------------------------------------------

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "sample"
samples = 8
[publish]
repo = "me/whole"
license = "apache-2.0"
"""

USE = """\
import qabuild
answer = qabuild.load("me/whole", revision="main", digest="{digest}")
print(answer(question="Who repaired the bridge?", context="The bridge was repaired by Alma Serin.")["answer"])
for wrong in ({{"digest": "0" * 64}}, {{"revision": "none"}}):
    try:
        qabuild.load("me/whole", **wrong)
    except qabuild.QABuildError as error:
        print(type(error).__name__, str(error).splitlines()[0])
from transformers import AutoModelForQuestionAnswering
AutoModelForQuestionAnswering.from_pretrained("me/whole")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, Any]]:
    """The sample, built and published by one command."""
    with Hub({TOKEN: ("me", "write")}) as hub:
        desk = Desk(tmp_path_factory.mktemp("whole"), hub)
        (desk.folder / "whole.toml").write_text(TARGET)
        done = desk.run("whole.toml", "--publish", "--json")
        assert done.returncode == 0, done.stderr
        yield desk, json.loads(done.stdout)[0]


def test_a_build_publishes_what_it_proved(whole):
    desk, document = whole
    assert document["published"]["commit"] == desk.repository("me/whole").branches["main"]
    assert metadata(desk.files(name="me/whole")["README.md"].decode())["license"] == "apache-2.0"


def test_it_is_loaded_by_its_name_alone_and_hashes_come_first(whole):
    desk, document = whole
    environment = {**os.environ, **desk.hub.environment(desk.folder / "elsewhere")}
    script = USE.format(digest=document["manifest"])
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=desk.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer, digest, revision = done.stdout.splitlines()
    assert answer in "The bridge was repaired by Alma Serin."
    assert digest.startswith("UntrustedInput")
    assert "not " + "0" * 64 in digest
    assert revision.startswith("BadTarget")
    assert "has no revision 'none'" in revision


def test_questions_are_answered_by_an_artifact_on_the_hub(whole):
    desk, _ = whole
    (desk.folder / "q.jsonl").write_text('{"id": 1, "question": "Who?", "context": "Alma Serin repaired it."}\n')
    done = desk.run("answer", "me/whole", "q.jsonl", token=None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answer"]


def test_what_was_fetched_back_is_verified_where_that_is_asked_for(whole):
    desk, _ = whole
    said = desk.publish("artifacts/whole", "--verify-remote")
    assert "nothing to do" in said
    assert "verified from there" in said


def test_a_download_that_was_changed_on_the_hub_is_not_loaded(whole):
    desk, _ = whole
    files = desk.files(name="me/whole")
    desk.hub.commit("model", "me/changed", {**files, "config.json": files["config.json"] + b" "})
    done = desk.run("answer", "me/changed", "q.jsonl")
    assert done.returncode == 4
    assert "config.json" in done.stderr


def test_a_build_that_cannot_be_published_is_not_begun(whole, tmp_path):
    desk, _ = whole
    (desk.folder / "nowhere.toml").write_text(TARGET.replace('repo = "me/whole"\n', ""))
    done = desk.run("nowhere.toml", "--publish")
    assert done.returncode == 2
    assert "does not say where to publish it" in done.stderr
    done = desk.run("whole.toml", "--publish", "--set", "verify.samples=9", token=None)
    assert done.returncode == 3
    assert not (desk.folder / "artifacts" / "nowhere").exists()
    assert desk.run("whole.toml", "--publish", "--compile-only").returncode == 2


def test_a_rebuild_keeps_the_card_that_people_wrote(whole, tmp_path):
    desk, _ = whole
    copy = Desk(tmp_path, desk.hub)
    shutil.copytree(desk.folder / "artifacts", tmp_path / "artifacts")
    (tmp_path / "whole.toml").write_text(TARGET)
    with (tmp_path / "artifacts" / "whole" / "README.md").open("a") as file:
        file.write("\nMy own words.\n")
    assert copy.run("whole.toml", "--set", "verify.gates.min_f1_retention=0.5").returncode == 0
    kept = (tmp_path / "artifacts" / "whole" / "README.md").read_text()
    assert "My own words." in kept
    assert "Not published yet." in kept
