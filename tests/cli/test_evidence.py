"""Evidence that was edited, references that were spoiled, and artifacts that are not verified, on the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st

import qabuild
from qabuild.artifact import manifest as artifacts
from qabuild.artifact import measurements
from qabuild.artifact.manifest import open_artifact
from qabuild.artifact.validation import judged_evidence
from qabuild.builder.store.local import Store
from qabuild.cli import main
from qabuild.errors import UntrustedInput, VerificationFailed
from qabuild.evaluation import measure, sealed_questions
from qabuild.qa import sample
from qabuild.system import files
from qabuild.system.sealed import MANIFEST

TARGET = """\
[checkpoint]
model = "sample"
[backend]
name = "{backend}"
[runtime]
dtype = "{dtype}"
[verify]
dataset = "sample"
samples = 96
cross_check = 0.4
gates = {{ min_f1_retention = 0.9 }}
[publish]
repo = "me/{name}"
"""
TOKEN = "hf_mine"
ROW = {"id": 1, "question": "Who repaired the bridge?", "context": "The bridge was repaired by Alma Serin."}

Document = dict[str, Any]
Make = Callable[..., Path]


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`run("verify", "artifacts/tiny")`: the command line in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def command(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return Result(int(stop.value.code or 0), streams.out, streams.err)

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`finished("tiny")`: a folder with that target, its artifact, and the store. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")

    def make(name: str, backend: str = "eager", dtype: str = "fp32") -> Path:
        if not (folder / "artifacts" / name).exists():
            (folder / f"{name}.toml").write_text(TARGET.format(name=name, backend=backend, dtype=dtype))
            built = qabuild.build(folder / f"{name}.toml", folder / "artifacts", results=Store(folder / "store"))
            assert built.verification.passed, built.verification.failed_gates
        return folder

    return make


@pytest.fixture
def built(finished: Make, working_directory: Path, isolated_cache: Path) -> Make:
    """`built("tiny")`: artifacts/tiny in the current folder, with its target, and a store that holds its results."""

    def make(*arguments: str) -> Path:
        source = finished(*arguments)
        shutil.copytree(source, working_directory, dirs_exist_ok=True)
        shutil.copytree(source / "store", isolated_cache, dirs_exist_ok=True)
        return Path("artifacts", arguments[0])

    return make


@pytest.fixture
def tiny(built: Make) -> Path:
    """artifacts/tiny, in fp32."""
    return built("tiny")


def evidence_of(artifact: Path) -> Document:
    document: Document = json.loads((artifact / artifacts.EVIDENCE).read_text())
    return document


def edit(artifact: Path, change: Callable[[Document], object]) -> None:
    """Change the evidence, which no seal covers."""
    document = evidence_of(artifact)
    change(document)
    (artifact / artifacts.EVIDENCE).write_text(json.dumps(document))


def reseal(artifact: Path, evidence: bool = False) -> None:
    """Seal what is in the folder now, as any author of an artifact can; without `evidence`, as if newly built."""
    text = json.loads((artifact / MANIFEST).read_text())
    text["files"] = {name: vars(file) for name, file in artifacts.measure_files(artifact).items()}
    (artifact / MANIFEST).write_text(json.dumps(text))
    if not evidence:
        (artifact / artifacts.EVIDENCE).unlink()


def gates_of(document: Document) -> dict[str, Document]:
    return {gate["name"]: gate for gate in document["gates"]}


# --- edited evidence ------------------------------------------------------------------------------------------------


def set_figures(**figures: Any) -> Callable[[Document], object]:
    return lambda document: document["measurement"].update(figures)


def scale_f1(document: Document) -> None:
    m = document["measurement"]
    m["f1"] *= 0.4982
    gates_of(document)["min_f1_retention"]["value"] *= 0.4982


def leave_out_cross_check(document: Document) -> None:
    document["measurement"]["cross_check"] = None
    document["gates"] = [gate for gate in document["gates"] if not gate["name"].startswith("same_as_")]


EDITS: dict[str, tuple[Callable[[Document], object], str]] = {
    "half the F1": (scale_f1, "f1_difference is 0"),
    "an F1 of 99.9": (set_figures(f1=99.9), "f1_difference is 0, and by the other figures"),
    "an F1 above 100": (set_figures(f1=140.0, checkpoint_f1=140.0), "f1 is 140.0, which cannot be"),
    "an infinite F1": (set_figures(f1=float("inf")), "Infinity is no number of JSON"),
    "an F1 that is no number": (set_figures(f1=float("nan"), checkpoint_f1=float("nan")), "NaN is no number of JSON"),
    "an infinite speed": (set_figures(samples_per_second=float("inf")), "Infinity is no number of JSON"),
    "a text for a number": (set_figures(f1="99.9"), "f1"),
    "half a right answer": (set_figures(exact_match=33.3, checkpoint_exact_match=33.3), "questions in exact_match"),
    "less agreement than flips": (set_figures(agreement=0.999), "agreement is 0.999, and by the other figures 1"),
    "fewer questions": (set_figures(questions=8), "other questions than its target names (samples)"),
    "no questions": (set_figures(questions=0), "questions"),
    "an interval beside its value": (set_figures(f1_difference_interval=[1, 2]), "f1_difference_interval is out of"),
    "no interval of the reference": (set_figures(f1_difference_interval_999=None), "interval_999 is missing"),
    "no check of the reference": (set_figures(reference_check=None), "reference_check.questions is 0"),
    "another retention": (set_figures(f1_retention=1.3), "f1_retention is 1.3"),
    "another logit difference": (set_figures(logit_difference=0.5), "logit_difference is 0.5"),
    "a retention that is true": (set_figures(f1_retention=True), "f1_retention is nan"),
    "a batch where none matters": (set_figures(batch_size=8), "f1 at batch_size is nan"),
    "a batch of -1": (set_figures(batch_size=-1), "f1 at batch_size is nan"),
    "no mean logit difference": (set_figures(logit_rms=None), "logit_rms is nan"),
    "an impossible speed": (set_figures(samples_per_second=1e300), "samples_per_second is 1e+300, which cannot be"),
    "no speed": (set_figures(samples_per_second=0), "samples_per_second is 0"),
    "an impossible second pipeline": (
        lambda d: d["measurement"]["cross_check"].update(samples_per_second=1e300),
        "cross_check.samples_per_second is 1e+300",
    ),
    "an impossible speedup": (
        lambda d: d["measurement"]["cross_check"].update(speedup=1e300),
        "cross_check.speedup x samples_per_second is",
    ),
    "a probe of other rows": (lambda d: d["measurement"]["probes"][0].update(batch=9), "probes.0.batch is 9"),
    "half a row of a probe": (lambda d: d["measurement"]["probes"][0].update(batch=1.5), "probes.0.batch"),
    "a probe that is too long": (
        lambda d: d["measurement"]["probes"][1].update(sequence=10**11),
        "probes.1.sequence is 100000000000",
    ),
    "a probe of no tokens": (lambda d: d["measurement"]["probes"][0].update(sequence=0), "probes.0.sequence is 0"),
    "more of a probe": (lambda d: d["measurement"]["probes"][0].update(x=0), "probes.0.x"),
    "no time": (lambda d: d.update(verified_at="today"), "verified_at"),
    "a day": (lambda d: d.update(verified_at="2026-01-01"), "verified_at"),
    "local time": (lambda d: d.update(verified_at="2026-01-01T00:00:00+01:00"), "verified_at is"),
    "no cross-check": (leave_out_cross_check, "cross_check.questions is 0"),
    "a small cross-check": (
        lambda d: d["measurement"]["cross_check"].update(questions=8),
        "cross_check.questions is 8",
    ),
    "no gates": (lambda d: d.update(gates=[]), "gate min_f1_retention is missing"),
    "a gate less": (lambda d: d["gates"].pop(), "is missing"),
    "a lower limit": (
        lambda d: gates_of(d)["min_agreement"].update(limit=0.1),
        "must be at least 0.1 (passed); but it is",
    ),
    "an upper limit": (
        lambda d: gates_of(d)["min_agreement"].update(bound="at most"),
        "at most 0.995 (passed); but it",
    ),
    "no such limit": (lambda d: gates_of(d)["min_agreement"].update(bound="about"), ".bound: Input"),
    "another gate's value": (lambda d: gates_of(d)["min_agreement"].update(value=0.9961), "min_agreement: 0.9961"),
    "a gate of its own": (
        lambda d: d["gates"].append({"name": "good", "limit": True, "value": True, "passed": True}),
        "gate good is none of its target",
    ),
    "failed, it says": (lambda d: d.update(passed=False), "passed is False, and its gates say otherwise"),
    "of another artifact": (lambda d: d.update(artifact="other"), "it is evidence of 'other'"),
    "of a later format": (lambda d: d.update(format=9), "a newer qabuild may read it"),
}


@pytest.mark.both_lines
@pytest.mark.parametrize(("change", "expected"), EDITS.values(), ids=EDITS)
def test_edited_evidence_is_refused_by_whoever_reads_it_and_replaced_by_a_build(tiny, run, change, expected):
    before = evidence_of(tiny)
    edit(tiny, change)
    assert json.dumps(evidence_of(tiny)) != json.dumps(before)
    Path("q.jsonl").write_text(json.dumps(ROW) + "\n")
    for command in (["publish"], ["compare"], ["answer", "-q", "-o", "a.jsonl"]):
        result = run(command[0], tiny, *(["q.jsonl"] if command[0] == "answer" else []), *command[1:])
        assert result.status == UntrustedInput.exit_status, result.err
        assert re.search(r"verification\.json: (it does not hold for this artifact\n|damaged)", result.err)
        assert expected in result.err
        assert f"qabuild verify {tiny}" in result.err
    assert not Path("a.jsonl").exists()
    result = run("tiny.toml")
    assert result.status == 0
    assert "nothing to do" not in result.err
    assert evidence_of(tiny)["measurement"] == before["measurement"]
    assert "nothing to do" in run("tiny.toml").err


def test_report_refuses_edited_evidence_too(tiny, run):
    pytest.importorskip("vl_convert", reason="the page's plots are made with vl-convert-python")
    edit(tiny, set_figures(f1=99.9))
    result = run("report", tiny)
    assert (result.status, "it does not hold for this artifact" in result.err) == (4, True)
    assert not Path("report.html").exists()


def test_an_edit_that_fails_every_gate_is_a_failed_verification_whatever_it_claims(tiny, run):
    def fail(document: Document) -> None:
        for gate in (gates := gates_of(document)).values():
            gate["passed"] = True
        document["measurement"]["same_tokens"] = gates["same_tokens"]["value"] = False

    edit(tiny, fail)
    assert "gate same_tokens: false, must be true" in run("publish", tiny).err
    edit(tiny, lambda document: gates_of(document)["same_tokens"].update(passed=False) or document.update(passed=False))
    result = run("publish", tiny)
    assert result.status == VerificationFailed.exit_status
    assert "same_tokens: false, must be true" in result.err


def forge(document: Document) -> None:
    """An F1 that is invented, in figures that fit each other."""
    m = document["measurement"]
    m["f1"] = m["checkpoint_f1"] = 99.9
    m["samples_per_second"] *= 100


def test_invented_figures_that_fit_each_other_are_measured_anew_by_a_build(tiny, run):
    before = evidence_of(tiny)
    edit(tiny, forge)
    assert judged_evidence(open_artifact(tiny)).passed
    result = run("tiny.toml")
    assert (result.status, "nothing to do" in result.err) == (0, False)
    assert evidence_of(tiny)["measurement"]["f1"] == before["measurement"]["f1"]


def test_a_build_recognises_evidence_that_its_store_holds_in_another_home(tiny, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user's"))
    assert "nothing to do" in run("tiny.toml").err


def claim(artifact: Path, change: Callable[[Document], object]) -> None:
    """Change the manifest and seal it again, with evidence that names it."""
    manifest = json.loads((artifact / MANIFEST).read_text())
    change(manifest)
    (artifact / MANIFEST).write_text(json.dumps(manifest))
    edit(artifact, lambda evidence: evidence.update(manifest=files.sha256(artifact / MANIFEST)))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["answer"].update(max_answer_len=1),
        lambda manifest: manifest["checkpoint"].update(name="deepset/roberta-base-squad2", digest="0" * 64),
        lambda manifest: manifest["verify"].update(batch_size=1),
    ],
    ids=["answers", "checkpoint", "batch size"],
)
def test_a_measurement_is_of_the_files_as_they_run_and_answer(tiny, run, change):
    sealed, before = (tiny / MANIFEST).read_bytes(), open_artifact(tiny)
    measurement = judged_evidence(before).measurement
    assert measurements.is_registered(before, measurement)
    claim(tiny, change)
    assert not measurements.is_registered(open_artifact(tiny), measurement)
    result = run("tiny.toml")
    assert (result.status, "nothing to do" in result.err) == (0, False), result.err
    assert (tiny / MANIFEST).read_bytes() == sealed


def test_a_checkpoint_under_another_name_is_sealed_under_that(tiny, run, monkeypatch):
    for name in ("first", "second"):
        shutil.copytree(sample.CHECKPOINT, name)
        result = run("tiny.toml", "--set", f"checkpoint.model=./{name}")
        assert (result.status, "nothing to do" in result.err) == (0, False), result.err
        assert open_artifact(tiny).manifest.checkpoint["name"] == name


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of the numbers in a JSON document."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path] if isinstance(value, int | float) else []


@given(st.data())
def test_evidence_with_any_other_figure_does_not_hold_or_was_not_measured_on_this_machine(tampered, data):
    document = json.loads(json.dumps(open_artifact(tampered.original).evidence))
    path = data.draw(st.sampled_from(leaves(document["measurement"])))
    parent = document["measurement"]
    for key in path[:-1]:
        parent = parent[key]
    before = parent[path[-1]]
    parent[path[-1]] = data.draw(st.floats() | st.integers(-1000, 1000) | st.just(before * 1.001 + 0.001))
    if parent[path[-1]] == before:
        return
    (tampered.copy / artifacts.EVIDENCE).write_text(json.dumps(document))
    artifact = open_artifact(tampered.copy)
    try:
        evidence = judged_evidence(artifact)
    except UntrustedInput:
        return
    assert not measurements.is_registered(artifact, evidence.measurement)


@dataclass(frozen=True)
class Tampered:
    """An artifact, and a copy whose evidence may be changed."""

    original: Path
    copy: Path


@pytest.fixture(scope="module")
def tampered(finished: Make, tmp_path_factory: pytest.TempPathFactory) -> Tampered:
    original = finished("tiny") / "artifacts" / "tiny"
    return Tampered(original, shutil.copytree(original, tmp_path_factory.mktemp("tampered") / "tiny"))


# --- publishing what was measured elsewhere -------------------------------------------------------------------------


@pytest.fixture
def published(tiny: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[str, Document]]]:
    """`published(*options, **environment)`: output of `qabuild publish`, and the evidence that it sent."""
    with Hub({TOKEN: ("me", "write")}) as hub:

        def publish(*options: str, **environment: str) -> tuple[str, Document]:
            environment = {**os.environ, **hub.environment(tmp_path / "hf"), "HF_TOKEN": TOKEN, **environment}
            command = [sys.executable, "-m", "qabuild", "publish", str(tiny), *options]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            repository = hub.repositories.get(("model", "me/tiny"))
            files = repository.commits[repository.sha("main")] if repository else {}
            return done.stdout + done.stderr, json.loads(files.get(artifacts.EVIDENCE, b"{}"))

        yield publish


MEASURED_ANEW = "not measured on this machine; measuring it anew"


@pytest.mark.hub
def test_evidence_of_this_machine_is_sent_as_it_is(tiny, published):
    before = evidence_of(tiny)
    output, sent = published()
    assert (MEASURED_ANEW in output, sent) == (False, before)


@pytest.mark.hub
@pytest.mark.parametrize("change", [forge, lambda document: None], ids=["invented", "of another machine"])
def test_evidence_that_was_not_measured_here_is_measured_anew_before_it_is_sent(tiny, published, change, tmp_path):
    before = evidence_of(tiny)
    edit(tiny, change)
    state = str(tmp_path / "another machine")
    output, nothing = published("--dry-run", XDG_STATE_HOME=state)
    assert "not measured on this machine; publishing would measure it anew" in output
    assert nothing == {}
    output, sent = published(XDG_STATE_HOME=state)
    assert output.count(MEASURED_ANEW) == 1
    assert sent["measurement"]["f1"] == before["measurement"]["f1"]
    assert sent["measurement"]["samples_per_second"] != before["measurement"]["samples_per_second"]
    assert sent == evidence_of(tiny)
    assert MEASURED_ANEW not in published(XDG_STATE_HOME=state)[0], "it has been measured here now"


@pytest.mark.hub
def test_what_was_verified_by_hand_is_of_this_machine(tiny, published, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    assert run("verify", tiny).status == 0
    assert MEASURED_ANEW not in published()[0]


# --- a reference that is not the checkpoint's -----------------------------------------------------------------------


def spoil(artifact: Path, answer: Callable[[str], str], which: slice) -> None:
    """Change some reference answers, and seal them."""
    path = artifact / "reference" / "answers.json"
    document = json.loads(path.read_text())
    for name in list(document["answers"])[which]:
        document["answers"][name] = answer(document["answers"][name])
    path.unlink()  # it may be a hard link to the store's file
    path.write_text(json.dumps(document))
    reseal(artifact)


SPOILS: dict[str, tuple[Callable[[str], str], slice]] = {
    "a quarter wrong": (lambda text: "nobody knows", slice(0, None, 4)),
    "the last third empty": (lambda text: "", slice(64, None)),
    "all reversed": (lambda text: text[::-1], slice(None)),
}


@pytest.mark.parametrize(("answer", "which"), SPOILS.values(), ids=SPOILS)
def test_a_reference_that_the_artifact_surpasses_is_not_plausible(built, run, answer, which):
    """In int8, no other gate minds: the answers need not agree, and F1 retention only rises."""
    pytest.importorskip("onnxruntime")
    int8 = built("int8", "onnxruntime", "int8")
    assert run("verify", int8).status == 0, "a sound artifact passes"
    spoil(int8, answer, which)
    result = run("verify", int8)
    assert result.status == VerificationFailed.exit_status
    assert "plausible_reference: " in result.err
    failed = {gate["name"] for gate in evidence_of(int8)["gates"] if not gate["passed"]}
    assert "plausible_reference" in failed


@pytest.mark.parametrize("which", [slice(0, 1), slice(40, 43), slice(95, 96)], ids=["first", "some", "last"])
def test_the_checkpoint_exposes_every_reference_answer_that_is_not_its_own(built, run, which, monkeypatch):
    """Few of them, so that they are plausible; among them those that speed alone would not ask about."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(measure, "SPEED_QUESTIONS", 32)
    int8 = built("int8", "onnxruntime", "int8")
    assert run("verify", int8, "--checkpoint", "sample").status == 0, "a sound artifact passes"
    spoil(int8, lambda text: "nobody knows", which)
    assert run("verify", int8).status == 0, "few wrong answers are plausible"
    result = run("verify", int8, "--checkpoint", "sample")
    assert result.status == VerificationFailed.exit_status
    assert "same_reference: " in result.err


