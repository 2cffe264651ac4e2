"""Loading questions from files, the sample and a Hub on loopback, and every way they can be invalid."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st

from qabuild.errors import BadTarget, QABuildError, UntrustedInput
from qabuild.qa import data
from qabuild.qa.data import Question, QuestionSet

CONTEXT = "Ann Žižek lives in Łódź, and Bob in Oslo."

SQUAD: dict[str, Any] = {
    "version": "1.1",
    "data": [
        {
            "title": "People",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where does Ann live?",
                            "answers": [
                                {"text": "Łódź", "answer_start": 19},
                                {"text": "in Łódź", "answer_start": 16},
                            ],
                        },
                        {
                            "id": "q2",
                            "question": "Who lives in Oslo?",
                            "answers": [{"text": "Bob", "answer_start": 29}],
                        },
                    ],
                }
            ],
        },
        {
            "title": "Numbers",
            "paragraphs": [
                {
                    "context": "One, two.",
                    "qas": [{"id": "q3", "question": "Which?", "answers": [{"text": "two", "answer_start": 5}]}],
                }
            ],
        },
    ],
}

UNANSWERABLE = {"id": "q4", "question": "Where is Cleo?", "answers": [], "is_impossible": True}


def squad(change: Callable[[Any], object] = lambda _: None) -> dict[str, Any]:
    """A valid data set after a change to its root."""
    root = copy.deepcopy(SQUAD)
    change(root)
    return root


def qas(root: Any) -> list[Any]:
    entries: list[Any] = root["data"][0]["paragraphs"][0]["qas"]
    return entries


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(root, name="squad.json")`: a file with that JSON, or with those bytes."""

    def writer(root: Any, name: str = "squad.json") -> Path:
        content = root if isinstance(root, bytes) else json.dumps(root).encode()
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return writer


# --- reading files -----------------------------------------------------------------------------------------------


def test_a_file_is_read_with_all_gold_answers(write: Callable[..., Path]) -> None:
    questions = data.load(data.DatasetRef(write(SQUAD)))
    assert [question.id for question in questions.questions] == ["q1", "q2", "q3"]
    assert questions.questions[0] == Question(
        id="q1",
        question="Where does Ann live?",
        context=CONTEXT,
        answers=("Łódź", "in Łódź"),
        answer_starts=(19, 16),
    )
    assert (questions.name, questions.revision, questions.split) == ("squad.json", None, None)
    assert not questions.has_unanswerable
    assert len(questions) == 3


