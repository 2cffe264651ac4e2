"""`qabuild data check`, and builds, verifications and answers from files as other tools write them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qabuild.artifact.manifest import open_artifact
from qabuild.cli import main
from qabuild.qa import data

MILL = "The mill at Fenwick Ford was rebuilt in 1794 by the mason Ada Crane. It ground rye until the flood of 1868."
QUESTIONS = (
    ("Who rebuilt the mill?", "Ada Crane", 58),
    ("When was the flood?", "1868", 102),
    ("When was it rebuilt?", "1794", 40),
    ("What did it grind?", "rye", 80),  # and not at 79, where it is
)
TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "./fragen.csv"
max_misplaced = {max_misplaced}
[verify.columns]
id = "nr"
question = "frage"
context = "text"
answer_text = "antwort"
answer_start = "ab"
[verify.gates]
min_f1_retention = 0.0
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def qabuild(capfd: pytest.CaptureFixture[str], working_directory: Path) -> Run:
    """`qabuild("data", "check", "q.csv")`: exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        streams = capfd.readouterr()
        return int(stop.value.code or 0), streams.out, streams.err

    return run


def write_german(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-16") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["nr", "text", "frage", "antwort", "ab"])
        writer.writerows([number, MILL, *fields] for number, fields in enumerate(QUESTIONS, 1))


def off_by_one(path: Path) -> None:
    rows = [
        {
            "id": "55031_000",
            "question": "Who?",
            "context": MILL,
            "answers": [{"text": "Ada Crane", "answer_start": 59}],
        },
        {"id": "55031_001", "question": "When?", "context": MILL, "answers": [{"text": "1794", "answer_start": 40}]},
    ]
    path.write_text(json.dumps({"data": rows}))


# --- data check -----------------------------------------------------------------------------------------------------


def test_a_check_says_what_is_wrong_and_a_fix_mends_it(qabuild: Run) -> None:
    off_by_one(Path("off.json"))
    status, out, err = qabuild("data", "check", "off.json")
    assert status == 4
    assert "answers that are not at their answer_start" in out
    assert "'55031_000' ('da Crane.' is at 59, 'Ada Crane' is at 58)" in out
    assert err == "off.json (squad, UTF-8): 2 questions, 0 of them unanswerable\n"
    status, _, err = qabuild("data", "check", "off.json", "--fix", "mended.json")
    assert (status, err.splitlines()[-1]) == (0, "mended.json: 2 questions written")
    assert data.read(Path("mended.json"))[0].answer_starts == (58,)
    assert qabuild("data", "check", "mended.json", "-q") == (0, "", "")


def test_what_cannot_be_mended_is_left_out_and_the_status_says_so(qabuild: Run) -> None:
    rows = [
        {"question": f"{text}?", "context": MILL, "answer_text": text, "answer_start": 58} for text in ("Ada", "Bob")
    ]
    Path("q.json").write_text(json.dumps([*rows, {"id": 1}]))
    status, out, err = qabuild("data", "check", "q.json", "--fix", "mended.json", "--json")
    document = json.loads(out)
    assert (status, document["questions"], document["made_ids"]) == (4, 1, 2)
    assert [(problem["count"], problem["fix"]) for problem in document["problems"]] == [(1, "leaves them out")] * 2
    assert "2 have no id and get one from their texts" in err
    assert [question.answers for question in data.read(Path("mended.json"))] == [("Ada",)]


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["none.json"], 2, "there is no such file"),
        (["off.json", "--fix", "off.json"], 2, "would replace the questions"),
        (["off.json", "--fix", "mended.csv"], 2, "questions are written as SQuAD JSON"),
        (["off.json", "--column", "frage=question"], 2, "write it the other way round: question=frage"),
        (["off.json", "--column", "question=frage"], 4, "rows that hold no question: data[0] has no 'frage', only id"),
        (["nowhere.csv"], 4, "'Bob' is nowhere)\n  correct them"),
        (["empty.csv"], 4, "there are no questions with answers in it\n  write rows into it"),
        (["cut.jsonl.gz"], 4, "cut.jsonl.gz: damaged gzip file"),
        (["flipped.jsonl.gz"], 4, "flipped.jsonl.gz: damaged gzip file"),
        (["twice.csv"], 4, "twice.csv: has several columns 'question'"),
        (["off.json", "--column", "question"], 2, "not of the form NAME=COLUMN"),
        (["asked.jsonl"], 4, "no questions with answers"),
        (["q.txt"], 2, "its ending names no format"),
    ],
)
def test_a_check_that_cannot_be_made_is_one_error(
    qabuild: Run, arguments: list[str], status: int, problem: str
) -> None:
    off_by_one(Path("off.json"))
    Path("q.txt").write_text("")
    Path("asked.jsonl").write_text(json.dumps({"question": "Who?", "context": MILL}))
    header = "id,question,context,answer_text,answer_start\n"
    Path("nowhere.csv").write_text(f'{header}7,Who?,"{MILL}",Bob,0\n')
    Path("empty.csv").write_text(header)
    Path("twice.csv").write_text("id,question,question,context,answer_text\n")
    packed = gzip.compress(Path("off.json").read_bytes())
    Path("cut.jsonl.gz").write_bytes(packed[:-9])
    Path("flipped.jsonl.gz").write_bytes(packed[:-30] + bytes([packed[-30] ^ 255]) + packed[-29:])
    found, out, err = qabuild("data", "check", *arguments)
    assert (found, out) == (status, "")
    assert problem in err