def test_the_checkpoint_exposes_logits_that_are_not_its_own(built, run):
    from safetensors.torch import load_file, save_file

    pytest.importorskip("onnxruntime")
    int8 = built("int8", "onnxruntime", "int8")
    path = int8 / "reference" / "probes.safetensors"
    tensors = load_file(path)
    tensors["2.end_logits"] = tensors["2.end_logits"] + 0.01
    path.unlink()
    save_file(tensors, path)
    reseal(int8)
    assert run("verify", int8).status == 0
    assert "same_reference_logits: 0.01" in run("verify", int8, "--checkpoint", "sample").err


def test_a_reference_in_a_tie_is_the_checkpoints_own(tiny, run, monkeypatch):
    """As on another machine, where the order of summation may decide for the other answer."""
    monkeypatch.setattr(measure, "REFERENCE_TIE", 2.0)
    questions = {q.id: q for q in sealed_questions.load(open_artifact(tiny)).questions}
    path = tiny / "reference" / "answers.json"
    document = json.loads(path.read_text())
    name = next(iter(document["answers"]))
    ranked = qabuild.load(tiny)(question=questions[name].question, context=questions[name].context, top_k=2)
    document["answers"][name] = ranked[1]["answer"]
    path.unlink()
    path.write_text(json.dumps(document))
    reseal(tiny)
    run("verify", tiny, "--checkpoint", "sample")
    check = evidence_of(tiny)["measurement"]["reference_check"]
    assert (check["questions"], check["differences"], check["ties"]) == (96, 1, 1)
    assert gates_of(evidence_of(tiny))["same_reference"]["passed"]


