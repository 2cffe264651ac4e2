"""Training: windows as in the pipeline, losses as in the paper, and resuming that reproduces an uninterrupted run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainings import run_in_subprocess

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.training import collate, cpu_attention, curves, examples, fit, teacher_logits
from qabuild.models.training.loss import answer_loss, distillation_loss
from qabuild.models.training.options import Distill, Train
from qabuild.models.training.request import Request
from qabuild.models.training.sampler import MEGABATCH, LengthGroupedSampler
from qabuild.models.training.student import keep_layers, make_student
from qabuild.models.training.trainer import last_state
from qabuild.qa import data
from qabuild.qa.data import Question

TRAIN = Train(dataset="sample", samples=96, epochs=3, batch_size=16, learning_rate=1e-3, dtype="fp32", save_steps=4)
"""Seven steps per epoch, 21 in total."""
TEMPERATURE = 3.0
"""The temperature of distillation, and of the distance from the teacher that it is measured by."""


def silent(message: Mapping[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("sample").directory)


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., Request]:
    """`request_of("train", train=..., distill=...)`: a request with its own folders."""

    def make(step: Any = "train", name: str = "once", start: Checkpoint | None = None, **fields: Any) -> Request:
        for folder in ("work", "result"):
            (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
        return Request(
            step=step,
            start=start or resolve("sample"),
            teacher=fields.pop("teacher", None),
            train=fields.pop("train", TRAIN),
            distill=fields.pop("distill", None),
            device=fields.pop("device", "cpu"),
            dtype=fields.pop("dtype", "fp32"),
            logits=fields.pop("logits", None),
            work=tmp_path / name / "work",
            directory=tmp_path / name / "result",
            offline=True,
        )

    return make


# --- windows --------------------------------------------------------------------------------------------------------


def test_a_batch_equals_that_of_transformers_example(tokenizer):
    """Features and positions as in run_qa.py: the tokenizer truncates, and offsets give the answer positions."""
    train = Train(dataset="sample", samples=40, max_seq_len=96, doc_stride=24)
    windows = examples.load(train, tokenizer)
    questions = windows.questions
    encoded = tokenizer(
        [q.question for q in questions],
        [q.context for q in questions],
        truncation="only_second",
        max_length=96,
        stride=24,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(windows) == len(encoded["input_ids"]) > len(questions)
    batch = collate.Collator(windows, tokenizer.model_input_names)(range(len(windows)))
    assert batch["input_ids"].shape[1] % collate.MULTIPLE == 0
    for row, ids in enumerate(encoded["input_ids"]):
        assert batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist() == ids
        question = questions[encoded["overflow_to_sample_mapping"][row]]
        expected = positions(encoded, row, question)
        assert (int(batch["start_positions"][row]), int(batch["end_positions"][row])) == expected


def positions(encoded: Any, row: int, question: Question) -> tuple[int, int]:
    begin, end = question.answer_starts[0], question.answer_starts[0] + len(question.answers[0])
    offsets = encoded["offset_mapping"][row]
    columns = [column for column, part in enumerate(encoded.sequence_ids(row)) if part == 1]
    if offsets[columns[0]][0] > begin or offsets[columns[-1]][1] < end:
        return 0, 0  # of <s>
    starts = [column for column in columns if offsets[column][0] <= begin]
    ends = [column for column in columns if offsets[column][1] >= end]
    return starts[-1], ends[0]


def test_an_unanswerable_question_points_at_the_first_token(tokenizer):
    unanswerable = Question(id="a", question="Who?", context="Ada Voss built it.", answers=(), answer_starts=())
    answerable = replace(unanswerable, id="b", answers=("Ada Voss",), answer_starts=(0,))
    windows = examples.make([unanswerable, answerable], tokenizer, TRAIN)
    assert (windows.starts[0], windows.ends[0]) == (0, 0)
    assert windows.starts[1] > 0
    assert windows.counts["windows without an answer"] == 1


def test_all_questions_of_a_context_are_held_out_together():
    questions = data.load(data.DatasetRef("sample", split="train")).questions
    training, held_out = examples.hold_out(questions, Train(held_out=30, seed=3))
    assert len(training) + len(held_out) == len(questions)
    assert 30 <= len(held_out) < 60
    assert not {q.context for q in training} & {q.context for q in held_out}
    with pytest.raises(BadTarget, match=r"train\.held_out is 9999"):
        examples.hold_out(questions[:20], Train(held_out=9999))


def test_questions_with_misplaced_answers_are_left_out_up_to_a_share(tokenizer, tmp_path):
    document = json.loads((Path(examples.data.__file__).parents[1] / "sample" / "heldout.json").read_text())
    document["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    misplaced = document["data"][0]["paragraphs"][0]["qas"][0]["id"]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(document))
    windows = examples.load(Train(dataset=str(path), max_misplaced=0.01), tokenizer)
    assert windows.counts["left out"] == [misplaced]
    assert misplaced not in {question.id for question in windows.questions}
    with pytest.raises(UntrustedInput, match=r"1 questions have an answer .*at most 0\.10%.*'" + misplaced):
        examples.load(Train(dataset=str(path), max_misplaced=0.001), tokenizer)


def test_examples_without_any_answer_are_refused(tokenizer):
    question = data.load(data.DatasetRef("sample", split="train")).questions[0]
    with pytest.raises(BadTarget, match="no window holds an answer"):
        examples.make([replace(question, answers=(), answer_starts=())], tokenizer, TRAIN)


# --- order ----------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(10, 384), min_size=1, max_size=300),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_the_order_has_every_window_and_depends_on_seed_and_epoch(lengths, batch_size, seed):
    def order(epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(np.array(lengths), batch_size, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert set(order(0)) == set(range(len(lengths)))
    assert len(order(0)) % batch_size == 0
    assert len(order(0)) - len(lengths) < batch_size
    assert order(1) == order(1)
    if len(set(lengths)) > 20:
        assert order(0) != order(1)


def test_batches_are_of_similar_length_in_random_order():
    lengths = np.random.default_rng(0).integers(60, 385, 32 * MEGABATCH * 3)
    order = np.array(list(LengthGroupedSampler(lengths, 32, seed=0)))
    batches = lengths[order].reshape(-1, 32)
    assert batches.max(axis=1).mean() < 1.05 * lengths.mean()
    assert abs(np.corrcoef(batches.mean(axis=1)[:-1], batches.mean(axis=1)[1:])[0, 1]) < 0.2


# --- losses ---------------------------------------------------------------------------------------------------------


def test_the_losses_equal_the_formulas_without_padding():
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(2, 3, 7), torch.randn(2, 3, 7), torch.ones(3, 7)
    mask[1, 4:] = mask[2, 5:] = 0
    temperature = 3.0
    expected = 0.0
    for row, size in enumerate((7, 4, 5)):
        p = torch.softmax(teacher[0, row, :size] / temperature, 0)
        q = torch.softmax(student[0, row, :size] / temperature, 0)
        expected += float((p * (p / q).log()).sum()) * temperature**2 / 3
    assert float(distillation_loss(student[0], teacher[0], mask, temperature)) == pytest.approx(expected, rel=1e-5)

    starts, ends = torch.tensor([6, 3, 0]), torch.tensor([6, 3, 1])
    cross = [
        -torch.log_softmax(student[side, row, :size], 0)[positions[row]]
        for side, positions in ((0, starts), (1, ends))
        for row, size in enumerate((7, 4, 5))
    ]
    loss = answer_loss(student[0], student[1], starts, ends, mask)
    assert float(loss) == pytest.approx(float(sum(cross)) / 6, rel=1e-5)


def test_padding_does_not_change_the_losses():
    torch.manual_seed(1)
    student, teacher, mask = torch.randn(2, 6), torch.randn(2, 6), torch.ones(2, 6)
    padded = [torch.cat([logits, torch.full((2, 4), 99.0)], 1) for logits in (student, teacher)]
    padded_mask = torch.cat([mask, torch.zeros(2, 4)], 1)
    loss = distillation_loss(*padded, padded_mask, 2.0)
    assert float(loss) == pytest.approx(float(distillation_loss(student, teacher, mask, 2.0)), rel=1e-6)
    positions = torch.tensor([1, 5])
    loss = answer_loss(*padded, positions, positions, padded_mask)
    assert float(loss) == pytest.approx(float(answer_loss(student, teacher, positions, positions, mask)), rel=1e-6)


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["no mask", "padding", "a bias for each head", "a boolean mask", "a causal mask"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_and_its_gradients_equal_those_of_torch(case, scale, dtype, tolerance):
    """Under an autocast that would change its dtype, compared with torch's in fp32."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, 7, 8)
    padded = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    padded[1, ..., 5:] = False
    masks = {"padding": torch.where(padded, 0.0, torch.finfo(dtype).min), "a boolean mask": padded}
    mask = torch.randn(2, 4, 7, 7) if case == "a bias for each head" else masks.get(case)
    results = []
    for attend, computed_in in ((cpu_attention.attention, dtype), (cpu_attention.torch_attention, torch.float32)):
        tensors = inputs.to(computed_in).requires_grad_()
        own_mask = mask.to(computed_in) if mask is not None and mask.is_floating_point() else mask
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32 and computed_in == dtype):
            output = attend(*tensors, own_mask, is_causal=case == "a causal mask", scale=scale)
        output.square().sum().backward()
        results.append((output.float(), tensors.grad.float()))
    for own, reference in zip(*results, strict=True):
        assert (own - reference).abs().max() <= tolerance * reference.abs().max()


