"""Verification of tampered artifacts, which are sealed again so that their digests are right; gates; stock pipeline."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import qabuild
from qabuild.artifact import manifest as artifacts
from qabuild.artifact import sealed_reference
from qabuild.artifact.evidence import Verification
from qabuild.artifact.judge import explain_failure, judge
from qabuild.artifact.manifest import Artifact, open_artifact, seal
from qabuild.builder.store.local import Store
from qabuild.errors import BadTarget, UntrustedInput
from qabuild.evaluation import cross_check, measure, sealed_questions
from qabuild.evaluation import verify as verify_module
from qabuild.evaluation.bootstrap import mean_interval
from qabuild.evaluation.verify import verify
from qabuild.models.backends.torchscript.archive import save
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.qa import ask, data
from qabuild.system import sealed
from qabuild.system.reporter import Silent
from qabuild.target.gates import Gates

# The F1 of a checkpoint with random weights says nothing; its logits and answers do.
TARGET = """
[checkpoint]
model = "{model}"
[backend]
name = "{backend}"
{options}
[verify]
dataset = "sample"
samples = 16
[verify.gates]
min_f1_retention = 0.0
"""

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any) -> Make:
    """`build("eager")`: the artifact of a tiny BERT, built once; `build("eager", "sample")`: of another checkpoint."""
    folder = tmp_path_factory.mktemp("verification")

    def make(backend: str, model: str = "bert", options: str = "") -> Path:
        name = f"{backend}-{model}"
        if not (folder / "artifacts" / name).exists():
            source = model if model == "sample" else tiny_checkpoint(model)
            text = TARGET.format(model=source, backend=backend, options=options)
            (folder / f"{name}.toml").write_text(text, encoding="utf-8")
            built = qabuild.build(folder / f"{name}.toml", folder / "artifacts", results=Store(folder / "store"))
            assert built.verification.passed
        return folder / "artifacts" / name

    return make


@pytest.fixture
def tampered(build: Make, tmp_path: Path) -> Callable[..., Path]:
    """`tampered(change, "eager")`: a copy of that artifact after `change(folder)`, sealed again."""

    def tamper(change: Callable[[Path], object], *names: str) -> Path:
        original = open_artifact(build(*names))
        copy = tmp_path / "tampered"
        shutil.copytree(original.directory, copy)
        change(copy)
        reseal(copy, original)
        return copy

    return tamper


def reseal(folder: Path, original: Artifact, **changed: Any) -> None:
    facts = {name: value for name, value in original.manifest.__dict__.items() if name != "files"}
    (folder / artifacts.EVIDENCE).unlink()  # a newly built artifact has none
    seal(folder, **{**facts, **changed})


def failed(verification: Verification) -> set[str]:
    assert verification.passed is not bool(verification.failed_gates)
    return {gate.name for gate in verification.failed_gates}


# --- tampered artifacts ---------------------------------------------------------------------------------------------


def test_an_unchanged_copy_passes_in_another_folder(build, tmp_path):
    copy = shutil.copytree(build("torchscript"), tmp_path / "elsewhere")
    verification = verify(copy)
    assert verification.passed
    assert verification.measurement.agreement == 1
    assert verification.measurement.flips == []
    assert verification.measurement.speed is None, "a speedup needs the checkpoint"
    assert open_artifact(copy).evidence == json.loads(json.dumps(verification.to_dict()))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "reference/answers.json"])
def test_a_flipped_byte_is_refused_before_anything_is_loaded(build, tmp_path, name):
    copy = shutil.copytree(build("eager"), tmp_path / "flipped")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).unlink()  # it may be a hard link to the store's file
    (copy / name).write_bytes(content)
    before = (copy / artifacts.EVIDENCE).read_bytes()
    with pytest.raises(UntrustedInput, match=name):
        verify(copy)
    assert (copy / artifacts.EVIDENCE).read_bytes() == before


def test_the_tokenizer_of_another_checkpoint_fails_same_tokens(tampered, build):
    def exchange(folder: Path) -> None:
        for path in build("eager", "distilbert").glob("*token*"):
            shutil.copyfile(path, replaced(folder / path.name))
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        entries = vocabulary["model"]["vocab"]
        one, other = [word for word in entries if word.isalpha()][:2]
        entries[one], entries[other] = entries[other], entries[one]
        replaced(folder / "tokenizer.json").write_text(json.dumps(vocabulary), encoding="utf-8")

    assert "same_tokens" in failed(verify(tampered(exchange, "eager")))


def test_a_trace_without_token_types_fails_on_logits(tampered, build, tiny_checkpoint):
    checkpoint = resolve(str(tiny_checkpoint("bert")), None)
    model = load_model(checkpoint)

    class WithoutTokenTypes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            output = self.model(input_ids=input_ids, attention_mask=attention_mask)
            return output.start_logits, output.end_logits

    def drop(folder: Path) -> None:
        tokenizer = load_tokenizer(checkpoint.directory)
        batch = tokenizer(["what is it", "where"], ["it is this", "here and there"], padding=True, return_tensors="pt")
        example = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        traced = torch.jit.trace(WithoutTokenTypes().eval(), example, check_trace=False)
        save(torch.jit.freeze(traced), replaced(folder / "model.pt"))

    assert json.loads((build("torchscript") / "trace.json").read_text())["inputs"] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    assert "max_logit_difference" in failed(verify(tampered(drop, "torchscript")))


def test_swapped_layers_fail_on_logits(tampered):
    def swap(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        first, second = ".layer.0.", ".layer.1."
        swapped = {
            (name.replace(first, second) if first in name else name.replace(second, first)): tensor
            for name, tensor in weights.items()
        }
        assert swapped.keys() == weights.keys()
        save_file(swapped, replaced(folder / "model.safetensors"), {"format": "pt"})

    assert "max_logit_difference" in failed(verify(tampered(swap, "eager")))


def test_swapped_layers_of_a_trained_checkpoint_change_its_answers(tampered):
    def swap(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        names = {name: name.replace(".0.", ".T.").replace(".1.", ".0.").replace(".T.", ".1.") for name in weights}
        save_file({names[name]: weights[name] for name in weights}, replaced(folder / "model.safetensors"))

    verification = verify(tampered(swap, "eager", "sample"))
    assert {"max_logit_difference", "min_agreement"} <= failed(verification)
    assert verification.measurement.f1 < verification.measurement.checkpoint_f1
    flip = verification.measurement.flips[0]
    assert flip.f1_difference < 0
    assert flip.artifact != flip.checkpoint
    message, hint = explain_failure(verification, Path("artifacts/x"))
    assert flip.id in message
    assert f"{len(verification.measurement.flips)} answers changed" in hint


def test_a_mask_that_overflows_in_fp16_fails_on_finite_logits(tampered):
    """The mask as `(1 - mask) * min`, where min is -inf in fp16: 0 * -inf is NaN, and so is every logit."""
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def overflow(folder: Path) -> None:
        graph = onnx.load(folder / "model.onnx")
        with np.errstate(over="ignore"):
            least = np.float32(np.finfo(np.float32).min).astype(np.float16)
        graph.graph.initializer.append(numpy_helper.from_array(least, "least"))
        graph.graph.initializer.append(numpy_helper.from_array(np.float16(1), "one"))
        graph.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
        masked = [
            helper.make_node("Cast", ["attention_mask"], ["half_mask"], to=TensorProto.FLOAT16),
            helper.make_node("Sub", ["one", "half_mask"], ["inverted"]),
            helper.make_node("Mul", ["inverted", "least"], ["overflowed"]),
            helper.make_node("Cast", ["overflowed"], ["single"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["single", "axes"], ["overflowed_mask"]),
        ]
        nodes = []
        for node in graph.graph.node:
            if node.op_type == "Softmax":
                nodes.append(helper.make_node("Add", [node.input[0], "overflowed_mask"], [f"{node.name}_masked"]))
                node.input[0] = f"{node.name}_masked"
            nodes.append(node)
        assert len(nodes) > len(graph.graph.node), "the graph has attention"
        del graph.graph.node[:]
        graph.graph.node.extend(masked + nodes)
        onnx.save(graph, replaced(folder / "model.onnx"))

    assert {"finite_logits", "max_logit_difference", "min_agreement"} <= failed(
        verify(tampered(overflow, "onnxruntime", "bert", "level = 0"))
    )


def test_an_ignored_mask_fails_on_probes_with_padding(tampered, tiny_checkpoint):
    model = load_model(resolve(str(tiny_checkpoint("bert")), None))

    class WithoutMask(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            output = self.model(input_ids=input_ids, token_type_ids=token_type_ids)
            return output.start_logits, output.end_logits

    def ignore(folder: Path) -> None:
        ids = torch.ones((2, 8), dtype=torch.int64)
        traced = torch.jit.trace(WithoutMask().eval(), (ids, ids, ids), check_trace=False)
        save(torch.jit.freeze(traced), replaced(folder / "model.pt"))

    verification = verify(tampered(ignore, "torchscript"))
    assert "max_logit_difference" in failed(verification)
    unpadded = verification.measurement.probes[0]
    assert unpadded["batch"] == 1
    assert unpadded["logit_difference"] < 1e-4, "a single row has no padding"


def test_changed_reference_answers_fail_on_agreement(tampered):
    """The artifact still gives the original answers, so forged ones lower the agreement."""

    def forge(folder: Path) -> None:
        path = folder / "reference" / sealed_reference.ANSWERS
        document = json.loads(path.read_text(encoding="utf-8"))
        document["answers"] = dict.fromkeys(document["answers"], "forged")
        replaced(path).write_text(json.dumps(document), encoding="utf-8")

    assert "min_agreement" in failed(verify(tampered(forge, "eager")))


def replaced(path: Path) -> Path:
    """`path` without its file, which may be a hard link to the store's."""
    path.unlink(missing_ok=True)
    return path