# --- artifacts that are not verified --------------------------------------------------------------------------------


def fail_verification(artifact: Path) -> None:
    """As a build leaves it in NAME.failed: sound figures, and a gate that they fail."""
    document = json.loads((artifact / MANIFEST).read_text())
    document["verify"]["gates"]["min_speedup"] = 1000.0
    (artifact / MANIFEST).write_text(json.dumps(document))
    (artifact / artifacts.EVIDENCE).unlink()
    assert not qabuild.verify(artifact, checkpoint="sample").passed


def of_another_manifest(artifact: Path) -> None:
    document = json.loads((artifact / MANIFEST).read_text())
    (artifact / MANIFEST).write_text(json.dumps({**document, "record": {"other": 1}}))


UNVERIFIED: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "never verified": (lambda a: (a / artifacts.EVIDENCE).unlink(), 1, "artifacts/tiny: not verified"),
    "failed": (fail_verification, 1, "artifacts/tiny: verification failed"),
    "failed, and edited to passed": (
        lambda a: (fail_verification(a), edit(a, lambda d: d.update(passed=True))),
        4,
        "it does not hold for this artifact",
    ),
    "damaged": (lambda a: (a / artifacts.EVIDENCE).write_text("{"), 4, "verification.json: damaged"),
    "edited": (lambda a: edit(a, forge_half), 4, "it does not hold for this artifact"),
    "of another manifest": (of_another_manifest, 4, "changed since it was verified"),
}


