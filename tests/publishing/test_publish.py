"""Publishing with the real client to a Hub on loopback: uploads, refusals, retries, and the model card."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import proven
import pytest
import yaml
from hub import Hub, Repository
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from qabuild.artifact import manifest as artifacts
from qabuild.artifact import readme
from qabuild.artifact.evidence import Verification, evidence_of
from qabuild.artifact.key_pair import keygen
from qabuild.artifact.manifest import SIGNATURES, open_artifact
from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.publishing import card, eval_results
from qabuild.publishing import publish as publishing
from qabuild.publishing.publish import publish
from qabuild.system import hub_retry
from qabuild.system.reporter import SILENT

pytestmark = [pytest.mark.hub, pytest.mark.both_lines]

TOKEN, READER = "hf_plantedsecretofme", "hf_plantedreader"
SEALED = {
    *("config.json", "handler.py", "manifest.json", "model.safetensors", "reference/answers.json"),
    *("requirements.txt", "verification.json"),
}
RESULTS = {".eval_results/qabuild-exact_match.yaml", ".eval_results/qabuild-f1.yaml"}
# The command line, with retries that hardly wait.
RUN = "from qabuild.system import hub_retry; hub_retry.WAITS = (0.01,) * 4; from qabuild.cli import main; main()"


ALWAYS_XET = Version(version("huggingface_hub")) >= Version("1.20")
"""From 1.20 on, huggingface_hub uploads large files by Xet without asking the Hub."""


@dataclass
class Workspace:
    """A folder of artifacts, a token and a Hub."""

    folder: Path
    hub: Hub

    def artifact(self, name: str = "tiny", **facts: Any) -> Path:
        return proven.make(self.folder / name, **facts)

    def run(
        self, *arguments: object, token: str | None = TOKEN, xet: bool = not ALWAYS_XET
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.hub.environment(self.folder / "home")}
        if xet:  # this Hub has no Xet, which an older client detects
            environment.pop("HF_HUB_DISABLE_XET")
        if token is not None:
            environment["HF_TOKEN"] = token
        command = [sys.executable, "-c", RUN, *map(str, arguments)]
        process = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert TOKEN not in process.stdout + process.stderr
        assert "Traceback" not in process.stderr or "-v" in arguments
        return process

    def publish(self, *arguments: object, status: int = 0, token: str | None = TOKEN) -> str:
        """Output of the command, stdout and then stderr; asserts its exit status."""
        process = self.run("publish", *arguments, token=token)
        assert process.returncode == status, process.stdout + process.stderr
        return process.stdout + process.stderr

    def repository(self, name: str = "me/tiny") -> Repository:
        return self.hub.repositories["model", name]

    def files(self, revision: str = "main", name: str = "me/tiny") -> dict[str, bytes]:
        repository = self.repository(name)
        return dict(repository.commits[repository.sha(revision) or ""])

    def commits(self) -> list[str]:
        """Messages of the commits that publishing made."""
        return [message for message in self.repository().messages.values() if message]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Hub({TOKEN: ("me", "write"), READER: ("me", "read")}) as hub:
        yield Workspace(tmp_path, hub)


# --- uploads --------------------------------------------------------------------------------------------------------


def test_every_file_is_uploaded_in_one_commit_unchanged(workspace, tmp_path):
    artifact = workspace.artifact()
    output = workspace.publish(artifact, "--tag", "v1")
    files = workspace.files()
    assert set(files) == {*SEALED, *RESULTS, "README.md", ".gitattributes"}
    for name in (*SEALED, "README.md"):
        assert files[name] == (artifact / name).read_bytes()
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(files[name])
    open_artifact(tmp_path / "fetched", open_artifact(artifact).digest)
    assert workspace.commits() == ["tiny cccccccccccc: EM 50.00, F1 50.00 (50.00 % of the reference)"]
    assert workspace.repository().branches["v1"] == workspace.repository().branches["main"]
    assert f"published: commit {workspace.repository().branches['main']}, tag v1" in output
    assert not any("xet" in request for request in workspace.hub.requests)
    assert any("resolve" in request and "model.safetensors" in request for request in workspace.hub.requests)


def test_signatures_travel_with_the_artifact(workspace):
    artifact = workspace.artifact()
    keygen(workspace.folder / "ours.key")
    workspace.publish(artifact, "--sign", "ours.key")
    files = workspace.files()
    assert set(files) == {*SEALED, *RESULTS, *SIGNATURES, "README.md", ".gitattributes"}
    assert all(files[name] == (artifact / name).read_bytes() for name in SIGNATURES)
    assert "nothing to do, it is there already" in workspace.publish(artifact, "--sign", "ours.key")
    assert workspace.commits() == ["tiny cccccccccccc: EM 50.00, F1 50.00 (50.00 % of the reference)"]
    proven.verify(open_artifact(artifact))  # removes the signature of the evidence, there too
    workspace.publish(artifact)
    signed = {*SEALED, *RESULTS, "model.sig", "provenance.sig", "README.md", ".gitattributes"}
    assert set(workspace.files()) == signed


def test_a_dry_run_signs_nothing(workspace):
    artifact = workspace.artifact()
    keygen(workspace.folder / "ours.key")
    output = workspace.publish(artifact, "--sign", "ours.key", "--dry-run")
    assert "signing would add model.sig, provenance.sig, verification.sig" in output
    assert not any((artifact / name).exists() for name in SIGNATURES)
    assert "nope.key" in workspace.publish(artifact, "--sign", "nope.key", "--dry-run", status=2)


def test_publishing_again_does_nothing_and_reports_that(workspace):
    artifact = workspace.artifact()
    workspace.publish(artifact)
    workspace.hub.requests.clear()
    output = workspace.publish(artifact)
    assert "nothing to do, it is there already" in output
    assert len(workspace.commits()) == 1
    assert not any(request.startswith(("PUT", "POST")) for request in workspace.hub.requests)


def test_a_missing_tag_is_added(workspace):
    artifact = workspace.artifact()
    workspace.publish(artifact)
    assert "tag v2" in workspace.publish(artifact, "--tag", "v2")
    assert workspace.repository().branches["v2"] == workspace.repository().branches["main"]
    assert len(workspace.commits()) == 1


def test_files_of_the_replaced_artifact_are_deleted(workspace):
    workspace.publish(workspace.artifact())
    other = proven.make(workspace.folder / "other" / "tiny", weights=b"other")
    sealed = open_artifact(other)
    (other / "extra.json").write_text("{}")
    sealed = artifacts.seal(other, **{k: v for k, v in sealed.manifest.__dict__.items() if k != "files"})
    proven.verify(sealed)
    workspace.publish(other)
    assert "extra.json" in workspace.files()
    output = workspace.publish(workspace.folder / "tiny")
    assert set(workspace.files()) == {*SEALED, *RESULTS, "README.md", ".gitattributes"}
    assert [line.split()[:2] for line in output.splitlines() if "extra.json" in line] == [["extra.json", "delete"]]


def test_a_dry_run_lists_the_changes_and_makes_none(workspace):
    artifact = workspace.artifact()
    size = sum((artifact / name).stat().st_size for name in SEALED)
    output = workspace.publish(artifact, "--dry-run")
    assert ("model.safetensors", "add", "7.0", "KB") in [tuple(line.split()) for line in output.splitlines()]
    assert "10 files" in output
    document = json.loads(workspace.run("publish", artifact, "--dry-run", "--json").stdout)
    assert document["commit"] is None
    assert sum(c["size"] for c in document["changes"] if c["name"] not in {"README.md", *RESULTS}) == size
    assert not workspace.hub.repositories
    assert not (artifact / "README.md").exists()


def test_a_missing_branch_is_created(workspace):
    workspace.publish(workspace.artifact())
    other = proven.make(workspace.folder / "other" / "tiny", weights=b"other")
    main = workspace.files()
    workspace.publish(other, "--revision", "small")
    assert workspace.files() == main
    assert workspace.files("small")["model.safetensors"] == b"other"
    assert 'revision="small"' in workspace.files("small")["README.md"].decode()


def test_private_creates_a_private_repository_and_refuses_a_public_one(workspace):
    artifact = workspace.artifact()
    workspace.publish(artifact, "--private")
    assert workspace.repository().private
    workspace.publish(artifact, "--private")
    workspace.repository().private = False
    assert "me/tiny is public" in workspace.publish(artifact, "--private", status=2)


def test_a_pull_request_is_opened_once(workspace):
    workspace.hub.commit("model", "them/model", {"theirs.bin": b"theirs", "README.md": b"# Theirs\n"})
    artifact = workspace.artifact()
    output = workspace.publish(artifact, "--repo", "them/model", "--create-pr")
    assert f"{workspace.hub.url}/them/model/discussions/1: published" in output
    assert set(workspace.files("refs/pr/1", "them/model")) == {*SEALED, *RESULTS, "README.md"}
    assert "# Theirs" in workspace.files("refs/pr/1", "them/model")["README.md"].decode()
    assert set(workspace.files("main", "them/model")) == {"theirs.bin", "README.md"}
    again = workspace.publish(artifact, "--repo", "them/model", "--create-pr")
    assert "discussions/1: nothing to do" in again
    assert len(workspace.repository("them/model").pull_requests) == 1


def test_a_pull_request_whose_response_was_lost_is_found(workspace):
    workspace.hub.commit("model", "them/model", {})
    workspace.hub.fail("POST .*/commit/main", lose=True)
    output = workspace.publish(workspace.artifact(), "--repo", "them/model", "--create-pr")
    assert re.search(r"no answer \(\w+Error\); trying again", output)
    assert "discussions/1: published" in output
    assert len(workspace.repository("them/model").pull_requests) == 1


# --- refusals -------------------------------------------------------------------------------------------------------


def replace_evidence(artifact: Path, **fields: Any) -> None:
    """Write other evidence beside the artifact; `fields` are fields of the measurement."""
    proven.verify(open_artifact(artifact), **fields)


def forge_evidence(artifact: Path) -> None:
    replace_evidence(artifact, **proven.FAILED)
    path = artifact / "verification.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "passed": True}))


def reseal(artifact: Path) -> None:
    facts = {name: value for name, value in open_artifact(artifact).manifest.__dict__.items() if name != "files"}
    (artifact / "model.safetensors").write_bytes(b"other")
    artifacts.seal(artifact, **facts)


def remove_handler(artifact: Path) -> None:
    facts = {name: value for name, value in open_artifact(artifact).manifest.__dict__.items() if name != "files"}
    (artifact / "handler.py").unlink()
    proven.verify(artifacts.seal(artifact, **facts))


UNVERIFIED: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "unverified": (lambda a: (a / "verification.json").unlink(), 1, "not verified"),
    "failed": (lambda a: replace_evidence(a, **proven.FAILED), 1, "min_f1_retention"),
    "failed, with evidence that claims a pass": (forge_evidence, 4, "passed is True, and its gates say otherwise"),
    "changed since": (lambda a: (a / "config.json").write_text("{}"), 4, "config.json: 2 bytes instead of"),
    "changed and resealed": (reseal, 4, "changed since it was verified"),
    "other data": (lambda a: replace_evidence(a, data={**proven.DATA, "fingerprint": "0" * 64}), 4, "other questions"),
    "fewer questions": (lambda a: replace_evidence(a, questions=1), 4, "other questions"),
    "other versions": (lambda a: replace_evidence(a, versions={"torch": "1.0"}), 1, "transformers (none)"),
    "damaged evidence": (lambda a: (a / "verification.json").write_text("{}"), 4, "damaged"),
    "no handler": (remove_handler, 2, "build it again"),
}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if it queries the Hub."""
    monkeypatch.setattr(publishing, "log_in", lambda: pytest.fail("the Hub was queried"))