# --- questions ------------------------------------------------------------------------------------------------------


def test_questions_other_than_the_sealed_ones_are_refused(build, tmp_path):
    sample = json.loads(Path(qabuild.qa.sample.HELDOUT).read_text(encoding="utf-8"))
    paragraph = sample["data"][0]["paragraphs"][0]
    sealed = sealed_reference.read(build("eager") / sealed_reference.FOLDER)
    for article in sample["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                if qa["id"] in sealed.answers:
                    qa["question"] += "?"
    (tmp_path / "other.json").write_text(json.dumps(sample), encoding="utf-8")
    with pytest.raises(UntrustedInput, match="not the questions that the artifact was built with"):
        verify(build("eager"), dataset=str(tmp_path / "other.json"))


def test_the_same_questions_from_a_file_are_accepted(build, tmp_path):
    shutil.copyfile(qabuild.qa.sample.HELDOUT, tmp_path / "same.json")
    copy = shutil.copytree(build("eager"), tmp_path / "copy")
    assert verify(copy, dataset=str(tmp_path / "same.json")).passed


def test_unanswerable_questions_are_scored_as_squad_2(tmp_path, isolated_cache):
    """The pipeline may give no answer, which is right for an unanswerable question."""
    source = json.loads(Path(qabuild.qa.sample.HELDOUT).read_text(encoding="utf-8"))
    source["data"] = source["data"][:2]
    qas = source["data"][0]["paragraphs"][0]["qas"]
    qas[0] |= {"answers": [], "is_impossible": True}
    (tmp_path / "v2.json").write_text(json.dumps({**source, "version": "v2.0"}), encoding="utf-8")
    (tmp_path / "x.toml").write_text(
        '[checkpoint]\nmodel = "sample"\n[backend]\nname = "eager"\n[verify]\ndataset = "./v2.json"\n', encoding="utf-8"
    )
    built = qabuild.build(tmp_path / "x.toml", tmp_path / "artifacts")
    assert built.verification.passed
    assert verify(built.directory, dataset=str(tmp_path / "v2.json")).measurement.exact_match == pytest.approx(
        built.verification.measurement.exact_match
    )
    with pytest.raises(BadTarget, match="--data"):
        verify(built.directory)


# --- speed ----------------------------------------------------------------------------------------------------------


def test_a_speedup_is_measured_only_against_the_checkpoint_of_the_build(build, tmp_path, tiny_checkpoint):
    copy = shutil.copytree(build("eager"), tmp_path / "copy")
    speed = verify(copy, checkpoint=str(tiny_checkpoint("bert"))).measurement.speed
    assert speed is not None
    low, high = speed.speedup_interval
    assert 0 < low <= speed.speedup <= high
    assert speed.speedup == pytest.approx(speed.artifact / speed.checkpoint)
    with pytest.raises(UntrustedInput, match="not the checkpoint that the artifact was built from"):
        verify(copy, checkpoint=str(tiny_checkpoint("distilbert")))


def test_a_gate_on_speed_requires_the_checkpoint(build, tmp_path):
    original = open_artifact(build("eager"))
    copy = shutil.copytree(original.directory, tmp_path / "copy")
    verify_table = {**original.manifest.verify, "gates": {**original.manifest.verify["gates"], "min_speedup": 1000.0}}
    reseal(copy, original, verify=verify_table)
    with pytest.raises(BadTarget, match="--checkpoint"):
        verify(copy)
    assert failed(verify(copy, checkpoint=str(checkpoint_of(build)))) == {"min_speedup"}


def checkpoint_of(build: Make) -> Path:
    """The tiny BERT that the artifacts were built from, by its target."""
    import tomllib

    target = build("eager").parent.parent / "eager-bert.toml"
    return Path(tomllib.loads(target.read_text(encoding="utf-8"))["checkpoint"]["model"])


# --- judging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gates", "failing"),
    [
        ({"min_f1_retention": 0.99}, "min_f1_retention"),
        ({"min_agreement": 0.95}, "min_agreement"),
        ({"max_logit_difference": 0.01}, "max_logit_difference"),
        ({"min_speedup": 2.0}, "min_speedup"),
    ],
)
def test_each_gate_fails_by_itself(build, gates, failing):
    artifact = open_artifact(build("eager"))
    evidence = Verification.from_dict(artifact.evidence or {})
    original = evidence.measurement
    lax = {"min_f1_retention": 0.0, "min_agreement": 0.0, "max_logit_difference": 1e9}
    worse = Verification.from_dict(
        {
            **evidence.to_dict(),
            "measurement": {
                **original.to_dict(),
                "f1": 98.0,
                "checkpoint_f1": 100.0,
                "agreement": 0.9,
                "logit_difference": 0.1,
            },
        }
    ).measurement
    assert judge(artifact, worse, Gates(**lax)).passed
    if failing != "min_speedup":
        assert failed(judge(artifact, worse, Gates(**{**lax, **gates}))) == {failing}
        return
    speed = {**original.to_dict()["speed"], "speedup": 1.5}
    slow = Verification.from_dict(
        {**evidence.to_dict(), "measurement": {**original.to_dict(), "speed": speed}}
    ).measurement
    assert failed(judge(artifact, slow, Gates(**{**lax, **gates}))) == {failing}