def forge_half(document: Document) -> None:
    document["measurement"]["f1"] = 99.9


@pytest.mark.both_lines
@pytest.mark.parametrize(("change", "status", "expected"), UNVERIFIED.values(), ids=UNVERIFIED)
def test_an_artifact_that_is_not_verified_answers_only_if_that_is_allowed(tiny, run, change, status, expected):
    change(tiny)
    Path("q.jsonl").write_text(json.dumps(ROW) + "\n")
    result = run("answer", tiny, "q.jsonl")
    assert (result.status, result.out) == (status, "")
    assert expected in result.err
    if expected != "changed since it was verified":
        assert "--allow-unverified (qabuild.load: allow_unverified=True)" in result.err
    with pytest.raises(qabuild.QABuildError, match=expected):
        qabuild.load(tiny)
    result = run("answer", tiny, "q.jsonl", "--allow-unverified")
    assert (result.status, json.loads(result.out)["id"]) == (0, 1)
    assert result.err.count("; loaded all the same") == 1
    with pytest.warns(UserWarning, match="loaded all the same"):
        assert qabuild.load(tiny, allow_unverified=True)(question=ROW["question"], context=ROW["context"])


@pytest.mark.parametrize("name", ["never verified", "edited", "damaged"])
def test_an_artifact_answers_once_it_is_verified(tiny, run, name):
    UNVERIFIED[name][0](tiny)
    Path("q.jsonl").write_text(json.dumps(ROW) + "\n")
    assert run("verify", tiny).status == 0
    result = run("answer", tiny, "q.jsonl", "--allow-unverified")
    assert (result.status, "loaded all the same" in result.err) == (0, False)
    assert run("answer", tiny, "q.jsonl").status == 0