@pytest.mark.parametrize(("change", "status", "expected"), UNVERIFIED.values(), ids=UNVERIFIED)
def test_an_artifact_that_its_evidence_does_not_verify_is_refused(tmp_path, no_hub, change, status, expected):
    artifact = proven.make(tmp_path / "tiny")
    change(artifact)
    with pytest.raises(QABuildError) as caught:
        publish(artifact)
    assert caught.value.exit_status == status
    assert expected in str(caught.value)


def test_the_command_exits_with_the_status_of_the_failure(workspace):
    artifact = workspace.artifact()
    replace_evidence(artifact, **proven.FAILED)
    assert "verification failed" in workspace.publish(artifact, status=1)
    assert not workspace.hub.requests


def test_an_artifact_verified_on_fewer_samples_than_its_target_names_is_refused(tmp_path, no_hub):
    verify = open_artifact(proven.make(tmp_path / "tiny")).manifest.verify
    fewer = proven.make(tmp_path / "fewer", verify={**verify, "samples": 100})
    with pytest.raises(UntrustedInput, match=r"other questions than its target names \(samples\)"):
        publish(fewer)


def test_a_verification_under_other_versions_records_them(tmp_path):
    artifact = proven.make(tmp_path / "tiny")
    assert verification_of(open_artifact(artifact)).other_versions == {}
    replace_evidence(artifact, versions={"torch": "1.0"})
    verification = verification_of(open_artifact(artifact))
    assert verification.passed
    assert verification.other_versions == {"tokenizers": "(none)", "torch": "1.0", "transformers": "(none)"}