def test_evidence_survives_its_json(build):
    evidence = open_artifact(build("eager")).evidence
    assert evidence is not None
    assert json.loads(json.dumps(Verification.from_dict(evidence).to_dict())) == evidence


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60))
def test_the_interval_lies_within_the_differences_and_around_their_mean(differences):
    low, high = mean_interval(differences)
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    if len(set(differences)) == 1:
        assert low == pytest.approx(high)


def test_the_interval_of_a_normal_sample_is_1_96_standard_errors():
    """Of many draws from a normal distribution, the percentile interval is the mean -+ 1.96 standard errors."""
    values = np.random.default_rng(1).normal(0.3, 2.0, 5000)
    low, high = mean_interval(list(values))
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


# --- the cross-check -------------------------------------------------------------------------------------------------


@pytest.mark.line457
def test_reference_answers_are_those_of_the_stock_pipeline_on_single_questions(build):
    from transformers import pipeline

    artifact = open_artifact(build("eager", "sample"))
    questions = sealed_questions.load(artifact)
    stock = pipeline("question-answering", model=str(artifact.directory), device="cpu")
    expected = {q.id: stock(question=q.question, context=q.context)["answer"] for q in questions.questions}
    assert dict(sealed_reference.read(artifact.directory / sealed_reference.FOLDER).answers) == expected


