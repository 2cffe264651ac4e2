"""The embedded sample is as its README says: disjoint names, valid spans, small, reproducible, answered well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qabuild.qa import sample, squad_metric
from qabuild.qa.data import read
from tools.sample import generate, make, relations

FILES = {"train": sample.TRAIN, "heldout": sample.HELDOUT}
WORD = re.compile(rf"\w+|[{generate.EMOJI}]")


def pairs(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Context and question entry of every question."""
    for paragraph in make.read(FILES[split]):
        for qa in paragraph["qas"]:
            yield paragraph["context"], qa


def words(split: str) -> set[str]:
    return set(WORD.findall(" ".join(f"{context} {qa['question']}" for context, qa in pairs(split))))


def template_words() -> set[str]:
    """The words of templates and lists, which the splits may share; in lower case, as some begin sentences."""
    texts = [text for group in relations.COMMON.values() for text in group]
    for group in relations.RELATIONS.values():
        texts += [text for relation in group for text in (*relation.statements, *relation.questions)]
    texts += [*relations.FILLERS, "the port of", "the Bridge", "metres"]
    return {word.lower() for word in WORD.findall(" ".join(texts))}


def test_train_and_heldout_share_only_template_words_and_numbers() -> None:
    shared = {word for word in words("train") & words("heldout") if not word.isdigit()}
    assert {word for word in shared if word.lower() not in template_words()} == set()


def test_every_name_belongs_to_one_split() -> None:
    pools = generate.name_pools()
    train, heldout = ({name for names in pools[split].values() for name in names} for split in ("train", "heldout"))
    assert not train & heldout
    assert not words("train") & heldout
    assert not words("heldout") & train
    assert len(words("heldout") & heldout) > 100


@pytest.mark.parametrize("split", FILES)
def test_every_answer_is_at_its_answer_start(split: str) -> None:
    for context, qa in pairs(split):
        assert qa["answers"]
        for answer in qa["answers"]:
            start = answer["answer_start"]
            assert context[start : start + len(answer["text"])] == answer["text"]


@pytest.mark.parametrize("split", FILES)
def test_a_paragraph_has_one_question_a_relation(split: str) -> None:
    for paragraph in make.read(FILES[split]):
        relation_names = [qa["id"].rsplit("-", 1)[1] for qa in paragraph["qas"]]
        assert len(relation_names) == len(set(relation_names))


def test_ids_are_unique_and_hold_split_and_relation() -> None:
    ids = [qa["id"] for split in FILES for _, qa in pairs(split)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"(train|heldout)-\d{4}-\d-[a-z]+", id) for id in ids)


def test_heldout_has_accents_ideographs_emoji_and_several_gold_answers() -> None:
    text = sample.HELDOUT.read_text(encoding="utf-8")
    assert set("éöå") <= set(text)
    assert set(generate.IDEOGRAPHS) & set(text)
    assert any(ord(character) > 0xFFFF for character in text)
    entries = list(pairs("heldout"))
    assert 100 <= len(entries) <= 200
    assert any(len(qa["answers"]) > 1 for _, qa in entries)
    assert any(ord(character) > 0xFFFF for context, qa in entries for character in qa["answers"][0]["text"])


def test_some_heldout_contexts_need_several_windows() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sample.CHECKPOINT)
    lengths = [len(tokenizer(paragraph["context"])["input_ids"]) for paragraph in make.read(sample.HELDOUT)]
    assert 1 <= sum(length > 384 for length in lengths) <= 5
    golds = [answer["text"] for _, qa in pairs("heldout") for answer in qa["answers"]]
    longest = max(len(tokenizer(f" {gold}", add_special_tokens=False)["input_ids"]) for gold in golds)
    assert longest <= 15, "the stock pipeline returns no longer answers"


def test_the_sample_is_small() -> None:
    size = sum(
        path.stat().st_size for path in Path(sample.__file__).parent.rglob("*") if "__pycache__" not in path.parts
    )
    assert size <= 4 * 2**20


def test_the_data_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    make.write_data(tmp_path)
    for path in FILES.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_tokenizer_is_rebuilt_from_the_train_text() -> None:
    vocabulary = json.loads((sample.CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert make.make_tokenizer(make.read(sample.TRAIN)).get_vocab() == vocabulary


def test_the_training_data_is_rebuilt_with_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "DRAWS", 2)
    make.write_redrawn(make.read(sample.TRAIN), tmp_path / "redrawn.json")
    drawn = read(tmp_path / "redrawn.json")  # checks that every answer is at its answer_start
    assert len(drawn) == 2 * sum(1 for _ in pairs("train"))
    assert drawn[0].context != drawn[len(drawn) // 2].context
    heldout = {name for pool in generate.name_pools()["heldout"].values() for name in pool}
    assert not heldout & set(WORD.findall(" ".join(question.context for question in drawn)))


def test_the_sample_answers_the_heldout_questions() -> None:
    predictions = make.answers(sample.CHECKPOINT, sample.HELDOUT)
    golds = {qa["id"]: [answer["text"] for answer in qa["answers"]] for _, qa in pairs("heldout")}
    assert squad_metric.score(predictions, golds).exact_match >= 90