def test_versions_with_another_local_label_are_published(workspace):
    artifact = workspace.artifact()
    versions = open_artifact(artifact).manifest.versions
    replace_evidence(
        artifact, versions={name: f"{version.partition('+')[0]}+cu128" for name, version in versions.items()}
    )
    workspace.publish(artifact)


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ({"repo": "tiny"}, "tiny is not a valid name of a repository"),
        ({"repo": "me/ti--ny"}, "not a valid name of a repository"),
        ({"repo": "me/.tiny"}, "not a valid name of a repository"),
        ({"repo": "a/b/c"}, "not a valid name of a repository"),
        ({"revision": "no such"}, "'no such' is not a valid name of a branch"),
        ({"tag": "v 1"}, "'v 1' is not a valid name of a tag"),
    ],
)
def test_an_invalid_destination_is_refused(tmp_path, no_hub, destination, expected):
    with pytest.raises(BadTarget, match=expected):
        publish(proven.make(tmp_path / "tiny"), **destination)


def test_an_artifact_whose_target_names_no_repository_is_refused(tmp_path, no_hub):
    artifact = proven.make(tmp_path / "tiny", publish={"repo": None, "license": None})
    with pytest.raises(BadTarget, match="its target does not say where to publish it"):
        publish(artifact)


def test_a_namespace_of_another_user_is_refused(workspace):
    output = workspace.publish(workspace.artifact(), "--repo", "them/tiny", status=3)
    assert 'You don\'t have the rights to create a model under "them"' in output
    assert "nothing was published: them/tiny is as it was" in output
    assert not workspace.hub.repositories