def test_a_path_may_be_a_string(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(SQUAD)
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("HOME", str(path.parent))
    for source in (str(path), "./squad.json", f"../{path.parent.name}/squad.json", "~/squad.json"):
        assert len(data.load(data.DatasetRef(source))) == 3


def test_a_gzip_file_is_recognised_by_content_not_name(write: Callable[..., Path]) -> None:
    content = gzip.compress(json.dumps(SQUAD).encode())
    expected = data.read(write(SQUAD))
    assert data.read(write(content, "squad.json.gz")) == expected
    assert data.read(write(content, "compressed.json")) == expected


def test_unanswerable_questions_have_no_answers(write: Callable[..., Path]) -> None:
    entry = UNANSWERABLE | {"plausible_answers": [{"text": "Oslo", "answer_start": 36}]}
    questions = data.load(data.DatasetRef(write(squad(lambda root: qas(root).append(entry)))))
    assert questions.has_unanswerable
    assert questions.questions[2].answers == ()


def test_a_byte_order_mark_is_accepted(write: Callable[..., Path]) -> None:
    assert len(data.read(write(b"\xef\xbb\xbf" + json.dumps(SQUAD).encode()))) == 3


def test_the_squad_development_set_is_valid(squad_dev: Path) -> None:
    questions = data.load(data.DatasetRef(squad_dev))
    assert len(questions) == 10_570
    assert questions.fingerprint == "9cdde61fb32d660c7cb95e48ac965d7325ec2b281e813b4c5e6e809a608aa060"


def test_reading_a_file_imports_nothing_heavy(write: Callable[..., Path]) -> None:
    code = (
        "import sys; from qabuild.qa import data; data.load(data.DatasetRef(sys.argv[1]))\n"
        "print(*{'datasets', 'torch', 'numpy', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(write(SQUAD))], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- the sample --------------------------------------------------------------------------------------------------


def test_the_sample_has_two_splits_without_a_common_question() -> None:
    heldout, train = data.load(data.DatasetRef("sample")), data.load(data.DatasetRef("sample", split="train"))
    assert (heldout.name, heldout.revision, heldout.split) == ("sample", None, "validation")
    assert heldout.questions
    assert not {question.id for question in heldout.questions} & {question.id for question in train.questions}
    with pytest.raises(BadTarget, match="no split 'test'"):
        data.load(data.DatasetRef("sample", split="test"))


# --- invalid files -----------------------------------------------------------------------------------------------


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTarget, match="no such file"):
        data.load(data.DatasetRef(tmp_path / "none.json"))
    with pytest.raises(BadTarget, match="cannot be read"):
        data.load(data.DatasetRef(tmp_path))


def test_a_revision_of_a_local_data_set_is_refused(write: Callable[..., Path]) -> None:
    for source in (write(SQUAD), "sample"):
        with pytest.raises(BadTarget, match="revision 'main' is given"):
            data.load(data.DatasetRef(source, revision="main"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"{", r"line 1: not JSON \(unexpected end\)"),
        (b"[" * 200_000, "not JSON"),
        (b'{"data": "\xff"}', r"not UTF-8 text, it looks like Windows-1252: byte 0xFF after"),
        (gzip.compress(json.dumps(SQUAD).encode())[:-20], "damaged gzip"),
        (b"\x1f\x8bnothing of the kind", "damaged gzip"),
        (b"PK\x03\x04", "line 1: not JSON"),
        (
            b"[" + b"{},\n" * 100_000 + b'{"id": 7,\n "id": "Who?',
            r"line 100002: not JSON \(Unterminated string\)",
        ),
    ],
    # Names, not the bytes: gzip writes the time of day, and all workers must collect the same names.
    ids=["empty", "cut off", "nested", "not UTF-8", "gzip cut off", "not gzip", "zip", "cut off in a long line"],
)
def test_a_file_that_is_not_json_is_refused(write: Callable[..., Path], content: bytes, problem: str) -> None:
    with pytest.raises(UntrustedInput, match=rf"squad\.json: {problem}") as caught:
        data.load(data.DatasetRef(write(content)))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("root", "place"),
    [
        ([7], r"\[0\] is not an object"),
        ({}, "object 1 has no 'question', only nothing"),
        ({"data": {}}, "object 1 has no 'question', only data"),
        ({"data": [7]}, r"data\[0\] is not an object"),
        (squad(lambda r: r["data"][1].pop("paragraphs")), r"data\[1\] has no 'question', only title"),
        (
            squad(lambda r: r["data"][1]["paragraphs"][0].pop("context")),
            r"data\[1\]\.paragraphs\[0\]\.qas\[0\] has no 'context', only qas",
        ),
        (squad(lambda r: qas(r)[1].update(id=[7])), r"data\[0\]\.paragraphs\[0\]\.qas\[1\]\.id is neither"),
        (squad(lambda r: qas(r)[1].pop("question")), r"data\[0\]\.paragraphs\[0\]\.qas\[1\] has no 'question'"),
        (squad(lambda r: qas(r)[1].pop("answers")), r"qas\[1\] has no 'answers'"),
        (squad(lambda r: qas(r)[0]["answers"][1].pop("text")), r"qas\[0\]\.answers\[1\] has no 'text'"),
        (squad(lambda r: qas(r)[0]["answers"][1].update(answer_start=True)), r"\[1\]\.answer_start is not an int"),
        (squad(lambda r: qas(r)[0]["answers"][1].update(answer_start=1.5)), r"\[1\]\.answer_start is not an int"),
        (squad(lambda r: qas(r)[0].update(is_impossible="no")), r"qas\[0\]\.is_impossible is neither true nor false"),
    ],
)
def test_a_wrong_layout_is_refused_with_its_place(write: Callable[..., Path], root: Any, place: str) -> None:
    with pytest.raises(UntrustedInput, match=rf"squad\.json: .*{place}") as caught:
        data.load(data.DatasetRef(write(root)))
    assert "answer_start" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r.update(data=[]), "there are no questions"),
        (lambda r: qas(r)[1].update(id="q1"), "1 id of more than one question: 'q1'"),
        (lambda r: qas(r)[1].update(question=" "), r"qas\[1\]\.question is blank"),
        (
            lambda r: r["data"][0]["paragraphs"][0].update(context=""),
            r"2 of 3 rows .*qas\[0\]\.context is blank",
        ),
        (lambda r: qas(r)[1]["answers"][0].update(answer_start=28), "1 questions have an answer that .*: 'q2'"),
        (lambda r: qas(r)[1]["answers"][0].update(answer_start=-12), "1 questions have an answer that .*: 'q2'"),
        (lambda r: qas(r)[1]["answers"][0].update(answer_start=10**30), "1 questions have an answer that .*: 'q2'"),
        (lambda r: qas(r)[1]["answers"][0].update(text="bob"), "1 questions have an answer that .*: 'q2'"),
        (lambda r: qas(r)[1].update(answers=[], is_impossible=False), "'q2' has no answers and is_impossible is false"),
        (lambda r: qas(r)[1].update(is_impossible=True), "question 'q2' is marked is_impossible and has answers"),
        (lambda r: qas(r)[1].update(question="\ud800?"), r"qas\[1\] holds characters that are not valid text"),
    ],
)
def test_invalid_questions_are_refused_with_their_ids(
    write: Callable[..., Path], change: Callable[[Any], object], problem: str
) -> None:
    with pytest.raises(UntrustedInput, match=rf"squad\.json: .*{problem}") as caught:
        data.load(data.DatasetRef(write(squad(change))))
    assert caught.value.hint


