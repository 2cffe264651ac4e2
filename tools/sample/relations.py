"""Templates of the sample's sentences and questions. {S} is the subject, {A} the answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    name: str
    answer: str  # kind of answer: a kind of name, of number, or a list in COMMON
    statements: tuple[str, ...]
    questions: tuple[str, ...]


_COMMON = {
    "month": "January, February, March, April, May, June, July, August, September, October, November, December",
    "company": "Works, Press, Society, Mills, Glassworks, Archive",
    "profession": "baker, potter, surveyor, clockmaker, gardener, librarian, weaver, cartographer, glazier, tailor",
    "instrument": "cello, oboe, zither, trumpet, harp, accordion, bassoon, mandolin, flute, tuba",
    "product": "kettles, lanterns, almanacs, ropes, buttons, compasses, umbrellas, bricks, violins, jam",
    "speciality": "smoked cheese, plum cake, blue pottery, rye bread, felt hats, pear cider, amber rings",
    "material": "granite, sandstone, oak, brick, iron, limestone, basalt, steel, larch",
}
COMMON = {kind: words.split(", ") for kind, words in _COMMON.items()}

RELATIONS: dict[str, tuple[Relation, ...]] = {
    "person": (
        Relation(
            "birthplace",
            "town",
            (
                "{S} was born in {A}.",
                "{S} grew up in {A}, close to the market.",
                "The childhood home of {S} was in {A}.",
            ),
            ("Where was {S} born?", "In which town did {S} grow up?"),
        ),
        Relation(
            "birthday",
            "date",
            ("{S} came into the world on {A}.", "The birthday of {S} was {A}."),
            ("When was {S} born?", "On what date did {S} come into the world?"),
        ),
        Relation(
            "profession",
            "profession",
            ("{S} earned a living as a {A}.", "By trade {S} was a {A}, and a patient one."),
            ("What was the profession of {S}?", "How did {S} earn a living?"),
        ),
        Relation(
            "teacher",
            "person",
            ("{S} was taught by {A}.", "It was {A} who taught {S} the craft."),
            ("Who taught {S}?", "Who was the teacher of {S}?"),
        ),
        Relation(
            "instrument",
            "instrument",
            ("In the evenings {S} played the {A}.", "{S} played the {A} in a small orchestra."),
            ("Which instrument did {S} play?", "What did {S} play in the evenings?"),
        ),
        Relation(
            "medal",
            "year",
            ("{S} won a medal in {A}.", "In {A} a medal was given to {S}."),
            ("In which year did {S} win a medal?", "When was {S} given a medal?"),
        ),
    ),
    "town": (
        Relation(
            "river",
            "river",
            ("{S} lies on the river {A}.", "The river {A} flows through {S}."),
            ("Which river flows through {S}?", "On which river does {S} lie?"),
        ),
        Relation(
            "population",
            "number",
            ("About {A} people live in {S}.", "{S} has {A} inhabitants."),
            ("How many people live in {S}?", "How many inhabitants does {S} have?"),
        ),
        Relation(
            "founding",
            "year",
            ("{S} was founded in {A}.", "The first houses of {S} were built in {A}."),
            ("When was {S} founded?", "In which year was {S} founded?"),
        ),
        Relation(
            "mayor",
            "person",
            ("The mayor of {S} is {A}.", "{A} was elected mayor of {S}."),
            ("Who is the mayor of {S}?", "Who was elected mayor of {S}?"),
        ),
        Relation(
            "script",
            "script",
            ("On old maps {S} is written {A} in red ink.", "{S} is called {A} in the old script."),
            ("How is {S} written on old maps?", "What is {S} called in the old script?"),
        ),
        Relation(
            "emblem",
            "emoji",
            ("The emblem of {S} is {A} on a white shield.", "{S} bears {A} on its flag."),
            ("What is the emblem of {S}?", "What does {S} bear on its flag?"),
        ),
        Relation(
            "speciality",
            "speciality",
            ("{S} is known for its {A}.", "Visitors come to {S} for the {A}."),
            ("What is {S} known for?", "What do visitors come to {S} for?"),
        ),
    ),
    "company": (
        Relation(
            "seat",
            "town",
            ("{S} has its seat in {A}.", "The offices of {S} are in {A}."),
            ("Where does {S} have its seat?", "In which town are the offices of {S}?"),
        ),
        Relation(
            "director",
            "person",
            ("{S} is led by {A}.", "{A} is the director of {S}."),
            ("Who leads {S}?", "Who is the director of {S}?"),
        ),
        Relation(
            "product",
            "product",
            ("{S} makes {A}.", "The {A} of {S} are sold in many countries."),
            ("What does {S} make?", "What is made by {S}?"),
        ),
        Relation(
            "opening",
            "date",
            ("{S} opened its doors on {A}.", "Since {A} the doors of {S} have been open."),
            ("When did {S} open its doors?", "On what date did {S} open?"),
        ),
        Relation(
            "staff",
            "number",
            ("{S} employs {A} people.", "The staff of {S} numbers {A} at present."),
            ("How many people does {S} employ?", "How large is the staff of {S}?"),
        ),
    ),
    "bridge": (
        Relation(
            "length",
            "metres",
            ("The length of {S} is {A}.", "From end to end {S} measures {A}."),
            ("How long is {S}?", "What is the length of {S}?"),
        ),
        Relation(
            "architect",
            "person",
            ("The plans of {S} were drawn by {A}.", "{A} was the architect of {S}."),
            ("Who drew the plans of {S}?", "Who was the architect of {S}?"),
        ),
        Relation(
            "material",
            "material",
            ("The arches of {S} are made of {A}.", "Workers used {A} for the arches of {S}."),
            ("What are the arches of {S} made of?", "Which material was used for {S}?"),
        ),
        Relation(
            "completion",
            "year",
            ("Work on {S} ended in {A}.", "In {A} the first carts crossed {S}."),
            ("When did work on {S} end?", "In which year did the first carts cross {S}?"),
        ),
    ),
}

# Sentences without answers, which lengthen long paragraphs.
FILLERS = (
    "Nobody remembers why.",
    "The records do not say more about it.",
    "This is still told at the inn.",
    "A letter in the archive confirms it.",
    "Some doubted it at first, but not for long.",
    "There is a small exhibition about it.",
)
