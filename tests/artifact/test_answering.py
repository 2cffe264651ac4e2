"""One artifact, one answer: from Python, in bulk, over HTTP, from the sealed handler and from the card's example."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
from click.testing import CliRunner
from server import Server

import qabuild
from qabuild.artifact import readme
from qabuild.artifact.evidence import evidence_of
from qabuild.artifact.load import load_model
from qabuild.artifact.manifest import Artifact, open_artifact
from qabuild.cli import cli
from qabuild.publishing import card
from qabuild.qa.pipeline import QuestionAnsweringPipeline

CHINESE = "王小明于1911年在上海建造了灯塔。灯塔高40米。由铁和白色石头建成。BERT模型也知道。"
EXAMPLES = [
    *({"question": "Tell me. " * 8 + end, "context": tiny.CORPUS[0]} for end in ("Who?", "When?", "Where is it?")),
    *({"question": "Who?", "context": word} for word in ("Mira", "1871", "cliff", "lamp")),
    {"question": "Who built the lighthouse?", "context": " ".join(tiny.CORPUS[:7])},
    {"question": " ".join(tiny.CORPUS[:7]), "context": " ".join(tiny.CORPUS[:7])},
    {"question": "谁建造了灯塔", "context": CHINESE},
    {"question": "谁建造了灯塔" * 20, "context": CHINESE * 2},
    {"question": "どこ", "context": "駅は丘の上の町ラルクホルムにある。"},
    {"question": "ใครสร้าง", "context": "ประภาคารสร้างในปี 1911 โดยวิศวกร"},
    {"question": "Who?", "context": "[CLS] Ada Crane [SEP] rebuilt\u200b it. [PAD] [MASK] 🚂🚂"},
]
DEFAULT = ("xlm-roberta", "")
OWN = (
    "bert",
    "max_seq_len = 200\ndoc_stride = 40\nmax_question_len = 30\nmax_answer_len = 6\nalign_to_words = false\n"
    "handle_impossible_answer = false",
)
"""Model type and table [answer] of the artifacts."""
TARGET = """
[checkpoint]
model = "{model}"
[backend]
name = "eager"
[answer]
{answer}
[verify]
dataset = "./questions.json"
cross_check = "all"
[publish]
data = "full"
[verify.gates]
min_f1_retention = 0.0
"""


def write_questions(path: Path) -> None:
    """The examples as SQuAD 2.0: every second one has no answer."""
    paragraphs = []
    for number, example in enumerate(EXAMPLES):
        text = example["context"][:3]
        answers = [] if number % 2 else [{"text": text, "answer_start": 0}]
        question = {"id": str(number), "question": example["question"], "is_impossible": not answers}
        paragraphs.append({"context": example["context"], "qas": [{**question, "answers": answers}]})
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}))


@pytest.fixture(params=[DEFAULT, OWN], ids=["default", "own"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> Artifact:
    """The artifact of a tiny checkpoint, verified on the examples."""
    model_type, answer = request.param
    write_questions(tmp_path / "questions.json")
    text = TARGET.format(model=tiny_checkpoint(model_type), answer=answer)
    (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
    built = qabuild.build(tmp_path / "tiny.toml", tmp_path)
    assert built.verification.passed
    return open_artifact(built.directory)


def loaded(folder: Path, **parameters: Any) -> list[Any]:
    answer = qabuild.load(folder)
    return [answer(**example, **parameters) for example in EXAMPLES]


def in_bulk(folder: Path, *options: str) -> list[Any]:
    questions, answers = folder.parent / "q.jsonl", folder.parent / "a.jsonl"
    questions.write_text("".join(json.dumps({"id": n, **example}) + "\n" for n, example in enumerate(EXAMPLES)))
    result = CliRunner().invoke(cli, ["answer", str(folder), str(questions), "-o", str(answers), "--json", *options])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    if not options:
        assert json.loads(result.stdout)["truncated"] == sum("question_truncated" in line for line in lines)
    results = [{name: value for name, value in line.items() if name != "id"} for line in lines]
    return [result.get("answers", result) for result in results]


def served(folder: Path, **parameters: Any) -> list[Any]:
    """The answers to each question alone, which are those to all of them in one batch."""
    with Server(folder, "--max-batch", len(EXAMPLES)) as server:
        together: list[Any] = server.ask({"items": EXAMPLES, **parameters})["results"]
        alone = [server.ask({**example, **parameters}) for example in EXAMPLES]
    assert together == rounded(alone)
    return alone


def handled(folder: Path, **parameters: Any) -> list[Any]:
    spec = spec_from_file_location("handler", folder / "handler.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    answers: list[Any] = module.EndpointHandler(str(folder))(
        {"inputs": EXAMPLES, "parameters": {"doc_stride": None, **parameters}}
    )
    return answers


def as_the_card_says(folder: Path, **parameters: Any) -> list[Any]:
    artifact = open_artifact(folder)
    text = card.make(
        artifact, evidence_of(artifact), readme.UserContent(), repo="me/x", revision="main", base_license=None
    )
    defined: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(huggingface_hub, "snapshot_download", lambda repo: str(folder))
        patch.setattr(sys, "path", list(sys.path))
        exec(text.split("```python\n")[1].split("```")[0], defined)
        sys.modules.pop("handler")
    assert "answer" in printed.getvalue()
    answers: list[Any] = [defined["answer"]({"inputs": example, "parameters": parameters}) for example in EXAMPLES]
    return answers


def possible(results: list[Any]) -> list[Any]:
    """Without the spans that cannot be answers: the plain decoder fills up a short list with them, at score 0."""
    return [[answer for answer in answers if answer["score"] > 0] for answers in results]


def rounded(answers: list[Any]) -> list[Any]:
    return [
        rounded(answer) if isinstance(answer, list) else {**answer, "score": pytest.approx(answer["score"], abs=1e-4)}
        for answer in answers
    ]


@pytest.mark.both_lines
def test_every_way_of_asking_gives_the_answers_that_were_verified(artifact):
    expected = loaded(artifact.directory)
    assert [one["answer"] for one in expected] == [artifact.reference.answers[str(n)] for n in range(len(EXAMPLES))]
    assert in_bulk(artifact.directory) == rounded(expected)
    assert served(artifact.directory) == rounded(expected)
    assert handled(artifact.directory) == rounded(expected)
    assert as_the_card_says(artifact.directory) == rounded(expected)
    assert ("" in [one["answer"] for one in expected]) == artifact.manifest.parameters["handle_impossible_answer"]
    truncated = sum("question_truncated" in one for one in expected)
    assert evidence_of(artifact).measurement.truncated_questions == truncated > 0
    if artifact.manifest.parameters["max_seq_len"]:
        others = QuestionAnsweringPipeline(*load_model(artifact))
        assert expected != [others(**example) for example in EXAMPLES]


def test_every_way_of_asking_gives_the_same_three_answers(artifact):
    folder, parameters = artifact.directory, {"top_k": 3, "max_answer_len": 5, "handle_impossible_answer": True}
    expected = rounded(loaded(folder, **parameters))
    assert all(isinstance(answers, list) for answers in expected)
    assert in_bulk(folder, "--top-k", "3", "--max-answer-len", "5", "--no-answer") == expected
    assert served(folder, **parameters) == expected
    assert possible(handled(folder, **parameters)) == expected
    assert possible(as_the_card_says(folder, **parameters)) == expected


def test_an_artifact_of_an_earlier_version_answers_as_it_did(tmp_path):
    with tarfile.open(Path(__file__).parents[1] / "support" / "artifact-0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    assert open_artifact(tmp_path / "tiny").manifest.parameters == {"max_question_len": 64, "align_to_words": True}
    answer = qabuild.load(tmp_path / "tiny")
    first, second = (answer(question="Who? " * 60 + end, context=tiny.CONTEXT) for end in ("When?", "Where is it?"))
    assert first == second
    assert first["question_truncated"]
    chinese = {"question": "?", "context": CHINESE}
    assert answer(**chinese) == answer(**chinese, align_to_words=True)