@pytest.mark.parametrize(
    ("token", "expected"), [(None, "no token"), (READER, "may read only"), ("hf_unknown", "does not accept the token")]
)
def test_a_token_without_write_access_is_reported_before_any_upload(workspace, token, expected):
    output = workspace.publish(workspace.artifact(), status=3, token=token)
    assert expected in output
    assert "hf auth login" in output
    assert {*workspace.hub.requests} <= {"GET /api/whoami-v2"}


@pytest.mark.parametrize("theirs", ["model.bin", "docs/picture.png", "manifest.json"])
def test_a_repository_with_other_content_is_refused(workspace, theirs):
    workspace.hub.commit("model", "me/tiny", {theirs: b"{}", "README.md": b"# Theirs\n"})
    output = workspace.publish(workspace.artifact(), status=2)
    assert f"holds something else, which would be replaced: {theirs}" in output
    assert "--create-pr" in output
    assert set(workspace.files()) == {theirs, "README.md"}


def test_an_artifact_of_another_target_is_replaced_only_on_another_branch(workspace):
    workspace.publish(workspace.artifact())
    other = workspace.artifact("other")
    assert "which would be replaced: the artifact 'tiny'" in workspace.publish(other, status=2)
    workspace.publish(other, "--revision", "other")
    assert json.loads(workspace.files("other")["manifest.json"])["name"] == "other"
    assert json.loads(workspace.files("main")["manifest.json"])["name"] == "tiny"


def test_a_file_added_on_the_hub_is_not_deleted(workspace):
    workspace.publish(workspace.artifact())
    workspace.hub.commit("model", "me/tiny", {**workspace.files(), "LICENSE": b"mine"})
    other = proven.make(workspace.folder / "other" / "tiny", weights=b"other")
    assert "would be replaced: LICENSE" in workspace.publish(other, status=2)


def test_a_tag_of_another_commit_is_refused_before_any_upload(workspace):
    workspace.publish(workspace.artifact(), "--tag", "v1")
    other = proven.make(workspace.folder / "other" / "tiny", weights=b"other")
    assert "the tag 'v1' names another commit" in workspace.publish(other, "--tag", "v1", status=2)
    assert len(workspace.commits()) == 1


def test_a_file_too_large_for_the_hub_is_reported(workspace, monkeypatch):
    import hub_writing

    monkeypatch.setattr(hub_writing, "LARGEST", 100)
    output = workspace.publish(workspace.artifact(), status=2)
    assert "the file is larger than this Hub takes" in output
    assert "me/tiny was made and is empty: another run completes it" in output
    assert set(workspace.files()) == {".gitattributes"}


def test_a_file_above_the_known_limit_is_refused_before_any_upload(tmp_path, no_hub, monkeypatch):
    monkeypatch.setattr(publishing, "LARGEST_FILE", 20_000)
    with pytest.raises(BadTarget, match=r"model\.safetensors: .* the Hub accepts no file above"):
        publish(proven.make(tmp_path / "tiny", weights=b"w" * 30_000))


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/x", "a\\x", "config.JSON", "x\x1b[2J", "x\u202etxt", "plain"], ids=ascii
)
def test_a_commit_that_holds_other_files_than_those_sent_is_refused(workspace, name):
    artifact = workspace.artifact()
    workspace.hub.fail("POST /api/models/me/tiny/commit/main", then=lambda: workspace.hub.planted.update({name: b"x"}))

    def present() -> set[Path]:
        return {path for path in workspace.folder.rglob("*") if "home" not in path.parts}

    before = present()
    output = workspace.publish(artifact, status=4)
    assert "the Hub lists a file whose name" in output or "does not hold the files that were sent: plain" in output
    assert {*"\x1b\u202e"}.isdisjoint(output)
    assert present() - before <= {artifact / "README.md"}
    assert not any("/resolve/" in request and name in request for request in workspace.hub.requests)


# --- retries --------------------------------------------------------------------------------------------------------


def test_a_busy_hub_is_retried_after_the_time_it_names(workspace):
    workspace.hub.fail("POST .*/commit/main", status=429, headers={"Retry_After": "1"})
    output = workspace.publish(workspace.artifact())
    assert "HTTP status 429; trying again in 1 s" in output
    assert len(workspace.commits()) == 1