def test_what_a_failed_build_leaves_does_not_answer(tiny, run):
    assert run("tiny.toml", "--set", "verify.gates.min_speedup=1000").status == 1
    Path("q.jsonl").write_text(json.dumps(ROW) + "\n")
    result = run("answer", "artifacts/tiny.failed", "q.jsonl")
    assert (result.status, result.out) == (1, "")
    assert "min_speedup: " in result.err
    assert run("answer", tiny, "q.jsonl").status == 0


@pytest.mark.hub
def test_an_artifact_of_a_hub_is_judged_by_the_evidence_that_it_brings(tiny, tmp_path):
    Path("q.jsonl").write_text(json.dumps(ROW) + "\n")
    with Hub({}) as hub:
        hub.commit("model", "them/sound", tiny)
        edit(tiny, lambda document: document.update(gates=[]))
        hub.commit("model", "them/edited", tiny)
        environment = {**os.environ, **hub.environment(tmp_path / "hf")}

        def answer(*arguments: str) -> Result:
            command = [sys.executable, "-m", "qabuild", "answer", *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            return Result(done.returncode, done.stdout, done.stderr)

        assert answer("them/sound", "q.jsonl").status == 0
        refused = answer("them/edited", "q.jsonl")
        assert (refused.status, refused.out) == (4, "")
        assert "gate same_tokens is missing" in refused.err
        assert answer("them/edited", "q.jsonl", "--allow-unverified").status == 0