def test_scores_of_the_evidence_are_those_of_the_official_metric(build):
    """evaluate's metric needs the network; `squad_metric` has tests that compare it with the official script."""
    from qabuild.qa import squad_metric

    artifact = open_artifact(build("eager", "sample"))
    questions = data.select(
        data.load(data.DatasetRef("sample")),
        list(sealed_reference.read(artifact.directory / sealed_reference.FOLDER).answers),
    )
    answers = sealed_reference.read(artifact.directory / sealed_reference.FOLDER).answers
    scores = squad_metric.score(answers, {q.id: q.answers for q in questions.questions})
    assert artifact.evidence is not None
    assert artifact.evidence["measurement"]["checkpoint_f1"] == pytest.approx(scores.f1)
    assert artifact.evidence["measurement"]["checkpoint_exact_match"] == pytest.approx(scores.exact_match)


@pytest.mark.parametrize("count", [1, 33])
def test_one_question_and_more_than_one_chunk_are_verified(tmp_path, count):
    """Pipelines give no list for a list of one question."""
    name = tmp_path / "few.toml"
    text = TARGET.format(model="sample", backend="eager", options="").replace("samples = 16", f"samples = {count}")
    name.write_text(text.replace("[verify]", '[verify]\ncross_check = "all"'), encoding="utf-8")
    verification = qabuild.build(name, tmp_path / "artifacts").verification
    assert verification.passed
    assert (verification.measurement.questions, verification.measurement.cross_check.questions) == (count, count)