def test_all_misplaced_answers_are_counted_and_the_first_ids_named(write: Callable[..., Path]) -> None:
    entries = [
        {"id": f"q{number}", "question": "?", "answers": [{"text": "b", "answer_start": 2}]} for number in range(8)
    ]
    root = {"data": [{"paragraphs": [{"context": "éb", "qas": entries}]}]}
    with pytest.raises(
        UntrustedInput, match=r"8 questions .*: 'q0' \(nothing is at 2, 'b' is at 1\), 'q1' .*, 'q2' .*, \.\.\.\n"
    ) as caught:
        data.load(data.DatasetRef(write(root)))
    assert "not bytes" in (caught.value.hint or "")


# --- generated and damaged data sets -----------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@st.composite
def articles(draw: st.DrawFn) -> list[Any]:
    """SQuAD's `data` with valid spans, several answers and unanswerable questions."""
    ids = iter(draw(st.lists(TEXT, min_size=12, max_size=12, unique=True)))

    def entry(context: str) -> dict[str, Any]:
        answers = []
        for _ in range(draw(st.integers(0, 2))):
            start = draw(st.integers(0, len(context) - 1))
            text = context[start : draw(st.integers(start + 1, len(context)))]
            answers += [{"text": text, "answer_start": start}] if text.strip() else []
        return {"id": next(ids), "question": draw(TEXT), "answers": answers, "is_impossible": not answers}

    def paragraph() -> dict[str, Any]:
        context = draw(TEXT)
        return {"context": context, "qas": [entry(context) for _ in range(draw(st.integers(1, 3)))]}

    sizes = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
    return [{"paragraphs": [paragraph() for _ in range(size)]} for size in sizes]