def test_a_commit_whose_response_was_lost_is_not_made_twice(workspace):
    workspace.hub.fail("POST .*/commit/main", lose=True)
    output = workspace.publish(workspace.artifact(), "--tag", "v1")
    assert "published: commit" in output
    assert len(workspace.commits()) == 1


def test_a_concurrent_commit_of_another_client_is_inspected_before_the_retry(workspace):
    workspace.publish(workspace.artifact())
    theirs = {**workspace.files(), "LICENSE": b"theirs"}
    other = proven.make(workspace.folder / "other" / "tiny", weights=b"other")
    workspace.hub.fail("PUT /objects/.*", then=lambda: workspace.hub.commit("model", "me/tiny", theirs))
    assert "would be replaced: LICENSE" in workspace.publish(other, status=2)
    assert workspace.files() == theirs


@pytest.mark.parametrize("arguments", [(), ("-v",)])
def test_a_token_in_a_response_of_the_hub_is_masked(workspace, arguments):
    workspace.hub.fail("POST .*/preupload/main", status=403, says=f"token {TOKEN} has no rights", times=9)
    output = workspace.publish(workspace.artifact(), *arguments, status=3)
    assert "token (token) has no rights" in output


def test_a_failed_transfer_is_retried_and_a_bug_is_not(monkeypatch):
    monkeypatch.setattr(hub_retry, "WAITS", (0, 0))
    attempts: list[str] = []

    def failing_function(file: str) -> Callable[[], object]:
        """A function defined in `file` that fails as the Xet client does."""
        scope: dict[str, Any] = {"attempts": attempts}
        exec(compile("def work():\n attempts.append('x')\n raise RuntimeError('CAS error')", file, "exec"), scope)
        return cast(Callable[[], object], scope["work"])

    with pytest.raises(QABuildError, match="me/tiny: the transfer failed: CAS error") as caught:
        hub_retry.with_retries(failing_function("/site-packages/huggingface_hub/_commit_api.py"), "me/tiny", SILENT)
    assert "HF_HUB_DISABLE_XET=1" in (caught.value.hint or "")
    assert len(attempts) == 3
    with pytest.raises(RuntimeError, match="CAS error"):
        hub_retry.with_retries(failing_function("/site-packages/qabuild/pushing.py"), "me/tiny", SILENT)
    assert len(attempts) == 4


@pytest.mark.skipif(not ALWAYS_XET, reason="this huggingface_hub detects that a Hub has no Xet")
def test_a_failed_transfer_by_xet_names_the_way_without(workspace):
    process = workspace.run("publish", workspace.artifact(), xet=True)
    assert process.returncode == 5
    assert "the transfer by Xet failed" in process.stderr
    assert "HF_HUB_DISABLE_XET=1 transfers without Xet" in process.stderr


def test_nothing_published_contains_the_token(workspace):
    workspace.publish(workspace.artifact(), "--tag", "v1")
    repository = workspace.repository()
    assert not any(TOKEN.encode() in content for content in workspace.files().values())
    assert TOKEN not in json.dumps([*repository.messages.values(), *workspace.hub.requests])