PIPELINES = [
    pytest.param(cross_check.STOCK, marks=pytest.mark.line457),
    pytest.param(cross_check.PLAIN),
]


@pytest.fixture(params=PIPELINES)
def second_pipeline(request, monkeypatch):
    """The name of the second pipeline; each that the installed transformers allows."""
    monkeypatch.setattr(cross_check, "pipeline_name", lambda: request.param)
    return request.param


def test_the_cross_check_is_a_gate_named_after_its_pipeline(build, second_pipeline):
    said: list[str] = []
    artifact = open_artifact(build("eager", "sample"))
    reporter = type("Recorder", (Silent,), {"say": lambda _, message: said.append(message)})()
    measurement = measure.measure(artifact, sealed_questions.load(artifact), reporter=reporter)
    checked = measurement.cross_check
    assert (checked.pipeline, checked.differences) == (second_pipeline, 0)
    assert checked.questions >= 1
    assert any(message.startswith(f"cross-check: {cross_check.LABELS[second_pipeline]} gave") for message in said)
    gates = judge(artifact, measurement, artifact.manifest.gates).gates
    assert [gate for gate in gates if gate.name == f"same_as_{second_pipeline}" and gate.passed]


def test_a_pipeline_that_differs_fails_the_cross_check(build, second_pipeline, monkeypatch):
    """Ours, made to return the last word of each answer."""
    artifact = open_artifact(build("eager", "sample"))
    answerer = measure.answerer

    def shortened(*arguments, **options):
        ask_all = answerer(*arguments, **options)

        def answer(questions):
            result = ask_all(questions)
            return replace(result, answers={id: text.split()[-1] for id, text in result.answers.items()})

        return answer

    monkeypatch.setattr(measure, "answerer", shortened)
    measurement = measure.measure(artifact, sealed_questions.load(artifact))
    failed = [gate.name for gate in judge(artifact, measurement, artifact.manifest.gates).failed_gates]
    assert f"same_as_{second_pipeline}" in failed