def test_attention_applies_dropout():
    ones = torch.ones(1, 1, 64, 64)
    weights = cpu_attention.attention(ones, ones, torch.eye(64)[None, None], dropout_p=0.5)
    assert set((weights * 64).round().unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((weights > 0).float().mean()) < 0.6


def test_a_training_on_a_cpu_uses_it_and_restores_torchs_function(request_of, monkeypatch):
    calls = []

    def recorded(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return cpu_attention.torch_attention(*args, **options)

    monkeypatch.setattr(cpu_attention, "attention", recorded)
    fit.run(request_of(train=TRAIN.model_copy(update={"samples": 16, "epochs": 1})), silent)
    assert calls
    assert torch.nn.functional.scaled_dot_product_attention is cpu_attention.torch_attention


# --- teacher and student --------------------------------------------------------------------------------------------


def test_teacher_logits_are_stored_for_every_window(request_of):
    request = request_of("logits", teacher=resolve("sample"))
    teacher_logits.run(request, silent)
    tokenizer, model = load_tokenizer(request.start.directory), load_model(request.start)
    windows = examples.load(request.train, tokenizer)
    stored = teacher_logits.open_logits(request.directory, windows)
    batch = collate.Collator(windows, tokenizer.model_input_names, stored)([0, 5, 60])
    with torch.inference_mode():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    attended = batch["attention_mask"] == 1
    for side in ("start", "end"):
        logits, expected = batch[f"teacher_{side}_logits"], output[f"{side}_logits"]
        assert torch.allclose(logits[attended], expected[attended], atol=1e-4)
        assert not logits[~attended].any()


def test_a_student_keeps_the_named_layers():
    teacher, student = load_model(resolve("sample")), load_model(resolve("sample"))
    keep_layers(student, (0, 2), "sample")
    assert student.config.num_hidden_layers == 2
    teachers, students = teacher.roberta.encoder.layer, student.roberta.encoder.layer
    assert torch.equal(students[1].output.dense.weight, teachers[2].output.dense.weight)
    with pytest.raises(BadTarget, match=r"has layers 0 to 2, and train\.layers names 3"):
        keep_layers(teacher, (1, 3), "sample")


@pytest.mark.parametrize("model_type", sorted(tiny.TOKENIZERS))
def test_dropout_is_set_in_all_of_the_model(model_type, tiny_checkpoint):
    start = resolve(tiny_checkpoint(model_type))
    inputs = load_tokenizer(start.directory)(tiny.QUESTION, tiny.CONTEXT, return_tensors="pt")
    for share in (0.0, 0.5):
        model = make_student(start, Train(dropout=share)).train()
        first, second = (model(**inputs).start_logits for _ in range(2))
        assert torch.equal(first, second) == (share == 0)


def test_a_student_is_saved_with_the_dropout_of_its_checkpoint(request_of, tiny_checkpoint):
    start = resolve(tiny_checkpoint("distilbert", dropout=0.3, qa_dropout=0.4))
    request = request_of(start=start, train=TRAIN.model_copy(update={"samples": 16, "epochs": 1, "dropout": 0.0}))
    fit.run(request, silent)
    config = json.loads((request.directory / "config.json").read_text(encoding="utf-8"))
    assert (config["dropout"], config["qa_dropout"]) == (0.3, 0.4)


def test_random_weights_depend_on_the_seed():
    start = resolve("sample")
    one, same, other = (make_student(start, Train(from_config=True, seed=seed)) for seed in (1, 1, 2))
    assert one.config.num_hidden_layers == 3
    weights = [model.roberta.encoder.layer[0].output.dense.weight for model in (one, same, other, load_model(start))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_a_teacher_with_another_vocabulary_is_refused(request_of, tiny_checkpoint):
    request = request_of("logits", start=resolve(tiny_checkpoint("roberta")), teacher=resolve("sample"))
    with pytest.raises(BadTarget, match=r"teacher sample and the student roberta read texts as different tokens"):
        teacher_logits.run(request, silent)
    # Also if the teacher's logits are cached already, from another student.
    with pytest.raises(BadTarget, match=r"read texts as different tokens"):
        fit.run(replace(request, step="train"), silent)


# --- training -------------------------------------------------------------------------------------------------------


def test_a_training_lowers_the_loss_and_writes_curves_and_a_checkpoint(request_of):
    train = TRAIN.model_copy(update={"layers": (0, 2), "held_out": 10, "epochs": 2, "learning_rate": 2e-3})
    request = request_of(train=train)
    fit.run(request, silent)
    assert load_model(resolve(request.directory)).config.num_hidden_layers == 2
    lines = curves.read(request.directory / curves.FILE)
    losses = [line["loss"] for line in lines if "loss" in line]
    scores = [line["f1"] for line in lines if "f1" in line]
    assert losses[-1] < losses[0] if len(losses) > 1 else losses
    assert [line["epoch"] for line in lines if "f1" in line] == [1.0, 2.0]
    assert all(0 <= score <= 100 for score in scores)


@pytest.mark.both_lines
@pytest.mark.parametrize("killed_after", [1, 2], ids=["an epoch", "the last epoch"])
def test_the_scores_of_an_epoch_are_known_after_an_interruption_within_them(request_of, killed_after, monkeypatch):
    """The state of the epoch's last step was saved, so nothing of it is repeated."""
    train = TRAIN.model_copy(update={"epochs": 2, "held_out": 20, "samples": 32, "save_steps": 1})
    request, uninterrupted = (request_of(name=name, train=train) for name in ("interrupted", "uninterrupted"))
    fit.run(uninterrupted, silent)
    score, scored = curves.score, []

    def interrupted(*arguments: Any) -> Any:
        scored.append(arguments)
        if len(scored) == killed_after:
            raise KeyboardInterrupt
        return score(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(curves, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit.run(request, silent)
    fit.run(request, silent)
    lines, others = (
        [line for line in curves.read(each.directory / curves.FILE) if "f1" in line]
        for each in (request, uninterrupted)
    )
    assert lines == others
    assert [line["epoch"] for line in lines] == [1.0, 2.0]


@pytest.mark.both_lines
@pytest.mark.parametrize(("share", "warmed_up_at"), [(0.0, 0), (0.25, 6), (1.0, 21)])
def test_the_learning_rate_rises_in_its_share_of_the_steps(share, warmed_up_at, request_of):
    """The recorded rates of the schedule: 21 steps, linear up in the first `share`, linear down after it."""
    request = request_of(train=TRAIN.model_copy(update={"warmup_ratio": share}))
    fit.run(request, silent)
    state = json.loads((last_state(request.work) / "trainer_state.json").read_text())
    rates = {entry["step"]: entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry}
    assert rates
    for step, rate in rates.items():
        done = step - 1  # what is logged at a step is the rate that it used
        up, down = done / max(1, warmed_up_at), (21 - done) / max(1, 21 - warmed_up_at)
        assert rate == pytest.approx(TRAIN.learning_rate * (up if done < warmed_up_at else down), rel=1e-6)


def test_a_checkpoint_without_a_head_can_be_trained(request_of, tiny_checkpoint, tmp_path):
    from transformers import AutoModelForMaskedLM

    folder = tmp_path / "pretrained"
    shutil.copytree(tiny_checkpoint("roberta"), folder)
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(UntrustedInput, match="no question-answering head"):
        resolve(folder)
    train = TRAIN.model_copy(update={"epochs": 1, "samples": 16})
    requests = [request_of(name=name, start=resolve(folder, head=False), train=train) for name in ("one", "two")]
    for request in requests:
        fit.run(request, silent)
    one, two = (resolve(request.directory).digest for request in requests)
    assert one == two  # the new head is initialised with the random seed


def test_a_loss_that_is_not_finite_is_an_error(request_of):
    request = request_of(train=TRAIN.model_copy(update={"learning_rate": 1e30, "save_steps": 1}))
    with pytest.raises(QABuildError, match=r"the loss is (nan|inf) at step \d+ of 21, at a learning rate of .*e\+"):
        fit.run(request, silent)
    state = last_state(request.work)
    assert state is not None
    weights = torch.cat([tensor.flatten() for tensor in load_weights(state).values()])
    assert torch.isfinite(weights).all()


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed_at", [5, 15], ids=["first epoch", "later epoch"])
def test_a_killed_training_resumes_to_the_same_checkpoint(request_of, killed_at, uninterrupted):
    train = TRAIN.model_copy(update={"dropout": 0.1})
    request = request_of(train=train)
    assert run_in_subprocess(request, kill_at=killed_at) == -9
    assert last_state(request.work) is not None
    assert run_in_subprocess(request) == 0
    assert resolve(request.directory).digest == uninterrupted.digest
    steps = [line["step"] for line in curves.read(request.directory / curves.FILE)]
    assert steps == sorted(set(steps))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint of the training above without an interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "work").mkdir()
    (folder / "result").mkdir()
    request = Request(
        step="train",
        start=resolve("sample"),
        teacher=None,
        train=TRAIN.model_copy(update={"dropout": 0.1}),
        distill=None,
        device="cpu",
        dtype="fp32",
        logits=None,
        work=folder / "work",
        directory=folder / "result",
        offline=True,
    )
    fit.run(request, silent)
    return resolve(request.directory)


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_gradient_accumulation_gives_the_same_losses(model_type, request_of, tiny_checkpoint):
    """At every step, on the same windows; also with models that can normalise the loss themselves, as ModernBERT."""
    start = resolve(tiny_checkpoint(model_type))
    train = TRAIN.model_copy(update={"epochs": 2, "dropout": 0.0})
    losses = []
    for parts in (1, 4):
        in_parts = train.model_copy(update={"gradient_accumulation_steps": parts})
        request = request_of(start=start, train=in_parts, name=f"in {parts}")
        fit.run(request, silent)
        losses.append([line["loss"] for line in curves.read(request.directory / curves.FILE)])
    assert losses[0], "no losses to compare"
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_too_little_memory_is_reported_with_a_remedy(request_of):
    with (
        pytest.raises(QABuildError, match="too little memory to train on batches of 16 windows in 1 parts") as raised,
        fit._memory_explained(request_of()),
    ):
        torch.empty(1 << 50)
    assert raised.value.hint.endswith("train.gradient_accumulation_steps = 2")


def test_a_partial_state_is_not_resumed_from(tmp_path):
    for step, text in ((4, '{"global_step": 4}'), (8, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text:
            (folder / "trainer_state.json").write_text(text)
    assert last_state(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth"])
def test_a_state_with_a_truncated_file_is_not_resumed_from(request_of, name):
    request = request_of(train=TRAIN.model_copy(update={"samples": 32, "epochs": 2, "save_steps": 2}))
    fit.run(request, silent)
    newest = last_state(request.work)
    assert newest
    with (newest / name).open("r+b") as file:
        file.truncate((newest / name).stat().st_size - 10)
    previous = last_state(request.work)
    assert previous
    assert previous != newest
    messages: list[Mapping[str, Any]] = []
    fit.run(request, messages.append)
    assert {"resumed": int(previous.name.rpartition("-")[2])} in messages


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", "fp32"), *(pytest.param("cuda", dtype, marks=GPU) for dtype in ("fp32", "bf16", "fp16"))],
)
def test_a_distilled_student_approaches_its_teacher(device, dtype, request_of):
    """With alpha 0, which trains on the teacher's logits alone, the student is closer to them than with alpha 1."""
    teacher, runtime = resolve("sample"), {"device": device, "dtype": dtype}
    logits = request_of("logits", name="logits", teacher=teacher, **runtime)
    teacher_logits.run(logits, silent)
    train = TRAIN.model_copy(update={"layers": (0, 2), "learning_rate": 2e-3})
    distances = []
    for alpha in (0.0, 1.0):
        distill = Distill(teacher=CheckpointSource(model="sample"), alpha=alpha, temperature=TEMPERATURE)
        request = request_of(
            name=f"alpha {alpha}", train=train, teacher=teacher, distill=distill, logits=logits.directory, **runtime
        )
        fit.run(request, silent)
        distances.append(distance(load_model(resolve(request.directory)), logits))
    assert distances[0] < 0.7 * distances[1]


def distance(model: Any, logits: Request) -> float:
    """The distillation loss of `model` on the teacher logits that the request `logits` has stored."""
    tokenizer = load_tokenizer(logits.start.directory)
    windows = examples.load(logits.train, tokenizer)
    stored = teacher_logits.open_logits(logits.directory, windows)
    batch = collate.Collator(windows, tokenizer.model_input_names, stored)(range(0, len(windows), 4))
    with torch.inference_mode():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    mask = batch["attention_mask"]
    return float(distillation_loss(output.start_logits, batch["teacher_start_logits"], mask, TEMPERATURE))