def test_no_request_failure_loses_anything():
    """Every eleventh case; `python tests/support/hub_faults.py` runs all of them."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "hub_faults.py"), "--every", "11"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(process.stdout)
    assert report["losses"] == []
    assert report["tried"] >= 25


# --- the card -------------------------------------------------------------------------------------------------------


def metadata(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_the_card_reports_the_measurements(workspace):
    workspace.hub.commit("model", "them/base", {"README.md": b"---\nlicense: mit\n---\n"})
    workspace.publish(workspace.artifact())
    text = workspace.files()["README.md"].decode()
    card_metadata = metadata(text)
    assert card_metadata["pipeline_tag"] == "question-answering"
    assert (card_metadata["base_model"], card_metadata["base_model_relation"]) == ("them/base", "quantized")
    assert card_metadata["license"] == "mit"
    assert card_metadata["datasets"] == ["rajpurkar/squad"]
    assert card_metadata["library_name"] == "transformers"
    result = card_metadata["model-index"][0]["results"][0]
    assert result["dataset"] == {
        "name": "rajpurkar/squad",
        "type": "rajpurkar/squad",
        "split": "validation",
        "revision": "a" * 40,
    }
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"exact_match": 50.0, "f1": 50.0}
    assert "| this model | 50.00 | 50.00 |" in text
    assert "F1 retention: 50.00 %, 95 % interval 0.00 to 100.00 %" in text
    assert "2.00 times as fast, 95 % interval\n1.90 to 2.10" in text
    assert "| min_f1_retention | at least 0.4 | 0.5 |" in text
    assert r"| Who \| built \*it\*? | Ann | \<b\>Ben\</b\> | Ann |" in text


def test_the_scores_are_evaluation_results_of_the_hub(workspace):
    workspace.publish(workspace.artifact())
    files = workspace.files()
    results = [yaml.safe_load(files[name]) for name in sorted(RESULTS)]
    assert all(len(result) == 1 for result in results)
    exact_match, f1 = (result[0] for result in results)
    assert exact_match["dataset"] == {"id": "rajpurkar/squad", "task_id": "default", "revision": "a" * 40}
    assert (exact_match["value"], f1["value"]) == (50.0, 50.0)
    assert f1["notes"] == "F1 in percent, split validation, eager fp32"
    assert f1["source"]["url"].endswith("/me/tiny/blob/main/verification.json")
    assert f1["date"] == json.loads(files["verification.json"])["verified_at"]
    try:
        from huggingface_hub import eval_result_entries_to_yaml, parse_eval_result_entries
    except ImportError:  # huggingface_hub below 1.4
        return
    assert eval_result_entries_to_yaml(parse_eval_result_entries(results[1])) == results[1]


def test_evaluation_results_of_others_are_kept_and_ours_replaced(workspace):
    workspace.publish(workspace.artifact())
    theirs = {".eval_results/them.yaml": b"- theirs", ".eval_results/qabuild-old.yaml": b"- of an earlier version"}
    workspace.hub.commit("model", "me/tiny", {**workspace.files(), **theirs})
    other = proven.make(workspace.folder / "other" / "tiny", weights=b"other")
    workspace.publish(other)
    files = workspace.files()
    assert {name for name in files if name.startswith(".eval_results/")} == {*RESULTS, ".eval_results/them.yaml"}
    assert files[".eval_results/them.yaml"] == b"- theirs"
    assert "nothing to do" in workspace.publish(other)


def test_scores_on_a_sample_are_no_evaluation_results(tmp_path):
    sealed = open_artifact(proven.make(tmp_path / "tiny"))
    evidence = evidence_of(sealed)
    assert evidence is not None
    for change in ({"seed": 0}, {"revision": None}):
        data = cast(Any, {**evidence.measurement.data, **change})
        sampled = replace(evidence, measurement=replace(evidence.measurement, data=data))
        assert eval_results.make(sealed, sampled, "me/tiny", "main") == {}


def test_the_target_on_the_card_loads(tmp_path):
    from qabuild.target.read import load

    artifact = open_artifact(proven.make(tmp_path / "tiny"))
    text = card.make(
        artifact, verification_of(artifact), readme.UserContent(), repo="me/tiny", revision="main", base_license=None
    )
    (tmp_path / "tiny.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    target = load(tmp_path / "tiny.toml")
    assert target.backend.model_dump() == artifact.manifest.backend
    assert target.runtime == artifact.manifest.runtime
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
def test_any_user_content_survives_a_round_trip(small, before, after, license, tags):
    metadata = {"license": license, "tags": sorted({tag for tag in tags if tag})}
    user = readme.UserContent(
        before=before.strip(), after=after.strip(), metadata={key: value for key, value in metadata.items() if value}
    )
    text = card.make(small, verification_of(small), user, repo="me/tiny", revision="main", base_license=None)
    content = readme.read(text)
    assert replace(content, published_digest=None) == user
    assert content.published_digest == content.digest == user.digest
    assert card.make(small, verification_of(small), content, repo="me/tiny", revision="main", base_license=None) == text


@given(text=st.text(max_size=40))
def test_a_cell_of_a_table_is_one_line_without_markup(text):
    cell = card._cell(text)
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)(\\\\)*[|<*`]", cell)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> artifacts.Artifact:
    return open_artifact(proven.make(tmp_path_factory.mktemp("small") / "tiny"))


def verification_of(artifact: artifacts.Artifact) -> Verification:
    assert artifact.evidence is not None
    return Verification.from_dict(artifact.evidence)


def test_user_content_survives_wherever_it_was_written(workspace):
    artifact = workspace.artifact()
    (artifact / "README.md").write_text("---\nlanguage: en\ntags: [mine]\nlicense: mit\n---\n# My own title\n")
    workspace.publish(artifact)
    first = workspace.files()["README.md"].decode()
    assert first.index("# My own title") < first.index("# tiny")
    assert metadata(first)["tags"] == ["qabuild", "eager", "fp32", "mine"]
    assert (metadata(first)["language"], metadata(first)["license"]) == ("en", "mit")

    # On the Hub: after the generated part, and within it, where an edit is overwritten.
    edited = first.replace("## Speed", "## Much speed") + "\nAsk me anything.\n"
    workspace.hub.commit("model", "me/tiny", {**workspace.files(), "README.md": edited.encode()})
    workspace.publish(artifact)
    second = workspace.files()["README.md"].decode()
    assert second.rstrip().endswith("Ask me anything.")
    assert "Much speed" not in second
    assert (artifact / "README.md").read_text() == second

    # Beside the artifact, again.
    (artifact / "README.md").write_text(second.replace("My own title", "My other title"))
    workspace.publish(artifact)
    assert "# My other title" in workspace.files()["README.md"].decode()
    assert "nothing to do" in workspace.publish(artifact)


def test_conflicting_edits_of_the_card_are_refused(workspace):
    artifact = workspace.artifact()
    workspace.publish(artifact)
    text = workspace.files()["README.md"].decode()
    workspace.hub.commit("model", "me/tiny", {**workspace.files(), "README.md": f"{text}\nOn the Hub.\n".encode()})
    (artifact / "README.md").write_text(f"{text}\nBeside the artifact.\n")
    output = workspace.publish(artifact, status=2)
    assert "was edited both beside the artifact and on the Hub" in output
    assert "nothing was published: me/tiny is as it was" in output


def test_a_card_with_invalid_metadata_is_refused(workspace):
    artifact = workspace.artifact()
    (artifact / "README.md").write_text("---\n{: :\n---\n")
    assert "README.md: its metadata cannot be read" in workspace.publish(artifact, status=2)
    (artifact / "README.md").write_text("---\nlicense: [1]\n---\n")
    output = workspace.publish(artifact, status=2)
    assert "README.md: the Hub refuses its metadata license: '1' is no id of a license" in " ".join(output.split())
    assert not workspace.hub.requests


def test_a_card_that_only_the_hub_refuses_is_checked_before_anything_is_made(workspace):
    artifact = workspace.artifact()
    (artifact / "README.md").write_text("---\nlanguage: de-AT\n---\n")
    output = workspace.publish(artifact, status=2)
    assert '"language" must be lowercase' in output
    assert "nothing was published: me/tiny is as it was" in output
    assert ("model", "me/tiny") not in workspace.hub.repositories


def test_a_license_that_the_hub_refuses_is_refused_without_the_hub(workspace):
    artifact = workspace.artifact(publish={"repo": "me/tiny", "license": "Apache 2.0"})
    for arguments in ((), ("--dry-run",)):
        output = workspace.publish(artifact, *arguments, status=2, token=None)
        assert "publish.license: 'Apache 2.0' is no id of a license on the Hub: perhaps 'apache-2.0'" in output
    assert not workspace.hub.requests


@pytest.mark.parametrize("name", ["fragen (geprüft) v2.json", "My dev set.csv", "質問.json"])
def test_questions_of_a_file_with_any_name_are_published(workspace, monkeypatch, name):
    monkeypatch.setattr(proven, "DATA", {**proven.DATA, "dataset": name, "file": True, "revision": None, "split": None})
    workspace.publish(workspace.artifact())
    text = workspace.files()["README.md"].decode()
    dataset = metadata(text)["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == name
    assert name in text


def test_a_rebuild_preserves_user_content_and_drops_the_generated_part():
    generated = readme.BEGIN_MARKER.format(digest="0" * 64) + "\n# tiny\n\nF1 50.00\n" + readme.END_MARKER
    text = f"---\nlicense: mit\nmodel-index:\n- name: tiny\n---\nBefore.\n\n{generated}\n\nAfter.\n"
    stripped = readme.without_generated(text)
    assert "F1" not in stripped
    assert "model-index" not in stripped
    assert readme.read(stripped) == readme.read(text)
    assert replace(readme.read(stripped), published_digest=None) == readme.UserContent(
        before="Before.", after="After.", metadata={"license": "mit"}
    )
    assert readme.without_generated("# Wholly my own\n") == "# Wholly my own\n"


# --- the real Hub as well -------------------------------------------------------------------------------------------

ROUND_TRIP = """\
import secrets, sys
from pathlib import Path
from huggingface_hub import HfApi
from qabuild.artifact.key_pair import keygen
from qabuild.artifact.manifest import SIGNATURES, open_artifact
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
def test_a_round_trip(workspace, real):
    token = os.environ.get("QABUILD_TEST_TOKEN") if real else TOKEN
    if token is None:
        pytest.skip("no token for the real Hub in QABUILD_TEST_TOKEN")
    environment = {**os.environ, **workspace.hub.environment(workspace.folder / "home"), "HF_TOKEN": token}
    if real:
        del environment["HF_ENDPOINT"]
    command = [sys.executable, "-c", ROUND_TRIP, workspace.artifact()]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["True False True 5", "True False True"]


