"""The sealed probes cover what a model may meet: a fault anywhere in the model changes a logit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qabuild.artifact import sealed_reference
from qabuild.artifact.sealed_reference import Probe
from qabuild.evaluation import differences, probes, reference
from qabuild.models.checkpoint.load import load_model, load_tokenizer
from qabuild.models.checkpoint.resolve import resolve
from qabuild.qa import data
from qabuild.qa.data import Question, QuestionSet

EMBEDDINGS = "bert.embeddings."


DATA = {
    "dataset": "made",
    "file": False,
    "revision": None,
    "split": None,
    "samples": 1,
    "seed": None,
    "fingerprint": "made",
}


class Sealed:
    """A tiny BERT and its reference on the sample's questions, none of whose texts is long."""

    def __init__(self, folder: Path, source: Path) -> None:
        checkpoint = resolve(str(source), None)
        self.folder, self.checkpoint = folder, checkpoint
        self.tokenizer = load_tokenizer(checkpoint.directory)
        self.questions: QuestionSet = data.subset(data.load(data.DatasetRef("sample")), 16, 0)
        reference.write_reference(self.model(), self.tokenizer, self.questions, DATA, {}, folder)

    def model(self) -> Any:
        return load_model(self.checkpoint)

    def difference(self, model: Any) -> float:
        """The largest logit difference of `model` on the probes; it must be at most 0.001 in fp32."""
        sealed = sealed_reference.read(self.folder)
        return differences.of_logits(self.folder, model, self.tokenizer, self.questions, sealed)["logit_difference"]

    def inputs(self) -> list[dict[str, torch.Tensor]]:
        return sealed_reference.read_probes(self.folder)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Any) -> Sealed:
    return Sealed(tmp_path_factory.mktemp("reference"), tiny_checkpoint("bert"))


def zero(name: str, begin: int, end: int) -> Callable[[Any], None]:
    """A fault: rows `begin` up to `end` of an embedding are lost."""

    def fault(model: Any) -> None:
        with torch.no_grad():
            dict(model.named_parameters())[f"{EMBEDDINGS}{name}_embeddings.weight"][begin:end] = 0

    return fault


def ignore_token_types(model: Any) -> None:
    with torch.no_grad():
        types = model.bert.embeddings.token_type_embeddings.weight
        types[1] = types[0]


def ignore_mask(layer: int) -> Callable[[Any], None]:
    """A fault: the attention of one layer sees padding."""

    def fault(model: Any) -> None:
        attention = model.bert.encoder.layer[layer].attention
        forward = attention.forward
        attention.forward = lambda hidden, attention_mask=None, *rest, **options: forward(
            hidden, None, *rest, **options
        )

    return fault


FAULTS = {
    "positions from 300 on": zero("position", 300, 512),
    "the last position of a full window": zero("position", 383, 384),
    "the last position of all": zero("position", 511, 512),
    "token types": ignore_token_types,
    "some tokens of the vocabulary": zero("word", 60, 68),
    "the last tokens of the vocabulary": zero("word", -8, 10**6),
    "the mask of the first layer": ignore_mask(0),
    "the mask of the last layer": ignore_mask(1),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_anywhere_changes_a_logit(sealed, fault):
    model = sealed.model()
    assert sealed.difference(model) < 1e-4
    fault(model)
    assert sealed.difference(model) > 1e-2


def test_the_rows_are_full_and_padded_long_and_short(sealed):
    rows = [int(mask.sum()) for inputs in sealed.inputs() for mask in inputs["attention_mask"]]
    assert max(rows) == 512
    assert rows.count(384) == 2, "a full window of text, and one of the vocabulary"
    assert min(rows) <= 24
    padded = [inputs["attention_mask"].sum(1).tolist() for inputs in sealed.inputs() if len(inputs["input_ids"]) > 1]
    assert any(min(lengths) < max(lengths) / 2 for lengths in padded), "a short row beside a full one"
    assert any(min(lengths) == max(lengths) for lengths in padded), "a batch without padding"


def test_the_sealed_file_is_small(sealed):
    assert (sealed.folder / sealed_reference.PROBES).stat().st_size < 64_000


def test_text_in_other_scripts_is_probed():
    questions = [_question(number, f"The tower of {number} stands.") for number in range(700)]
    questions[699] = _question(699, "Věž z roku 1871 stojí v Žilině, 灯台.")
    chosen = probes._most_diverse(questions)
    assert chosen[0].id == "699"
    assert len({question.id for question in chosen}) == probes.DIVERSE


WORDS = st.text(alphabet="abz é灯 ", min_size=1, max_size=40).filter(str.strip)


@settings(max_examples=20, deadline=None)
@given(contexts=st.lists(WORDS, min_size=1, max_size=12), longest=st.integers(24, 512))
def test_few_and_short_texts_fill_long_rows(sealed, contexts, longest):
    questions = [_question(number, context) for number, context in enumerate(contexts)]
    chosen = probes.choose(questions, sealed.tokenizer, longest)
    assert chosen == probes.choose(questions, sealed.tokenizer, longest)
    by_id = {question.id: question for question in questions}
    batches = [probes.encode(probe, sealed.tokenizer, by_id, ("input_ids", "attention_mask")) for probe in chosen]
    assert max(int(batch["attention_mask"].sum(1).max()) for batch in batches) == longest
    assert all(batch["input_ids"].shape[1] <= longest for batch in batches)


def _question(number: int, context: str) -> Question:
    return Question(id=str(number), question="What?", context=context, answers=(), answer_starts=())


def test_probes_of_the_first_version_are_read(sealed, tmp_path):
    """Lists of question ids, whose lengths and padding were those of the program."""
    folder = shutil.copytree(sealed.folder, tmp_path / "reference")
    document = json.loads((folder / sealed_reference.ANSWERS).read_text(encoding="utf-8"))
    document["probes"] = [["a"], ["b", "c", "d"], ["e", "f"], ["g", "h"]]
    (folder / sealed_reference.ANSWERS).write_text(json.dumps(document), encoding="utf-8")
    assert sealed_reference.read(folder).probes[2] == Probe(rows=[["e"], ["f"]], length=384, padded=True)


def test_the_tokens_of_one_row_are_spread_over_the_vocabulary(sealed):
    ids = sealed.inputs()[-1]["input_ids"].flatten().tolist()
    assert len(set(ids)) > 0.9 * min(len(ids), sealed.tokenizer.vocab_size)
