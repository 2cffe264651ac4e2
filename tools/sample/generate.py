"""Generates the sample's data: invented names in invented sentences, drawn with a random seed.

A paragraph states facts about several subjects, each fact of another relation, so that a question is answered by
finding the paraphrased sentence that states its relation, and the right span in it, among others of its type. Every
name is composed of syllables and belongs to one split: train and held-out share relations, common nouns and numbers,
but no name.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.sample.relations import COMMON, FILLERS, RELATIONS, Relation

SEED = 20240
PARAGRAPHS = {"train": 900, "heldout": 28}
LONG_EVERY = {"train": 30, "heldout": 9}  # one in so many paragraphs is longer than 384 tokens
LONG = 22  # facts in such a paragraph
QUESTIONS_PER_PARAGRAPH = 5
HELDOUT_SHARE = 0.2

ONSETS = "B Br D Dr F Fl G Gr H J K Kl L M N P R S St T Tr V Z"
HEADS = [onset + vowel for onset in ONSETS.split() for vowel in "aeiouéöå"]
ENDINGS = {
    "given": ["lin", "mon", "rad", "rosh", "nika", "vis", "tessa", "dor"],
    "surname": ["vek", "lsen", "rdal", "mark", "nski", "lund", "pper", "zzo"],
    "town": ["holm", "mouth", "stad", "wick", "haven", "ford", "bury", "ton"],
    "river": ["lesk", "now", "rune", "mira", "quell", "vand", "rix", "sool"],
    "company": ["tex", "mio", "brand", "vium", "plast", "corn", "fex", "gild"],
}
IDEOGRAPHS = "山川水火木金土石田林森海空星月日風雨雪花"
EMOJI = "🦊🐢🐝🦉🐟🦌🐎🐓🦀🐌🦋🐇🐺🐻🐍🦅🌲🌵🌻🍁🍇🍋🍒🌙🔔🔑🪁🪕🏺🗝"


def name_pools() -> dict[str, dict[str, list[str]]]:
    """Split -> kind -> names; no name occurs twice, within a kind, between kinds or between splits."""
    draw = random.Random(SEED)
    pools: dict[str, dict[str, list[str]]] = {"train": {}, "heldout": {}}
    for kind, endings in ENDINGS.items():
        names = ["".join(parts) for parts in itertools.product(HEADS, endings)]
        _split(kind, draw.sample(names, len(names)), pools)
    _split("script", draw.sample(["".join(pair) for pair in itertools.permutations(IDEOGRAPHS, 2)], 300), pools)
    _split("emoji", draw.sample(EMOJI, len(EMOJI)), pools)
    return pools


def _split(kind: str, names: Sequence[str], pools: dict[str, dict[str, list[str]]]) -> None:
    heldout = int(len(names) * HELDOUT_SHARE)
    pools["heldout"][kind], pools["train"][kind] = list(names[:heldout]), list(names[heldout:])


@dataclass(frozen=True, kw_only=True)
class Fact:
    subject: str
    relation: Relation
    answer: tuple[str, ...]  # the full answer first, then parts of it that are correct too
    sentence: str
    start: int  # of the full answer, in the sentence


class Author:
    """Writes paragraphs with the names of one split."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.names = name_pools()[split]
        self.draw = random.Random(f"{SEED} {split}")

    def data(self) -> dict[str, Any]:
        """The split in the layout of SQuAD v1.1, one paragraph an article."""
        return {"version": "1.1", "data": [self.article(number) for number in range(PARAGRAPHS[self.split])]}

    def article(self, number: int) -> dict[str, Any]:
        is_long = number % LONG_EVERY[self.split] == LONG_EVERY[self.split] - 1
        facts = self.facts(LONG if is_long else self.draw.randint(4, 8))
        sentences = [fact.sentence for fact in facts]
        if is_long:
            sentences = [f"{sentence} {self.draw.choice(FILLERS)}" for sentence in sentences]
        starts = itertools.accumulate((len(sentence) + 1 for sentence in sentences), initial=0)
        drawn = self.draw.sample(list(zip(facts, starts, strict=False)), min(QUESTIONS_PER_PARAGRAPH, len(facts)))
        qas = [self.question(number, index, fact, start) for index, (fact, start) in enumerate(drawn)]
        return {"title": facts[0].subject, "paragraphs": [{"context": " ".join(sentences), "qas": qas}]}

    def question(self, number: int, index: int, fact: Fact, sentence_start: int) -> dict[str, Any]:
        start = sentence_start + fact.start
        answers = [{"text": text, "answer_start": start + fact.answer[0].rindex(text)} for text in fact.answer]
        return {
            "id": f"{self.split}-{number:04d}-{index}-{fact.relation.name}",
            "question": self.draw.choice(fact.relation.questions).format(S=fact.subject),
            "answers": answers,
        }

    def facts(self, count: int) -> list[Fact]:
        """Facts of different relations about one or two subjects of several kinds, shuffled or sorted by subject."""
        kinds = self.draw.sample(list(RELATIONS), self.draw.randint(2, 4) if count < LONG else len(RELATIONS))
        cast = {kind: [self.subject(kind) for _ in range(2)] for kind in kinds}
        relations = [(kind, relation) for kind in kinds for relation in RELATIONS[kind]]
        drawn = self.draw.sample(relations, min(count, len(relations)))
        facts = [self.fact(self.draw.choice(cast[kind]), relation) for kind, relation in drawn]
        if self.draw.random() < 0.5:
            facts.sort(key=lambda fact: fact.subject)
        return facts

    def fact(self, subject: str, relation: Relation) -> Fact:
        answer = self.answer(relation.answer)
        template = self.draw.choice(relation.statements).replace("{S}", subject)
        sentence = template.replace("{A}", answer[0])
        return Fact(
            subject=subject,
            relation=relation,
            answer=answer,
            sentence=sentence[0].upper() + sentence[1:],
            start=template.index("{A}"),
        )

    def subject(self, kind: str) -> str:
        if kind == "person":
            return f"{self.name('given')} {self.name('surname')}"
        if kind == "company":
            return f"{self.name('company')} {self.draw.choice(COMMON['company'])}"
        if kind == "bridge":
            return f"the {self.name('river')} Bridge"
        return self.name(kind)

    def answer(self, kind: str) -> tuple[str, ...]:
        """An answer of a kind: the full answer, then other correct answers (always parts of the full one)."""
        if kind == "person":
            given, surname = self.name("given"), self.name("surname")
            return f"{given} {surname}", surname
        if kind == "town":
            town = self.name("town")
            return (f"the port of {town}", town) if self.draw.random() < 0.2 else (town,)
        if kind == "date":
            day = f"{self.draw.randint(1, 28)} {self.draw.choice(COMMON['month'])}"
            year = str(self.draw.randint(1500, 1990))
            return f"{day} {year}", year
        if kind == "year":
            return (str(self.draw.randint(1500, 1990)),)
        if kind == "number":
            return (f"{self.draw.randint(1, 99)},{self.draw.randint(100, 999)}",)
        if kind == "metres":
            number = str(self.draw.randint(100, 999))
            return f"{number} metres", number
        return (self.draw.choice(COMMON[kind]) if kind in COMMON else self.name(kind),)

    def name(self, kind: str) -> str:
        return self.draw.choice(self.names[kind])


def generate(split: str) -> dict[str, Any]:
    """The data of "train" or "heldout"; the same on every call."""
    return Author(split).data()