def layout_of(questions: tuple[Question, ...]) -> dict[str, Any]:
    """The questions in SQuAD's layout, one paragraph a question."""
    return {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": question.context,
                        "qas": [
                            {
                                "id": question.id,
                                "question": question.question,
                                "is_impossible": not question.answers,
                                "answers": [
                                    {"text": text, "answer_start": start}
                                    for text, start in zip(question.answers, question.answer_starts, strict=True)
                                ],
                            }
                        ],
                    }
                    for question in questions
                ]
            }
        ]
    }


@given(articles(), st.booleans())
def test_any_valid_data_set_survives_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, articles: list[Any], as_ascii: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "roundtrip.json"
    path.write_text(json.dumps({"data": articles}, ensure_ascii=as_ascii), encoding="utf-8")
    questions = data.read(path)
    assert [q.id for q in questions] == [q["id"] for a in articles for p in a["paragraphs"] for q in p["qas"]]
    path.write_text(json.dumps(layout_of(questions)), encoding="utf-8")
    assert data.read(path) == questions
    assert data.fingerprint(data.read(path)) == data.fingerprint(questions)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 50) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


@given(st.data(), VALUES, st.sampled_from(["replace", "remove", "repeat"]))
def test_a_damaged_data_set_is_valid_or_refused(
    tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject, value: Any, damage: str
) -> None:
    root = squad(lambda root: qas(root).append(dict(UNANSWERABLE)))
    *path_to_parent, key = draw.draw(st.sampled_from(list(places(root))))
    parent = root
    for step in path_to_parent:
        parent = parent[step]
    if damage == "replace":
        parent[key] = value
    elif damage == "remove":
        del parent[key]
    elif isinstance(parent, list):
        parent.append(parent[key])
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(json.dumps(root))
    with suppress(QABuildError):  # and no other exception
        data.check(data.read(path), "as read")


@given(st.binary(max_size=200), st.integers(0, 500))
def test_damaged_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.json"
    for content in (json.dumps(SQUAD).encode(), gzip.compress(json.dumps(SQUAD).encode(), mtime=0)):
        path.write_bytes(content[:at] + noise + content[at + len(noise) :])
        with suppress(QABuildError):  # and no other exception
            data.read(path)


# --- fingerprint, subset, selection ------------------------------------------------------------------------------


def question(name: str = "q", **fields: Any) -> Question:
    return Question(
        **{"id": name, "question": "Who?", "context": "Ann, Bob", "answers": ("Bob",), "answer_starts": (5,), **fields}
    )


def questions(number: int) -> QuestionSet:
    entries = tuple(question(f"q{index}") for index in range(number))
    fingerprint = data.fingerprint(entries)
    return QuestionSet(questions=entries, name="made", revision=None, split="train", fingerprint=fingerprint)


def test_the_fingerprint_is_computed_as_documented() -> None:
    import hashlib

    line = '["q","Wër?","Ann, Bob",["Bob","Ann"],[5,0]]\n'
    entry = question(question="Wër?", answers=("Bob", "Ann"), answer_starts=(5, 0))
    assert data.fingerprint([entry]) == hashlib.sha256(line.encode()).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        [question("r"), question("q2")],
        [question(question="Whom?"), question("q2")],
        [question(context="Ann, Bob."), question("q2")],
        [question(answers=("Bob", "Bob"), answer_starts=(5, 5)), question("q2")],
        [question(answers=("Ann",), answer_starts=(0,)), question("q2")],
        [question("q2"), question("q")],
        [question("q")],
    ],
)
def test_any_change_alters_the_fingerprint(other: list[Question]) -> None:
    assert data.fingerprint(other) != data.fingerprint([question("q"), question("q2")])