# --- builds, verifications and answers ------------------------------------------------------------------------------


@pytest.mark.both_lines
def test_a_table_with_own_columns_and_a_wrong_offset_verifies_an_artifact(qabuild: Run) -> None:
    write_german(Path("fragen.csv"))
    Path("mill.toml").write_text(TARGET.format(max_misplaced=0.0))
    status, _, err = qabuild("mill.toml", "-q")
    assert status == 4
    assert "'4' ('ye ' is at 80, 'rye' is at 79)" in err
    assert "max_misplaced" in err
    Path("mill.toml").write_text(TARGET.format(max_misplaced=0.25))
    status, _, err = qabuild("mill.toml")
    assert status == 0, err
    assert "left out 1 question, whose answers are not at their answer_start" in err
    artifact = open_artifact(Path("artifacts/mill"))
    assert len(artifact.reference.answers) == 3
    # The artifact knows how its questions are read.
    for arguments in (("--data", "./fragen.csv"), ("--data", "./mended.json")):
        qabuild("data", "check", "fragen.csv", "--fix", "mended.json", *columns())
        assert qabuild("verify", "artifacts/mill", *arguments)[0] == 0
    # So does a target of the same questions without texts or ids.
    assert qabuild("mill.toml", "-q", "--set", "publish.data=none")[0] == 0
    assert qabuild("verify", "artifacts/mill", "--data", "./fragen.csv")[0] == 0
    check_answers(qabuild)


def columns() -> list[str]:
    names = {"id": "nr", "question": "frage", "context": "text", "answer_text": "antwort", "answer_start": "ab"}
    return [word for name, column in names.items() for word in ("--column", f"{name}={column}")]


def check_answers(qabuild: Run) -> None:
    named: list[Any] = ["answer", "artifacts/mill", "fragen.csv", *columns()[:6]]
    assert qabuild(*named, "-o", "pred.csv")[0] == 0
    with open("pred.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert all(MILL[int(row["start"]) : int(row["end"])] == row["answer"] for row in rows)
    status, out, err = qabuild(*named, "-o", "pred.xlsx")
    assert (status, out) == (2, "")
    assert "pred.xlsx: its ending names no format of answers" in err
    assert ".csv, .tsv, .parquet" in err
    status, _, err = qabuild("answer", "artifacts/mill", "fragen.csv", "-o", "pred.csv")
    assert status == 4
    assert "4 of 4 rows are bad: line 2 has no 'question', only nr, text, frage, antwort, ab; line 3" in err
    assert err.count("line") == 3