def test_a_target_can_disable_the_cross_check_and_says_so(tmp_path):
    name = tmp_path / "off.toml"
    text = TARGET.format(model="sample", backend="eager", options="").replace("[verify]", "[verify]\ncross_check = 0")
    name.write_text(text, encoding="utf-8")
    said: list[str] = []
    reporter = type("Recorder", (Silent,), {"say": lambda _, message: said.append(message)})()
    verification = qabuild.build(name, tmp_path / "artifacts", reporter=reporter).verification
    assert verification.measurement.cross_check is None
    assert "cross-check: disabled by the target (verify.cross_check = 0)" in said


def test_a_long_question_is_truncated_in_both_pipelines(build, second_pipeline):
    """The stock pipeline documents `max_question_len`, and heeds it with slow tokenizers only."""
    folder = build("eager", "sample")
    model, tokenizer = load_model(resolve(str(folder), None)), load_tokenizer(folder)
    question = data.load(data.DatasetRef("sample")).questions[0]
    long_questions = [replace(question, question=" ".join([question.question] * times)) for times in (9, 300)]
    limits: tuple[dict[str, Any], ...] = ({}, {"max_question_len": 9}, {"max_seq_len": 64, "doc_stride": 8})
    for parameters in ({"handle_impossible_answer": False, **limit} for limit in limits):
        other = cross_check.SecondPipeline(model, tokenizer, parameters, batch_size=2)
        ours = ask.answerer(model, tokenizer, **parameters)
        for question in long_questions:
            answered = ours([question])
            assert other([question]).answers == answered.answers
            assert list(answered.truncated) == [question.id] * (len(question.question) > 5000 or len(parameters) > 1)


def test_a_context_without_spaces_is_answered_alike_in_both_pipelines(build, second_pipeline):
    """With "auto", which the stock pipeline does not know; of `true` the answer would be a whole sentence."""
    folder = build("eager", "xlm-roberta")
    model, tokenizer = load_model(resolve(str(folder), None)), load_tokenizer(folder)
    context = "我喜欢BERT模型。灯塔建于1911年。 The lamp was seen from thirty miles. 駅は丘の上の町にある"
    questions = [
        data.Question(id=str(n), question=text, context=context, answers=("BERT",), answer_starts=(3,))
        for n, text in enumerate(("谁", "Who?", "When was it?", "どこ"))
    ]
    answers = {}
    for align in ("auto", True, False):
        parameters = {"handle_impossible_answer": False, "align_to_words": align}
        other = cross_check.SecondPipeline(model, tokenizer, parameters, batch_size=2)
        answers[align] = ask.answerer(model, tokenizer, **parameters)(questions).answers
        assert other(questions).answers == answers[align]
    assert answers["auto"] != answers[True]


def test_an_artifact_in_a_read_only_folder_is_verified(build, tmp_path, monkeypatch):
    folder = shutil.copytree(build("eager", "sample"), tmp_path / "copy")
    before = (folder / artifacts.EVIDENCE).read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(verify_module, "write_evidence", refuse)
    messages: list[str] = []
    monkeypatch.setattr(Silent, "say", lambda _, message: messages.append(message))
    assert verify(folder).passed
    assert (folder / artifacts.EVIDENCE).read_bytes() == before
    assert any("not written" in message for message in messages)


def test_an_unknown_backend_is_refused(tampered):
    folder = tampered(lambda folder: None, "eager", "sample")
    manifest = folder / sealed.MANIFEST
    manifest.write_text(manifest.read_text().replace('"name": "eager"', '"name": "novel"'))
    with pytest.raises(UntrustedInput, match="no backend 'novel'"):
        verify(folder)