def test_a_subset_is_drawn_by_seed_and_keeps_the_order() -> None:
    everything = questions(100)
    drawn = data.subset(everything, 10, seed=1)
    numbers = [int(question.id[1:]) for question in drawn.questions]
    assert numbers == sorted(set(numbers))
    assert len(drawn) == 10
    assert drawn == data.subset(everything, 10, seed=1)
    assert drawn != data.subset(everything, 10, seed=2)
    assert drawn.fingerprint == data.fingerprint(drawn.questions) != everything.fingerprint
    assert (drawn.name, drawn.split) == ("made", "train")
    # Existing evidence names subsets by random seed, so what a seed draws must never change.
    assert numbers == [8, 15, 17, 32, 57, 60, 63, 72, 83, 97]


def test_a_subset_of_all_is_the_whole_set() -> None:
    assert data.subset(questions(5), 5, seed=3) == questions(5)


@pytest.mark.parametrize("samples", [0, -1, 6])
def test_a_subset_of_impossible_size_is_refused(samples: int) -> None:
    with pytest.raises(BadTarget, match=f"{samples} samples are asked for, of 5 questions"):
        data.subset(questions(5), samples)


def test_load_draws_a_subset(write: Callable[..., Path]) -> None:
    path = write(SQUAD)
    assert data.load(data.DatasetRef(path, samples=2, seed=4)) == data.subset(data.load(data.DatasetRef(path)), 2, 4)


def test_questions_are_selected_in_the_order_of_the_ids() -> None:
    everything = questions(5)
    chosen = data.select(everything, ["q3", "q0"])
    assert [question.id for question in chosen.questions] == ["q3", "q0"]
    assert chosen.fingerprint == data.fingerprint(chosen.questions)
    assert data.select(everything.questions, ["q3", "q0"]) == chosen.questions


def test_selecting_missing_ids_is_refused() -> None:
    with pytest.raises(UntrustedInput, match="2 of 3 questions are not in the data: 'x', 'y'"):
        data.select(questions(5), ["x", "q1", "y"])


# --- the Hub -----------------------------------------------------------------------------------------------------


