"""Signatures: what they cover, whom they refuse, and that other programs read them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import proven
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

import qabuild
from qabuild.artifact import key_pair, signature
from qabuild.artifact.load import find
from qabuild.artifact.manifest import SIGNATURES, open_artifact
from qabuild.errors import BadTarget, MissingEnvironment, QABuildError, UntrustedInput

pytestmark = pytest.mark.both_lines


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return proven.make(tmp_path / "tiny")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half is `key.with_suffix(".pub")`."""
    qabuild.keygen(tmp_path / "ours.key")
    return tmp_path / "ours.key"


def is_signed(artifact: Path, key: Path) -> bool:
    find(artifact, key=key.with_suffix(".pub"))
    return True


def statement(path: Path) -> dict[str, Any]:
    """The in-toto statement in a signature, without verifying it."""
    envelope = json.loads(path.read_text())["dsseEnvelope"]
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    document: dict[str, Any] = json.loads(b64decode(envelope["payload"]))
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    return document


def pem(key: Any) -> bytes:
    """A private key as PEM, or a public one."""
    if hasattr(key, "private_bytes"):
        formats = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return bytes(key.private_bytes(serialization.Encoding.PEM, *formats))
    return bytes(key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


# --- keys -----------------------------------------------------------------------------------------------------------


def test_a_private_key_is_readable_by_its_owner_alone(tmp_path):
    public = qabuild.keygen(tmp_path / "release.key")
    assert public == tmp_path / "release.pub"
    assert stat.S_IMODE((tmp_path / "release.key").stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()


@pytest.mark.parametrize("existing", ["mine.key", "mine.pub"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_no_file_is_overwritten_by_a_key(tmp_path, existing, kind):
    other = tmp_path / "other"
    if kind != "dangling link":
        other.write_text("precious")
    if kind == "file":
        other.rename(tmp_path / existing)
    else:
        (tmp_path / existing).symlink_to(other)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(BadTarget, match="exists, and no key is overwritten"):
        qabuild.keygen(tmp_path / "mine.key")
    assert {path.name for path in tmp_path.iterdir()} == before
    assert kind == "dangling link" or (tmp_path / existing).read_text() == "precious"


def test_a_key_is_not_made_inside_an_artifact(artifact):
    with pytest.raises(BadTarget, match="lies in the artifact"):
        qabuild.keygen(artifact / "mine.key")


def test_the_private_key_needs_another_name_than_the_public_one(tmp_path):
    with pytest.raises(BadTarget, match="name of the public key"):
        qabuild.keygen(tmp_path / "mine.pub")


@pytest.mark.parametrize("name", ["no/x.key", "a.key/x.key", ".", "x" * 300])
def test_a_place_that_holds_no_key_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    qabuild.keygen("a.key")
    with pytest.raises(BadTarget):
        qabuild.keygen(name)


def test_a_passphrase_that_openssl_cannot_take_is_refused(artifact, key, tmp_path, monkeypatch):
    monkeypatch.setenv("QABUILD_KEY_PASSPHRASE", "x" * 5000)
    for attempt in (lambda: qabuild.keygen(tmp_path / "a.key"), lambda: qabuild.sign(artifact, key)):
        with pytest.raises(BadTarget, match="QABUILD_KEY_PASSPHRASE has 5000 bytes"):
            attempt()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "long file"])
def test_what_is_no_file_of_a_key_never_hangs(artifact, tmp_path, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "long file":
        path.touch()
        os.truncate(path, 1 << 40)
    signal.alarm(60)  # a hang ends the process
    for attempt in (lambda: qabuild.sign(artifact, path), lambda: find(artifact, key=path)):
        with pytest.raises(BadTarget, match=str(path)):
            attempt()
    signal.alarm(0)


def test_a_passphrase_encrypts_the_private_key(artifact, tmp_path, monkeypatch):
    monkeypatch.setenv("QABUILD_KEY_PASSPHRASE", "correct horse")
    qabuild.keygen(tmp_path / "locked.key")
    assert b"ENCRYPTED" in (tmp_path / "locked.key").read_bytes()
    qabuild.sign(artifact, tmp_path / "locked.key")
    assert is_signed(artifact, tmp_path / "locked.key")
    for wrong in ("battery staple", ""):
        monkeypatch.setenv("QABUILD_KEY_PASSPHRASE", wrong)
        with pytest.raises(BadTarget, match=r"(?i)password") as refusal:
            qabuild.sign(artifact, tmp_path / "locked.key")
        assert "QABUILD_KEY_PASSPHRASE" in str(refusal.value.hint)


def test_a_wrong_passphrase_that_decrypts_to_no_key_is_called_wrong(artifact, tmp_path, monkeypatch):
    """Few do: the decrypted bytes are padded right by chance."""
    monkeypatch.setenv("QABUILD_KEY_PASSPHRASE", "correct horse")
    qabuild.keygen(tmp_path / "locked.key")
    content = (tmp_path / "locked.key").read_bytes()

    def is_padded(passphrase: str) -> bool:
        with pytest.raises(ValueError, match=r"password|deserialize") as refusal:
            serialization.load_pem_private_key(content, passphrase.encode())
        return "password" not in str(refusal.value)

    monkeypatch.setenv("QABUILD_KEY_PASSPHRASE", next(filter(is_padded, map(str, range(100_000)))))
    with pytest.raises(BadTarget, match=r"Incorrect password, or the key is damaged"):
        qabuild.sign(artifact, tmp_path / "locked.key")


WRONG_KEYS = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "another curve": ec.generate_private_key(ec.SECP256K1()),
}


@pytest.mark.parametrize("kind", [*WRONG_KEYS, "no key", "the other half"])
def test_keys_of_other_kinds_are_refused(artifact, key, tmp_path, kind):
    private, public = tmp_path / "wrong.key", tmp_path / "wrong.pub"
    if kind in WRONG_KEYS:
        private.write_bytes(pem(WRONG_KEYS[kind]))
        public.write_bytes(pem(WRONG_KEYS[kind].public_key()))
    elif kind == "the other half":
        private, public = key.with_suffix(".pub"), key
    else:
        private.write_text("hello\n")
        public.write_bytes(os.urandom(99))
    with pytest.raises(BadTarget, match="not a private key on the curve"):
        qabuild.sign(artifact, private)
    qabuild.sign(artifact, key)
    with pytest.raises(BadTarget, match="not a public key on the curve"):
        find(artifact, key=public)


def test_a_key_that_does_not_exist_is_refused(artifact, tmp_path):
    with pytest.raises(BadTarget, match=r"none\.key: No such file"):
        qabuild.sign(artifact, tmp_path / "none.key")
    with pytest.raises(BadTarget, match=r"none\.pub: No such file"):
        find(artifact, key=tmp_path / "none.pub")


# --- signatures -----------------------------------------------------------------------------------------------------


def test_a_signed_artifact_is_accepted_by_its_key_and_no_other(artifact, key, tmp_path):
    digest = open_artifact(artifact).digest
    assert sorted(qabuild.sign(artifact, key)) == sorted(SIGNATURES)
    assert open_artifact(artifact).digest == digest
    assert is_signed(artifact, key)
    with pytest.raises(UntrustedInput, match=r"model\.sig: not a signature by .*theirs\.pub"):
        find(artifact, key=qabuild.keygen(tmp_path / "theirs.key"))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_keys_of_every_supported_curve_sign(artifact, tmp_path, curve):
    private = ec.generate_private_key(curve)
    (tmp_path / "made.key").write_bytes(pem(private))
    (tmp_path / "made.pub").write_bytes(pem(private.public_key()))
    qabuild.sign(artifact, tmp_path / "made.key")
    assert is_signed(artifact, tmp_path / "made.key")


def test_an_unsigned_artifact_is_refused(artifact, key):
    with pytest.raises(UntrustedInput, match=r"not signed: it holds no model\.sig"):
        is_signed(artifact, key)


def reseal(artifact: Path) -> None:
    """Make the manifest's sums anew, as anyone can who may write the files; the evidence follows."""
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    names = [p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file() and p.name != "README.md"]
    manifest["files"] = {
        name: {"size": len(content), "sha256": sha256(content).hexdigest()}
        for name in names
        if name not in {"manifest.json", "verification.json", *SIGNATURES}
        for content in [(artifact / name).read_bytes()]
    }
    path.write_text(json.dumps(manifest))
    evidence = json.loads((artifact / "verification.json").read_text())
    evidence["manifest"] = sha256(path.read_bytes()).hexdigest()
    (artifact / "verification.json").write_text(json.dumps(evidence))
    open_artifact(artifact)


def change_a_byte(artifact: Path) -> None:
    content = bytearray((artifact / "model.safetensors").read_bytes())
    content[0] ^= 1
    (artifact / "model.safetensors").write_bytes(content)


CHANGES = {
    "a changed byte": change_a_byte,
    "an extra file": lambda artifact: (artifact / "notes.txt").write_text("theirs\n"),
    "a removed file": lambda artifact: (artifact / "config.json").unlink(),
    "a renamed file": lambda artifact: (artifact / "config.json").rename(artifact / "config2.json"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_resealed_change_is_refused(artifact, key, change):
    qabuild.sign(artifact, key)
    change(artifact)
    reseal(artifact)
    with pytest.raises(UntrustedInput, match=r"model\.sig: a signature by .*, but of other files"):
        is_signed(artifact, key)


def test_a_file_that_git_ignores_is_refused_before_any_signature(artifact, key):
    qabuild.sign(artifact, key)
    (artifact / ".gitignore").write_text("model.safetensors\n")
    with pytest.raises(UntrustedInput, match=r"'\.gitignore' is hidden"):
        reseal(artifact)


def test_a_change_that_is_not_resealed_is_refused_before_any_signature(artifact, key):
    qabuild.sign(artifact, key)
    change_a_byte(artifact)
    with pytest.raises(UntrustedInput, match="not as it was sealed"):
        is_signed(artifact, key)


def test_a_link_in_place_of_a_signature_is_refused(artifact, key, tmp_path):
    qabuild.sign(artifact, key)
    (artifact / "model.sig").rename(tmp_path / "model.sig")
    (artifact / "model.sig").symlink_to(tmp_path / "model.sig")
    with pytest.raises(UntrustedInput, match="not a plain file"):
        is_signed(artifact, key)


@pytest.mark.parametrize("change", [{"passed": False}, {"gates": []}])
def test_evidence_that_does_not_hold_is_not_signed(artifact, key, change):
    evidence = artifact / "verification.json"
    evidence.write_text(json.dumps({**json.loads(evidence.read_text()), **change}))
    with pytest.raises(UntrustedInput, match="it does not hold for this artifact"):
        qabuild.sign(artifact, key)
    assert not any((artifact / name).exists() for name in SIGNATURES)


def test_another_artifact_does_not_inherit_the_signature(artifact, key, tmp_path):
    other = proven.make(tmp_path / "other", weights=b"theirs" * 99)
    qabuild.sign(artifact, key)
    for name in SIGNATURES:
        shutil.copyfile(artifact / name, other / name)
    with pytest.raises(UntrustedInput, match="but of other files"):
        is_signed(other, key)


def test_one_signature_does_not_stand_for_another(artifact, key):
    qabuild.sign(artifact, key)
    shutil.copyfile(artifact / "provenance.sig", artifact / "model.sig")
    with pytest.raises(UntrustedInput, match=r"model\.sig"):
        is_signed(artifact, key)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[" * 100_000,
        lambda text: "null",
        lambda text: json.dumps({**json.loads(text), "dsseEnvelope": {}}),
        lambda text: json.dumps({**json.loads(text), "verificationMaterial": None}),
        lambda text: json.dumps({**json.loads(text), "mediaType": "text/plain"}),
    ],
    ids=["truncated", "empty", "deeply nested", "null", "no envelope", "no key", "another format"],
)
def test_a_damaged_signature_is_refused(artifact, key, damage, capfd):
    qabuild.sign(artifact, key)
    for name in SIGNATURES:
        text = (artifact / name).read_text()
        (artifact / name).write_text(damage(text))
        with pytest.raises(UntrustedInput, match=f"{name}: not a signature by"):
            is_signed(artifact, key)
        (artifact / name).write_text(text)
    assert capfd.readouterr().out == ""


def test_a_signature_that_does_not_name_its_key_prints_nothing(artifact, key, capfd):
    qabuild.sign(artifact, key)
    bundle = json.loads((artifact / "model.sig").read_text())
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    (artifact / "model.sig").write_text(json.dumps(bundle))
    assert is_signed(artifact, key)
    assert capfd.readouterr().out == ""


def test_a_forged_statement_is_refused(artifact, key):
    """The envelope's payload is replaced by that of another artifact; the signature is not made anew."""
    qabuild.sign(artifact, key)
    bundle = json.loads((artifact / "model.sig").read_text())
    other = json.loads((artifact / "provenance.sig").read_text())
    bundle["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]
    (artifact / "model.sig").write_text(json.dumps(bundle))
    with pytest.raises(UntrustedInput, match=r"model\.sig: not a signature"):
        is_signed(artifact, key)


def test_signing_again_changes_nothing(artifact, key, tmp_path):
    qabuild.sign(artifact, key)
    before = {name: (artifact / name).read_bytes() for name in SIGNATURES}
    assert qabuild.sign(artifact, key) == []
    assert {name: (artifact / name).read_bytes() for name in SIGNATURES} == before
    qabuild.keygen(tmp_path / "next.key")
    assert sorted(qabuild.sign(artifact, tmp_path / "next.key")) == sorted(SIGNATURES)
    assert is_signed(artifact, tmp_path / "next.key")


# --- evidence -------------------------------------------------------------------------------------------------------


def test_a_new_verification_invalidates_the_signature_of_the_evidence_only(artifact, key):
    qabuild.sign(artifact, key)
    proven.verify(open_artifact(artifact))
    assert not (artifact / "verification.sig").exists()
    assert is_signed(artifact, key)
    assert qabuild.sign(artifact, key) == ["verification.sig"]


def test_changed_evidence_is_refused(artifact, key):
    qabuild.sign(artifact, key)
    evidence = json.loads((artifact / "verification.json").read_text())
    evidence["measurement"]["f1"] = 99.9
    (artifact / "verification.json").write_text(json.dumps(evidence))
    with pytest.raises(UntrustedInput, match=r"verification\.sig: .* of other files"):
        is_signed(artifact, key)
    signature.require(open_artifact(artifact), key.with_suffix(".pub"), evidence=False)  # it is about to be replaced
    (artifact / "verification.json").unlink()
    with pytest.raises(UntrustedInput, match=r"verification\.sig: .* of other files"):
        is_signed(artifact, key)


def test_evidence_that_is_not_signed_counts_where_it_was_measured(artifact, key, tmp_path, monkeypatch):
    qabuild.sign(artifact, key)
    (artifact / "verification.sig").unlink()
    public = key.with_suffix(".pub")
    assert find(artifact, key=public)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine's"))
    with pytest.raises(UntrustedInput, match=r"verification\.json: not signed, and not measured on this machine"):
        find(artifact, key=public)
    assert find(artifact, key=public, allow_unverified=True)
    assert find(artifact), "without a key, whoever wrote the evidence is trusted"


def test_an_unverified_artifact_is_signed_without_a_test_result(artifact, key):
    (artifact / "verification.json").unlink()
    assert sorted(qabuild.sign(artifact, key)) == ["model.sig", "provenance.sig"]
    assert is_signed(artifact, key)


# --- commands -------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    """Exit status and output of a command."""
    command = [sys.executable, "-m", "qabuild", *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return process.returncode, process.stdout


def test_verify_and_answer_refuse_what_the_key_did_not_sign(artifact, key, tmp_path):
    (tmp_path / "questions.jsonl").write_text("")
    for command in (["verify", artifact], ["answer", artifact, tmp_path / "questions.jsonl"]):
        status, output = run(*command, "--key", key.with_suffix(".pub"))
        assert (status, "not signed: it holds no model.sig" in output) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sign", "tiny"], "one of the two"),
        (["sign", "tiny", "--key", "a.key", "--sigstore"], "one of the two"),
        (["verify", "tiny", "--identity", "me@example.org"], "--identity and --issuer need each other"),
        (["verify", "tiny", "--identity", "me", "--issuer", "it", "--key", "a.pub"], "exclude each other"),
        (["sign", "nowhere", "--key", "a.key"], "no such folder"),
        (["sbom", "tiny", "-o", "tiny/bill.json"], "which is sealed"),
    ],
)
def test_wrong_usage_is_status_2(artifact, monkeypatch, arguments, message):
    monkeypatch.chdir(artifact.parent)
    status, output = run(*arguments)
    assert (status, message in output) == (2, True), output


# --- what the statements say ----------------------------------------------------------------------------------------


def test_model_signing_verifies_our_signature_and_we_verify_its(artifact, key, tmp_path):
    from model_signing import hashing, signing, verifying

    qabuild.sign(artifact, key)
    (artifact / "README.md").write_text("# Mine\n")
    path, public = artifact / "model.sig", key.with_suffix(".pub")
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(artifact, path)
    command = ["verify", "key", artifact, "--signature", path, "--public_key", public]
    subprocess.run([sys.executable, "-m", "model_signing", *map(str, command)], check=True, capture_output=True)
    path.unlink()
    rest = ["README.md", "verification.json", *SIGNATURES]
    config = hashing.Config().set_ignored_paths(paths=rest)
    signing.Config().set_hashing_config(config).use_elliptic_key_signer(private_key=key).sign(artifact, path)
    assert is_signed(artifact, key)


def test_the_provenance_names_what_the_artifact_was_built_from(artifact, key):
    qabuild.sign(artifact, key)
    document = statement(artifact / "provenance.sig")
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    manifest = {"name": "manifest.json", "digest": {"sha256": open_artifact(artifact).digest}}
    assert manifest in document["subject"]
    build = document["predicate"]["buildDefinition"]
    assert build["externalParameters"]["backend"]["name"] == "eager"
    checkpoint, data, *packages = build["resolvedDependencies"]
    assert checkpoint["digest"] == {"gitCommit": "b" * 40}
    assert checkpoint["uri"] == f"https://huggingface.co/them/base/tree/{'b' * 40}"
    assert checkpoint["annotations"]["digest"] == "d" * 64
    assert data["uri"] == f"https://huggingface.co/datasets/rajpurkar/squad/tree/{'a' * 40}"
    assert data["annotations"]["fingerprint"] == "f" * 64
    assert any(package["uri"].startswith("pkg:pypi/torch@") for package in packages)
    assert document["predicate"]["runDetails"]["builder"]["id"] == "pkg:pypi/qabuild@0.1.0"


def test_the_test_result_names_the_gates_and_the_machine(artifact, key):
    qabuild.sign(artifact, key)
    document = statement(artifact / "verification.sig")
    assert document["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    evidence = sha256((artifact / "verification.json").read_bytes()).hexdigest()
    assert {"name": "verification.json", "digest": {"sha256": evidence}} in document["subject"]
    predicate = document["predicate"]
    assert predicate["result"] == "PASSED"
    assert "min_f1_retention" in predicate["passedTests"]
    assert predicate["failedTests"] == []
    assert predicate["configuration"][0]["annotations"]["machine"]["cpu"]


def test_the_test_result_of_a_failed_artifact_says_so(artifact, key):
    proven.verify(open_artifact(artifact), finite_logits=False)
    qabuild.sign(artifact, key)
    predicate = statement(artifact / "verification.sig")["predicate"]
    assert predicate["result"] == "FAILED"
    assert "finite_logits" in predicate["failedTests"]


# --- what is missing ------------------------------------------------------------------------------------------------


def test_without_the_extra_the_message_names_it(artifact, tmp_path, monkeypatch):
    monkeypatch.setattr(key_pair, "PACKAGES", ("model-signing-of-tomorrow",))
    for attempt in (
        lambda: qabuild.keygen(tmp_path / "a.key"),
        lambda: qabuild.sign(artifact, tmp_path / "a.key"),
        lambda: find(artifact, key=tmp_path / "a.pub"),
    ):
        with pytest.raises(MissingEnvironment, match=r"pip install 'qabuild\[sign\]'"):
            attempt()


def test_sigstore_without_a_network_is_explained(artifact, key, monkeypatch):
    """Nothing answers on that port; identities cannot be tried without Sigstore's servers."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    qabuild.sign(artifact, key)
    with pytest.raises(QABuildError, match="Sigstore: "):
        find(artifact, key=qabuild.Identity("me@example.org", "https://accounts.example.org"))
    with pytest.raises(QABuildError, match="Sigstore: "):
        qabuild.sign(artifact)


def test_a_key_is_no_identity(artifact, key, monkeypatch):
    """Sigstore's roots of trust come with its package here; it would fetch the newest."""
    from sigstore.models import ClientTrustConfig

    offline = ClientTrustConfig.production(offline=True)
    monkeypatch.setattr(ClientTrustConfig, "production", lambda: offline)
    qabuild.sign(artifact, key)
    with pytest.raises(UntrustedInput, match=r"model\.sig: not a signature by me@example\.org \(https://accounts"):
        find(artifact, key=qabuild.Identity("me@example.org", "https://accounts.example.org"))
