"""Manifests: an artifact that differs from what was sealed is refused before any of it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from qabuild.artifact import manifest as artifacts
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.models.runtime import Runtime

FACTS = {
    "name": "x",
    "qabuild": "0",
    "checkpoint": {"name": "sample", "revision": None, "digest": "d" * 64, "model_type": "bert"},
    "backend": {"name": "eager"},
    "runtime": Runtime(device="cpu", dtype="fp32"),
    "verify": {"split": "validation", "samples": None, "seed": 0, "batch_size": 8, "gates": {}},
    "publish": {},
    "record": {},
    "versions": {},
    "steps": {},
}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "x"
    (folder / "reference").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"weights" * 100)
    (folder / "config.json").write_text("{}")
    (folder / "reference" / "answers.json").write_text("{}")
    artifacts.seal(folder, **FACTS)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UntrustedInput) as error:
        artifacts.open_artifact(folder)
    return str(error.value)


def test_a_sealed_artifact_opens_and_its_manifest_names_every_file(sealed):
    opened = artifacts.open_artifact(sealed)
    assert sorted(opened.manifest.files) == ["config.json", "model.onnx", "reference/answers.json"]
    assert opened.manifest.files["model.onnx"].sha256 == hashlib.sha256(b"weights" * 100).hexdigest()
    assert opened.digest == hashlib.sha256((sealed / "manifest.json").read_bytes()).hexdigest()


def test_a_flipped_byte_is_detected(sealed):
    content = bytearray((sealed / "model.onnx").read_bytes())
    content[50] ^= 1
    (sealed / "model.onnx").write_bytes(content)
    assert "model.onnx: its SHA-256 is" in refusal(sealed)


def test_a_missing_an_added_and_a_truncated_file_are_reported_together(sealed):
    (sealed / "config.json").unlink()
    (sealed / "tokenizer.json").write_text("{}")
    (sealed / "model.onnx").write_bytes(b"short")
    message = refusal(sealed)
    assert "config.json: missing" in message
    assert "tokenizer.json: not in the manifest" in message
    assert "model.onnx: 5 bytes instead of 700" in message


def test_a_symbolic_link_to_the_same_bytes_is_refused(sealed, tmp_path):
    shutil.move(sealed / "model.onnx", tmp_path / "moved")
    os.symlink(tmp_path / "moved", sealed / "model.onnx")
    assert "not a plain file" in refusal(sealed)


def test_a_linked_folder_is_refused(sealed, tmp_path):
    shutil.move(sealed / "reference", tmp_path / "moved")
    os.symlink(tmp_path / "moved", sealed / "reference")
    assert "not a plain file" in refusal(sealed)


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "verification.json", ".cache/huggingface/x"])
def test_unsealed_files_may_change(sealed, name):
    (sealed / name).parent.mkdir(parents=True, exist_ok=True)
    (sealed / name).write_text("{}")
    artifacts.open_artifact(sealed)


@pytest.mark.parametrize("name", ["reference/README.md", "reference/manifest.json", "x/.cache/y"])
def test_unsealed_names_are_sealed_in_subfolders(sealed, name):
    (sealed / name).parent.mkdir(parents=True, exist_ok=True)
    (sealed / name).write_text("{}")
    assert f"{name}: not in the manifest" in refusal(sealed)


def test_a_pinned_digest_refuses_a_resealed_artifact(sealed):
    digest = artifacts.open_artifact(sealed).digest
    (sealed / "model.onnx").write_bytes(b"other weights")
    (sealed / "manifest.json").unlink()
    artifacts.seal(sealed, **FACTS)
    artifacts.open_artifact(sealed)
    with pytest.raises(UntrustedInput, match="not the artifact that was pinned"):
        artifacts.open_artifact(sealed, digest)


def test_a_manifest_edited_after_verification_is_refused(sealed):
    opened = artifacts.open_artifact(sealed)
    assert opened.evidence is None
    (sealed / "verification.json").write_text(json.dumps({"manifest": opened.digest, "passed": True}))
    assert artifacts.open_artifact(sealed).evidence == {"manifest": opened.digest, "passed": True}
    manifest = (sealed / "manifest.json").read_text(encoding="utf-8")
    (sealed / "manifest.json").write_text(manifest.replace('"cpu"', '"cuda"'), encoding="utf-8")
    with pytest.raises(UntrustedInput, match=f"changed since it was verified: .* names {opened.digest}"):
        artifacts.open_artifact(sealed)
    (sealed / "verification.json").unlink()  # as the message suggests to those who trust the manifest
    assert artifacts.open_artifact(sealed).manifest.runtime.device == "cuda"


@pytest.mark.parametrize("evidence", ["", "{", "[]", "{}", '{"manifest": 3}', "\xff"])
def test_damaged_evidence_does_not_prevent_loading(sealed, evidence):
    (sealed / "verification.json").write_text(evidence, encoding="latin-1")
    opened = artifacts.open_artifact(sealed)
    with pytest.raises(UntrustedInput, match=r"verification\.json: damaged"):
        opened.evidence  # noqa: B018 - reading is what fails


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63])
def test_an_invalid_digest_is_reported_as_such(sealed, digest):
    with pytest.raises(BadTarget, match="not a SHA-256"):
        artifacts.open_artifact(sealed, digest)


@pytest.mark.parametrize(
    "manifest",
    ["", "[]", "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {"a": 3}}', "\xff"],
)
def test_a_damaged_manifest_is_refused(sealed, manifest):
    (sealed / "manifest.json").write_text(manifest, encoding="latin-1")
    assert "damaged" in refusal(sealed)


def test_a_missing_key_of_a_manifest_is_named(sealed):
    (sealed / "manifest.json").write_text("{}")
    assert "damaged: it lacks 'format'" in refusal(sealed)


def test_a_manifest_of_a_newer_format_is_refused(sealed):
    document = json.loads((sealed / "manifest.json").read_text())
    (sealed / "manifest.json").write_text(json.dumps({**document, "format": 2}))
    assert "a newer qabuild may read it" in refusal(sealed)


def test_a_manifest_cannot_reach_outside_its_folder(sealed):
    (sealed.parent / "secret").write_text("x")
    document = json.loads((sealed / "manifest.json").read_text())
    document["files"]["../secret"] = {"size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    (sealed / "manifest.json").write_text(json.dumps(document))
    assert "'../secret' is no plain name" in refusal(sealed)


def test_a_path_without_an_artifact_is_reported(tmp_path):
    for path, expected in [(tmp_path, "holds no manifest.json"), (tmp_path / "gone", "no such folder")]:
        with pytest.raises(BadTarget, match=expected):
            artifacts.open_artifact(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadTarget, match="this is a file"):
        artifacts.open_artifact(tmp_path / "file")


@pytest.mark.parametrize("path", ["", "."])
def test_a_current_folder_without_an_artifact_is_reported(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadTarget, match=r"^\.: .*manifest\.json"):
        artifacts.open_artifact(Path(path))


def test_a_kill_while_an_unsealed_file_is_written_leaves_an_artifact_that_opens(sealed):
    """The partial file does not count as one that is missing from the manifest."""
    if os.fork() == 0:
        os.replace = lambda *names, **folders: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        artifacts.write_unsealed(sealed / "README.md", b"# x")
        os._exit(1)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL
    artifacts.open_artifact(sealed)
    artifacts.write_unsealed(sealed / "README.md", b"# x")
    assert (sealed / "README.md").read_text() == "# x"
    assert not (sealed / ".cache").exists()


def test_opening_a_target_suggests_its_artifact(sealed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sealed.parent.joinpath("artifacts").mkdir()
    sealed.rename("artifacts/x")
    (tmp_path / "x.toml").write_text("")
    for name in ("x", "x.toml", "targets/x.toml"):
        with pytest.raises(BadTarget) as error:
            artifacts.open_artifact(Path(name))
        assert error.value.hint == "artifacts/x is one"
    with pytest.raises(BadTarget) as error:
        artifacts.open_artifact(Path("y"))
    assert "artifacts/NAME" in str(error.value.hint)