def rows(root: Mapping[str, Any]) -> list[dict[str, Any]]:
    """SQuAD's questions as table rows, in the layout of data sets on the Hub."""
    return [
        {
            "id": entry["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": entry["question"],
            "answers": {
                "text": [answer["text"] for answer in entry["answers"]],
                "answer_start": [answer["answer_start"] for answer in entry["answers"]],
            },
        }
        for article in root["data"]
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
    ]


def parquet(table: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet as writer

    buffer = io.BytesIO()
    writer.write_table(pyarrow.Table.from_pylist(table), buffer)
    return buffer.getvalue()


CARD = b"""---
license: cc0-1.0
dataset_info:
  config_name: plain_text
  features:
  - name: id
    dtype: string
  - name: title
    dtype: string
  - name: context
    dtype: string
  - name: question
    dtype: string
  - name: answers
    sequence:
    - name: text
      dtype: string
    - name: answer_start
      dtype: int32
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: validation
    path: plain_text/validation-*
---
# Questions, described as SQuAD is on the Hub
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A Hub with the same questions as Parquet and as JSON, and a few invalid data sets."""
    train = [{**row, "id": f"t{row['id']}"} for row in rows(SQUAD)]
    with Hub() as hub:
        hub.commit(
            "dataset",
            "qa/parquet",
            {
                "README.md": CARD,
                "plain_text/train-00000-of-00001.parquet": parquet(train),
                "plain_text/validation-00000-of-00001.parquet": parquet(rows(SQUAD)),
            },
        )
        hub.commit("dataset", "qa/MyJson", {"validation.json": json.dumps(rows(SQUAD)).encode()})
        hub.commit("dataset", "qa/other", {"validation.json": json.dumps([{"text": "no questions"}]).encode()})
        hub.commit("dataset", "qa/damaged", {"validation.parquet": parquet(train)[:-50] + bytes(50)})
        hub.commit("dataset", "qa/gated", {"validation.json": b"[]"}, gated=True)
        yield hub


TWO_TABLES = """\
---
configs:
- config_name: squad.de
  data_files:
  - split: validation
    path: de.json
- config_name: squad.en
  data_files:
  - split: validation
    path: en.json
---
"""


LOADER = """
import json, sys
from qabuild.qa import data
from qabuild.errors import QABuildError
results = []
for arguments in json.loads(sys.argv[1]):
    try:
        offline = arguments.pop("offline", False)
        arguments["columns"] = data.Columns(**arguments.pop("columns", {}))
        questions = data.load(data.DatasetRef(arguments.pop("source"), **arguments), offline=offline)
        results.append([questions.name, questions.revision, questions.split, questions.fingerprint])
    except QABuildError as error:
        results.append([type(error).__name__, str(error)])
print(json.dumps(results))
"""


def load_in_process(hub: Hub, home: Path, *arguments: dict[str, Any], **environment: str) -> list[list[Any]]:
    """Results of `data.load` for each set of arguments, in a process that uses this Hub."""
    done = subprocess.run(
        [sys.executable, "-c", LOADER, json.dumps(arguments)],
        env={**os.environ, **hub.environment(home), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bars or warnings unless stderr is a terminal
    results: list[list[Any]] = json.loads(done.stdout)
    return results


@pytest.mark.hub
def test_questions_from_the_hub_equal_those_of_the_file(hub: Hub, tmp_path: Path, write: Callable[..., Path]) -> None:
    expected = data.load(data.DatasetRef(write(SQUAD))).fingerprint
    sha = {name: hub.repositories["dataset", name].branches["main"] for name in ("qa/parquet", "qa/MyJson")}
    loaded = load_in_process(
        hub, tmp_path, {"source": "qa/parquet"}, {"source": "qa/MyJson"}, {"source": "qa/parquet", "split": "train"}
    )
    assert loaded[:2] == [[name, sha[name], "validation", expected] for name in ("qa/parquet", "qa/MyJson")]
    assert loaded[2][2] == "train"
    assert loaded[2][3] != expected
    hub.requests.clear()
    # A commit never changes: once it is cached, the Hub is not queried, offline or not.
    pinned = {"source": "qa/parquet", "revision": sha["qa/parquet"]}
    assert load_in_process(hub, tmp_path, pinned, {"source": "qa/MyJson", "offline": True}) == loaded[:2]
    assert hub.requests == []


@pytest.mark.hub
def test_a_missing_gated_or_malformed_data_set_is_refused(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    expected = {
        "there is no data set 'qa/none'": {"source": "qa/none"},
        "has no revision 'v9'": {"source": "qa/MyJson", "revision": "v9"},
        "has no revision '9999": {"source": "qa/MyJson", "revision": "9" * 40},
        'Unknown split "test"': {"source": "qa/MyJson", "split": "test"},
        "'train[:9]' is no name of a split": {"source": "qa/MyJson", "split": "train[:9]"},
        "is a gated dataset": {"source": "qa/gated"},
        "no data set on the Hub has the id 'a/b/c'": {"source": "a/b/c"},
        "'x y' is no revision": {"source": "qa/MyJson", "revision": "x y"},
        "'taken' is taken as the id": {"source": "taken"},
    }
    for message, (kind, text) in zip(expected, load_in_process(hub, tmp_path, *expected.values()), strict=True):
        assert (kind, message in text) == ("BadTarget", True), text


@pytest.mark.hub
def test_a_damaged_table_or_one_with_other_columns_is_refused(hub: Hub, tmp_path: Path) -> None:
    other, damaged = load_in_process(hub, tmp_path, {"source": "qa/other"}, {"source": "qa/damaged"})
    assert other[0] == damaged[0] == "UntrustedInput"
    assert "row 0 has no 'question', only text" in other[1]
    assert "'qa/damaged' cannot be loaded" in damaged[1]


@pytest.mark.hub
def test_without_a_network_another_cached_commit_is_not_used(tmp_path: Path) -> None:
    with Hub() as hub:
        old = hub.commit("dataset", "qa/MyJson", {"validation.json": json.dumps(rows(SQUAD)).encode()})
        [known] = load_in_process(hub, tmp_path, {"source": "qa/MyJson"})
        new = hub.commit("dataset", "qa/MyJson", {"validation.json": json.dumps(rows(SQUAD)[:2]).encode()})
    branch, other, again = load_in_process(
        hub,
        tmp_path,
        {"source": "qa/MyJson"},
        {"source": "qa/MyJson", "revision": new},
        {"source": "qa/MyJson", "revision": old},
    )
    assert branch[0] == other[0] == "QABuildError"
    assert "no answer from" in branch[1]
    assert "no answer from" in other[1]
    assert again == known
    main, missing, unknown = load_in_process(
        hub,
        tmp_path,
        {"source": "qa/MyJson"},
        {"source": "qa/MyJson", "revision": new},
        {"source": "qa/none"},
        HF_HUB_OFFLINE="1",
    )
    assert main == known
    assert missing[0] == unknown[0] == "QABuildError"
    assert f"revision {new}, split 'validation') is not in the cache" in missing[1]
    assert "'qa/none' (main) is not in the cache" in unknown[1]


@pytest.mark.hub
def test_a_data_set_with_several_configurations_is_read_by_the_name_of_one(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    with Hub() as hub:
        tables = {"de.json": rows(SQUAD)[:1], "en.json": rows(SQUAD)[1:]}
        files = {name: json.dumps(table).encode() for name, table in tables.items()}
        hub.commit("dataset", "qa/two", {"README.md": TWO_TABLES.encode(), **files})
        wanted = [{"source": "qa/two", "configuration": name} for name in ("squad.de", "squad.en")]
        german, english, none, unknown, odd = load_in_process(
            hub,
            tmp_path,
            *wanted,
            {"source": "qa/two"},
            {"source": "qa/two", "configuration": "squad.fr"},
            {"source": "qa/two", "configuration": "../de"},
        )
    assert german[3] == data.fingerprint(data.load(data.DatasetRef(write(SQUAD))).questions[:1])
    assert english[3] != german[3]
    assert (none[0], unknown[0], odd[0]) == ("BadTarget",) * 3
    assert "squad.de" in none[1]
    assert "squad.en" in none[1]
    assert "`configuration`" in none[1]
    assert "squad.fr" in unknown[1]
    assert "'../de' is no name of a configuration" in odd[1]
    # Each is cached on its own.
    arguments = [{**one, "offline": True} for one in wanted]
    assert load_in_process(hub, tmp_path, *arguments, HF_HUB_OFFLINE="1") == [german, english]


@pytest.mark.hub
def test_integer_ids_answers_as_objects_and_other_columns_are_read_from_the_hub(tmp_path: Path) -> None:
    answer = {"answer_id": 901, "text": "Bob", "answer_start": 29}
    table = [
        {"id": 381, "frage": "Wer?", "context": CONTEXT, "answers": [answer]},
        {"id": 382, "frage": "Wo?", "context": CONTEXT, "answers": []},
    ]
    with Hub() as hub:
        hub.commit("dataset", "qa/german", {"validation.json": json.dumps(table).encode()})
        named, unnamed = load_in_process(
            hub, tmp_path, {"source": "qa/german", "columns": {"question": "frage"}}, {"source": "qa/german"}
        )
    expected = [
        Question(id="381", question="Wer?", context=CONTEXT, answers=("Bob",), answer_starts=(29,)),
        Question(id="382", question="Wo?", context=CONTEXT, answers=(), answer_starts=()),
    ]
    assert named[3] == data.fingerprint(expected)
    assert "2 of 2 rows are bad: row 0 has no 'question', only id, frage, context, answers" in unnamed[1]


def test_a_configuration_is_of_data_on_the_hub_alone() -> None:
    with pytest.raises(BadTarget, match=r"configuration 'squad\.de' is given for the data 'sample'"):
        data.load(data.DatasetRef("sample", configuration="squad.de"))