# --- end to end -----------------------------------------------------------------------------------------------------

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
for options in ({{"digest": "0" * 64}}, {{"revision": "none"}}):
    try:
        qabuild.load("me/whole", **options)
    except qabuild.QABuildError as error:
        print(type(error).__name__, str(error).splitlines()[0])
from transformers import AutoModelForQuestionAnswering
AutoModelForQuestionAnswering.from_pretrained("me/whole")
"""


@pytest.fixture(scope="module")
def end_to_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, Any]]:
    """The sample, built and published by one command."""
    with Hub({TOKEN: ("me", "write")}) as hub:
        workspace = Workspace(tmp_path_factory.mktemp("whole"), hub)
        (workspace.folder / "whole.toml").write_text(TARGET)
        process = workspace.run("whole.toml", "--publish", "--json")
        assert process.returncode == 0, process.stderr
        yield workspace, json.loads(process.stdout)[0]


def test_a_build_publishes_the_artifact_it_verified(end_to_end):
    workspace, document = end_to_end
    assert document["published"]["commit"] == workspace.repository("me/whole").branches["main"]
    assert metadata(workspace.files(name="me/whole")["README.md"].decode())["license"] == "apache-2.0"


def test_it_loads_by_name_and_digests_are_checked_first(end_to_end):
    workspace, document = end_to_end
    environment = {**os.environ, **workspace.hub.environment(workspace.folder / "elsewhere")}
    script = USE.format(digest=document["manifest"])
    command = [sys.executable, "-c", script]
    process = subprocess.run(
        command, env=environment, cwd=workspace.folder, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    answer, digest, revision = process.stdout.splitlines()
    assert answer in "The bridge was repaired by Alma Serin."
    assert digest.startswith("UntrustedInput")
    assert "not " + "0" * 64 in digest
    assert revision.startswith("BadTarget")
    assert "has no revision 'none'" in revision


def test_an_artifact_on_the_hub_answers_questions(end_to_end):
    workspace, _ = end_to_end
    (workspace.folder / "q.jsonl").write_text('{"id": 1, "question": "Who?", "context": "Alma Serin repaired it."}\n')
    process = workspace.run("answer", "me/whole", "q.jsonl", token=None)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["answer"]


def test_verify_remote_verifies_the_download(end_to_end):
    workspace, _ = end_to_end
    output = workspace.publish("artifacts/whole", "--verify-remote")
    assert "nothing to do" in output
    assert "verified from there" in output


def test_a_file_changed_on_the_hub_is_refused(end_to_end):
    workspace, _ = end_to_end
    files = workspace.files(name="me/whole")
    workspace.hub.commit("model", "me/changed", {**files, "config.json": files["config.json"] + b" "})
    process = workspace.run("answer", "me/changed", "q.jsonl")
    assert process.returncode == 4
    assert "config.json" in process.stderr


def test_a_build_that_cannot_be_published_is_not_started(end_to_end, tmp_path):
    workspace, _ = end_to_end
    (workspace.folder / "nowhere.toml").write_text(TARGET.replace('repo = "me/whole"\n', ""))
    process = workspace.run("nowhere.toml", "--publish")
    assert process.returncode == 2
    assert "does not say where to publish it" in process.stderr
    process = workspace.run("whole.toml", "--publish", "--set", "verify.samples=9", token=None)
    assert process.returncode == 3
    assert not (workspace.folder / "artifacts" / "nowhere").exists()
    assert workspace.run("whole.toml", "--publish", "--compile-only").returncode == 2


def test_a_rebuild_preserves_the_user_content_of_the_card(end_to_end, tmp_path):
    workspace, _ = end_to_end
    copy = Workspace(tmp_path, workspace.hub)
    shutil.copytree(workspace.folder / "artifacts", tmp_path / "artifacts")
    (tmp_path / "whole.toml").write_text(TARGET)
    with (tmp_path / "artifacts" / "whole" / "README.md").open("a") as file:
        file.write("\nMy own words.\n")
    assert copy.run("whole.toml", "--set", "verify.gates.min_f1_retention=0.5").returncode == 0
    text = (tmp_path / "artifacts" / "whole" / "README.md").read_text()
    assert "My own words." in text
    assert "Not published yet." in text


# --- questions that not everyone can read ---------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--dry-run"], [], ["--revision", "other"]])
def test_texts_of_a_private_data_set_are_refused_unless_the_target_shows_them(workspace, arguments):
    workspace.hub.commit("dataset", "rajpurkar/squad", {"README.md": b""})
    workspace.hub.repositories["dataset", "rajpurkar/squad"].private = True
    output = workspace.publish(workspace.artifact(), *arguments, status=2)
    assert "shows texts of rajpurkar/squad, which is not public" in output
    assert ("model", "me/tiny") not in workspace.hub.repositories
    workspace.publish(workspace.artifact("shown", publish={"repo": "me/shown", "data": "full"}), *arguments)
    workspace.hub.repositories["dataset", "rajpurkar/squad"].private = False
    workspace.publish("tiny", *arguments)
