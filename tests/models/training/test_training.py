"""Training: the windows are the pipeline's, the losses the paper's, and an interruption leaves no trace."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import Checkpoint, resolve
from qabuild.models.checkpoint.source import CheckpointSource
from qabuild.models.training import collate, cpu_attention, curves, examples, fit, teacher_logits
from qabuild.models.training import teacher_logits as teaching
from qabuild.models.training.loss import answer_loss, distillation_loss
from qabuild.models.training.options import Distill, Train
from qabuild.models.training.request import Request
from qabuild.models.training.sampler import MEGABATCH, LengthGroupedSampler
from qabuild.models.training.student import keep_layers, make_student
from qabuild.models.training.trainer import last_state
from qabuild.qa import data
from qabuild.qa.data import Question

TRAIN = Train(dataset="sample", samples=96, epochs=3, batch_size=16, learning_rate=1e-3, dtype="fp32", save_steps=4)
"""Seven steps to an epoch, 21 in all."""
TEMPERATURE = 3.0
"""At which a teacher's logits are learnt from, and so are to be met."""


def silent(told: Mapping[str, Any]) -> None:
    pass


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("sample").directory)


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., Request]:
    """`request_of("train", train=..., distill=...)`: a request with folders of its own."""

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


def test_a_batch_is_what_transformers_example_makes_of_it(tokenizer):
    """Features and positions as in run_qa.py: the tokenizer itself truncates, and offsets lead to the answer."""
    train = Train(dataset="sample", samples=40, max_seq_len=96, doc_stride=24)
    found = examples.load(train, tokenizer)
    questions = found.questions
    encoded = tokenizer(
        [q.question for q in questions],
        [q.context for q in questions],
        truncation="only_second",
        max_length=96,
        stride=24,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert len(found) == len(encoded["input_ids"]) > len(questions)
    batch = collate.Collator(found, tokenizer.model_input_names)(range(len(found)))
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
    asked = Question(id="a", question="Who?", context="Ada Voss built it.", answers=(), answer_starts=())
    answered = replace(asked, id="b", answers=("Ada Voss",), answer_starts=(0,))
    found = examples.make([asked, answered], tokenizer, TRAIN)
    assert (found.starts[0], found.ends[0]) == (0, 0)
    assert found.starts[1] > 0
    assert found.counts["windows without an answer"] == 1


def test_contexts_are_held_out_as_a_whole():
    questions = data.load(data.DatasetRef("sample", split="train")).questions
    learnt, aside = examples.hold_out(questions, 30, seed=3)
    assert len(learnt) + len(aside) == len(questions)
    assert 30 <= len(aside) < 60
    assert not {q.context for q in learnt} & {q.context for q in aside}
    with pytest.raises(BadTarget, match=r"train\.held_out is 9999"):
        examples.hold_out(questions[:20], 9999, seed=0)


def test_answers_out_of_place_are_left_out_up_to_a_share(tokenizer, tmp_path):
    document = json.loads((Path(examples.data.__file__).parents[1] / "sample" / "heldout.json").read_text())
    document["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    wrong = document["data"][0]["paragraphs"][0]["qas"][0]["id"]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(document))
    found = examples.load(Train(dataset=str(path), max_misplaced=0.01), tokenizer)
    assert found.counts["left out"] == [wrong]
    assert wrong not in {question.id for question in found.questions}
    with pytest.raises(UntrustedInput, match=r"1 questions have an answer .*at most 0\.10%.*'" + wrong):
        examples.load(Train(dataset=str(path), max_misplaced=0.001), tokenizer)


def test_windows_without_any_answer_are_refused(tokenizer):
    question = data.load(data.DatasetRef("sample", split="train")).questions[0]
    with pytest.raises(BadTarget, match="none of the 1 windows holds an answer"):
        examples.make([replace(question, answers=(), answer_starts=())], tokenizer, TRAIN)


# --- order ----------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(10, 384), min_size=1, max_size=300),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_every_window_comes_once_and_the_order_follows_from_seed_and_epoch(lengths, batch_size, seed):
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


def test_batches_are_of_one_length_and_in_random_order():
    lengths = np.random.default_rng(0).integers(60, 385, 32 * MEGABATCH * 3)
    order = np.array(list(LengthGroupedSampler(lengths, 32, seed=0)))
    batches = lengths[order].reshape(-1, 32)
    assert batches.max(axis=1).mean() < 1.05 * lengths.mean()
    assert abs(np.corrcoef(batches.mean(axis=1)[:-1], batches.mean(axis=1)[1:])[0, 1]) < 0.2


# --- losses ---------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_formula_without_padding():
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
        -torch.log_softmax(student[side, row, :size], 0)[at[row]]
        for side, at in ((0, starts), (1, ends))
        for row, size in enumerate((7, 4, 5))
    ]
    found = answer_loss(student[0], student[1], starts, ends, mask)
    assert float(found) == pytest.approx(float(sum(cross)) / 6, rel=1e-5)


def test_padding_takes_no_part_in_the_losses():
    torch.manual_seed(1)
    student, teacher, mask = torch.randn(2, 6), torch.randn(2, 6), torch.ones(2, 6)
    wide = [torch.cat([each, torch.full((2, 4), 99.0)], 1) for each in (student, teacher)]
    padded = torch.cat([mask, torch.zeros(2, 4)], 1)
    kept = distillation_loss(*wide, padded, 2.0)
    assert float(kept) == pytest.approx(float(distillation_loss(student, teacher, mask, 2.0)), rel=1e-6)
    at = torch.tensor([1, 5])
    kept = answer_loss(*wide, at, at, padded)
    assert float(kept) == pytest.approx(float(answer_loss(student, teacher, at, at, mask)), rel=1e-6)


# --- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", ["no mask", "padding", "a bias for each head", "a boolean mask", "a causal mask"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_and_its_gradients_are_torchs(asks, scale, dtype, tolerance):
    """The own one under an autocast that would change its numbers, held against torch's in fp32."""
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 4, 7, 8)
    padded = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    padded[1, ..., 5:] = False
    masks = {"padding": torch.where(padded, 0.0, torch.finfo(dtype).min), "a boolean mask": padded}
    mask = torch.randn(2, 4, 7, 7) if asks == "a bias for each head" else masks.get(asks)
    found = []
    for attend, numbers in ((cpu_attention.attention, dtype), (cpu_attention.torchs, torch.float32)):
        given = inputs.to(numbers).requires_grad_()
        own_mask = mask.to(numbers) if mask is not None and mask.is_floating_point() else mask
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32 and numbers == dtype):
            output = attend(*given, own_mask, is_causal=asks == "a causal mask", scale=scale)
        output.square().sum().backward()
        found.append((output.float(), given.grad.float()))
    for own, theirs in zip(*found, strict=True):
        assert (own - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_attention_drops_out_as_it_is_told():
    ones = torch.ones(1, 1, 64, 64)
    kept = cpu_attention.attention(ones, ones, torch.eye(64)[None, None], dropout_p=0.5)
    assert set((kept * 64).round().unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((kept > 0).float().mean()) < 0.6


def test_a_training_on_a_cpu_attends_by_it_and_leaves_torchs_in_place(request_of, monkeypatch):
    calls = []

    def watched(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return cpu_attention.torchs(*args, **named)

    monkeypatch.setattr(cpu_attention, "attention", watched)
    fit.run(request_of(train=TRAIN.model_copy(update={"samples": 16, "epochs": 1})), silent)
    assert calls
    assert torch.nn.functional.scaled_dot_product_attention is cpu_attention.torchs


# --- teacher and student --------------------------------------------------------------------------------------------


def test_the_teachers_logits_are_kept_for_every_window(request_of):
    asked = request_of("logits", teacher=resolve("sample"))
    teacher_logits.run(asked, silent)
    tokenizer, model = load_tokenizer(asked.start.directory), load_model(asked.start)
    found = examples.load(asked.train, tokenizer)
    kept = teaching.open_logits(asked.directory, found)
    batch = collate.Collator(found, tokenizer.model_input_names, kept)([0, 5, 60])
    with torch.inference_mode():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    real = batch["attention_mask"] == 1
    for side in ("start", "end"):
        kept_logits, now = batch[f"teacher_{side}_logits"], output[f"{side}_logits"]
        assert torch.allclose(kept_logits[real], now[real], atol=1e-4)
        assert not kept_logits[~real].any()


def test_a_student_has_the_layers_that_are_named():
    teacher, student = load_model(resolve("sample")), load_model(resolve("sample"))
    keep_layers(student, (0, 2), "sample")
    assert student.config.num_hidden_layers == 2
    theirs, own = teacher.roberta.encoder.layer, student.roberta.encoder.layer
    assert torch.equal(own[1].output.dense.weight, theirs[2].output.dense.weight)
    with pytest.raises(BadTarget, match=r"has layers 0 to 2, and train\.layers names 3"):
        keep_layers(teacher, (1, 3), "sample")


@pytest.mark.parametrize("model_type", sorted(tiny.TOKENIZERS))
def test_dropout_is_what_is_asked_for_wherever_the_model_has_it(model_type, tiny_checkpoint):
    start = resolve(tiny_checkpoint(model_type))
    asked = load_tokenizer(start.directory)(tiny.QUESTION, tiny.CONTEXT, return_tensors="pt")
    for share in (0.0, 0.5):
        model = make_student(start, Train(dropout=share)).train()
        first, second = (model(**asked).start_logits for _ in range(2))
        assert torch.equal(first, second) == (share == 0)


def test_a_student_is_written_with_the_dropout_of_its_start(request_of, tiny_checkpoint):
    start = resolve(tiny_checkpoint("distilbert", dropout=0.3, qa_dropout=0.4))
    asked = request_of(start=start, train=TRAIN.model_copy(update={"samples": 16, "epochs": 1, "dropout": 0.0}))
    fit.run(asked, silent)
    written = json.loads((asked.directory / "config.json").read_text(encoding="utf-8"))
    assert (written["dropout"], written["qa_dropout"]) == (0.3, 0.4)


def test_fresh_weights_follow_from_the_seed():
    start = resolve("sample")
    one, same, other = (make_student(start, Train(from_config=True, seed=seed)) for seed in (1, 1, 2))
    assert one.config.num_hidden_layers == 3
    weights = [model.roberta.encoder.layer[0].output.dense.weight for model in (one, same, other, load_model(start))]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])


def test_a_teacher_of_another_vocabulary_is_refused(request_of, tiny_checkpoint):
    asked = request_of("logits", start=resolve(tiny_checkpoint("roberta")), teacher=resolve("sample"))
    with pytest.raises(BadTarget, match=r"teacher sample and the student roberta read texts as different tokens"):
        teacher_logits.run(asked, silent)
    # Nor where the teacher's logits are there already, as another student of it has left them.
    with pytest.raises(BadTarget, match=r"read texts as different tokens"):
        fit.run(replace(asked, step="train"), silent)


# --- training -------------------------------------------------------------------------------------------------------


def test_a_training_learns_writes_curves_and_leaves_a_checkpoint(request_of):
    train = TRAIN.model_copy(update={"layers": (0, 2), "held_out": 10, "epochs": 2, "learning_rate": 2e-3})
    asked = request_of(train=train)
    fit.run(asked, silent)
    made = resolve(asked.directory)
    assert load_model(made).config.num_hidden_layers == 2
    lines = curves.read(asked.directory / curves.FILE)
    losses = [line["loss"] for line in lines if "loss" in line]
    scores = [line["f1"] for line in lines if "f1" in line]
    assert losses[-1] < losses[0] if len(losses) > 1 else losses
    assert [line["epoch"] for line in lines if "f1" in line] == [1.0, 2.0]
    assert all(0 <= score <= 100 for score in scores)


def test_a_checkpoint_without_a_head_can_be_trained(request_of, tiny_checkpoint, tmp_path):
    from transformers import AutoModelForMaskedLM

    folder = tmp_path / "pretrained"
    shutil.copytree(tiny_checkpoint("roberta"), folder)
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(UntrustedInput, match="no question-answering head"):
        resolve(folder)
    train = TRAIN.model_copy(update={"epochs": 1, "samples": 16})
    asked = [request_of(name=name, start=resolve(folder, head=False), train=train) for name in ("one", "two")]
    for each in asked:
        fit.run(each, silent)
    one, two = (resolve(each.directory).digest for each in asked)
    assert one == two  # the new head is drawn by the seed


def test_a_loss_that_is_no_number_ends_the_training(request_of):
    asked = request_of(train=TRAIN.model_copy(update={"learning_rate": 1e30, "save_steps": 1}))
    with pytest.raises(QABuildError, match=r"the loss is (nan|inf) at step \d+ of 21, at a learning rate of .*e\+"):
        fit.run(asked, silent)
    state = last_state(asked.work)
    assert state is not None
    weights = torch.cat([tensor.flatten() for tensor in load_weights(state).values()])
    assert torch.isfinite(weights).all()


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed_at", [5, 15], ids=["first epoch", "later epoch"])
def test_a_killed_training_ends_as_an_uninterrupted_one(request_of, killed_at, undisturbed):
    train = TRAIN.model_copy(update={"dropout": 0.1})
    asked = request_of(train=train)
    assert killed(asked, killed_at) == -9
    assert last_state(asked.work) is not None
    assert killed(asked, None) == 0
    assert resolve(asked.directory).digest == undisturbed.digest
    steps = [line["step"] for line in curves.read(asked.directory / curves.FILE)]
    assert steps == sorted(set(steps))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """What the training of the tests above makes when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "work").mkdir()
    (folder / "result").mkdir()
    asked = Request(
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
    fit.run(asked, silent)
    return resolve(asked.directory)


def killed(asked: Request, step: int | None) -> int:
    """Train in a process of its own, which is killed as soon as it has taken that step; returns its status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "qabuild.models.training"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    with process.stdin:
        json.dump(asked.to_dict(), process.stdin)
    for line in process.stdout:
        if step is not None and json.loads(line).get("told", {}).get("step", 0) >= step:
            process.kill()
    return process.wait()


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_a_batch_in_parts_is_learnt_from_as_a_whole_one_is(model_type, request_of, tiny_checkpoint):
    """Step by step from the same windows; with models, too, that could divide the loss themselves, as ModernBERT."""
    start = resolve(tiny_checkpoint(model_type))
    train = TRAIN.model_copy(update={"epochs": 2, "dropout": 0.0})
    losses = []
    for parts in (1, 4):
        in_parts = train.model_copy(update={"gradient_accumulation_steps": parts})
        asked = request_of(start=start, train=in_parts, name=f"in {parts}")
        fit.run(asked, silent)
        losses.append([line["loss"] for line in curves.read(asked.directory / curves.FILE)])
    assert losses[0], "there are some to compare"
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_too_little_memory_says_what_to_do(request_of):
    with (
        pytest.raises(QABuildError, match="too little memory to train on batches of 16 windows in 1 parts") as raised,
        fit._memory_explained(request_of()),
    ):
        torch.empty(1 << 50)
    assert raised.value.hint.endswith("train.gradient_accumulation_steps = 2")


def test_a_state_that_was_cut_off_is_not_gone_on_from(tmp_path):
    for step, text in ((4, '{"global_step": 4}'), (8, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text:
            (folder / "trainer_state.json").write_text(text)
    assert last_state(tmp_path) == tmp_path / "checkpoint-4"


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth"])
def test_a_state_that_a_power_cut_left_in_part_is_not_gone_on_from(request_of, name):
    asked = request_of(train=TRAIN.model_copy(update={"samples": 32, "epochs": 2, "save_steps": 2}))
    fit.run(asked, silent)
    newest = last_state(asked.work)
    assert newest
    with (newest / name).open("r+b") as file:
        file.truncate((newest / name).stat().st_size - 10)
    before = last_state(asked.work)
    assert before
    assert before != newest
    told: list[Mapping[str, Any]] = []
    fit.run(asked, told.append)
    assert {"resumed": int(before.name.rpartition("-")[2])} in told


GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", "fp32"), *(pytest.param("cuda", dtype, marks=GPU) for dtype in ("fp32", "bf16", "fp16"))],
)
def test_a_distilled_student_is_drawn_to_its_teacher(device, dtype, request_of):
    """With alpha 0 only the teacher's logits are learnt from: the student comes nearer to them than one that is not."""
    teacher, place = resolve("sample"), {"device": device, "dtype": dtype}
    taught = request_of("logits", name="logits", teacher=teacher, **place)
    teacher_logits.run(taught, silent)
    train = TRAIN.model_copy(update={"layers": (0, 2), "learning_rate": 2e-3})
    distances = []
    for alpha in (0.0, 1.0):
        distill = Distill(teacher=CheckpointSource(model="sample"), alpha=alpha, temperature=TEMPERATURE)
        asked = request_of(
            name=f"alpha {alpha}", train=train, teacher=teacher, distill=distill, logits=taught.directory, **place
        )
        fit.run(asked, silent)
        distances.append(distance(load_model(resolve(asked.directory)), taught))
    assert distances[0] < 0.7 * distances[1]


def distance(model: Any, taught: Request) -> float:
    tokenizer = load_tokenizer(taught.start.directory)
    found = examples.load(taught.train, tokenizer)
    kept = teaching.open_logits(taught.directory, found)
    batch = collate.Collator(found, tokenizer.model_input_names, kept)(range(0, len(found), 4))
    with torch.inference_mode():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    mask = batch["attention_mask"]
    return float(distillation_loss(output.start_logits, batch["teacher_start_logits"], mask, TEMPERATURE))
