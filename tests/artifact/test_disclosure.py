"""Private questions: an artifact and what is published of it show no more of them than `publish.data` allows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import Hub
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from qabuild.artifact import disclosure
from qabuild.artifact.evidence import Flip
from qabuild.artifact.sealed_reference import Reference
from qabuild.errors import UntrustedInput
from qabuild.qa.data import Question, questions

pytestmark = [pytest.mark.hub, pytest.mark.both_lines]

TOKEN = "hf_plantedsecretofme"
TARGET = """
[checkpoint]
model = "sample"
[backend]
name = "eager"
[verify]
dataset = "./acme-tickets.json"
samples = {samples}
[verify.gates]
min_f1_retention = 0.0
[publish]
repo = "me/private"
{publish}
"""
TICKETS = (
    (
        "ticket-Zürich-1",
        "Who repaired the Quennell valve?",
        "The Quennell valve was repaired by Mirjam Østby in Visby.",
    ),
    (
        "ticket-Zürich-2",
        "Where was the invoice lost?",
        "The invoice of 東京 was lost in Quettreville. Quettreville paid.",
    ),
    ("ticket-Zürich-3", "When did Zorander resign?", "Zorander Vimm resigned in 1887 over the Plockton affair."),
    ("ticket-Zürich-4", "Who owns the Brabazon licence?", "The Brabazon licence lapsed, and nobody renewed it."),
)
GOLD = ("Mirjam Østby", "Quettreville", "1887", None)
TEXTS = ("Quennell", "Østby", "Mirjam", "Quettreville", "東京", "Zorander", "Plockton", "Brabazon", "lapsed", "resign")
IDS = ("ticket-", "Zürich-1")


def write_tickets(path: Path) -> None:
    paragraphs = []
    for (name, question, context), gold in zip(TICKETS, GOLD, strict=True):
        answers = [] if gold is None else [{"text": gold, "answer_start": context.index(gold)}]
        asked = {"id": name, "question": question, "answers": answers, "is_impossible": gold is None}
        paragraphs.append({"context": context, "qas": [asked]})
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "tickets", "paragraphs": paragraphs}]}))


class Workspace:
    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        write_tickets(folder / "acme-tickets.json")

    def run(self, *arguments: str, status: int = 0, online: bool = True, token: str | None = TOKEN) -> str:
        environment = {
            **os.environ,
            **self.hub.environment(self.folder / "home"),
            **({"HF_TOKEN": token} if token else {}),
        }
        if not online:
            environment["HF_HUB_OFFLINE"] = "1"
        command = [sys.executable, "-m", "qabuild", *arguments]
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def build(self, publish: str = "", samples: int = 4) -> Path:
        (self.folder / "private.toml").write_text(TARGET.format(publish=publish, samples=samples))
        self.run("private.toml")
        return self.folder / "artifacts" / "private"

    def published(self) -> dict[str, bytes]:
        repository = self.hub.repositories["model", "me/private"]
        return dict(repository.commits[repository.sha("main") or ""])


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Hub({TOKEN: ("me", "write")}) as hub:
        yield Workspace(tmp_path, hub)


def shown(files: dict[str, bytes], words: tuple[str, ...]) -> set[str]:
    """Those of the `words` that any file holds, as they are or escaped as in JSON."""
    texts = [content.decode("utf-8", "replace") for name, content in files.items() if name != "model.safetensors"]
    return {word for word in words if any(word in text or json.dumps(word)[1:-1] in text for text in texts)}


def content(artifact: Path) -> dict[str, bytes]:
    return {str(path.relative_to(artifact)): path.read_bytes() for path in artifact.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("publish", "samples", "words"),
    [("", 4, IDS), ('data = "none"', 4, ()), ('data = "none"', 2, ())],
)
def test_a_published_artifact_shows_no_text_of_a_file_and_verifies_with_it(workspace, publish, samples, words):
    artifact = workspace.build(publish, samples)
    hidden = (*TEXTS, *({"ticket-", "acme-tickets"} if not words else set()))
    assert shown(content(artifact), hidden) == set()
    output = workspace.run("publish", "artifacts/private", "--dry-run", online=False, token=None)
    assert "no texts" in output if words else "neither ids nor texts" in output
    workspace.run("publish", "artifacts/private")
    files = workspace.published()
    assert shown(files, hidden) == set()
    if words:
        assert shown(files, words)
    probes = load_file(artifact / "reference" / "probes.safetensors")
    assert {tensor.dim() for name, tensor in probes.items() if "logits" not in name} == {1}

    shutil.rmtree(artifact)
    fetched = workspace.folder / "fetched"
    for name, data in files.items():
        (fetched / name).parent.mkdir(parents=True, exist_ok=True)
        (fetched / name).write_bytes(data)
    assert "give the file with --data" in workspace.run("verify", "fetched", status=2)
    workspace.run("verify", "fetched", "--data", "./acme-tickets.json")
    document = json.loads((fetched / "verification.json").read_text())
    assert document["passed"]
    assert document["measurement"]["agreement"] == 1
    assert document["measurement"]["same_tokens"]
    workspace.run("compare", "fetched", "--data", "./acme-tickets.json")
    tickets = (workspace.folder / "acme-tickets.json").read_text()
    (workspace.folder / "other.json").write_text(tickets.replace("Vimm", "Wimm"))
    if samples == 4:
        assert "not the questions" in workspace.run("verify", "fetched", "--data", "./other.json", status=4)


def test_full_shows_the_texts_and_a_dry_run_says_so(workspace):
    artifact = workspace.build('data = "full"')
    assert shown(content(artifact), TEXTS)
    assert {tensor.dim() for tensor in load_file(artifact / "reference" / "probes.safetensors").values()} == {2}
    output = workspace.run("publish", "artifacts/private", "--dry-run", online=False, token=None)
    assert "the checkpoint's answers" in output
    assert "not compared with the Hub: this run is offline" in output


def test_a_dry_run_online_checks_name_rights_and_card(workspace):
    artifact = workspace.build()
    workspace.run("publish", "artifacts/private", "--dry-run")
    assert {"GET /api/whoami-v2", "POST /api/validate-yaml"} <= {*workspace.hub.requests}
    assert not workspace.hub.repositories
    assert "not a valid name" in workspace.run(
        "publish", "artifacts/private", "--dry-run", "--repo", "a--b/c", status=2
    )
    output = workspace.run("publish", "artifacts/private", "--dry-run", "--repo", "them/x", status=3)
    assert "does not belong to 'them'" in output
    (artifact / "README.md").write_text("---\nlicense: [3]\n---\n# Mine\n")
    assert "license: '3' is no id" in workspace.run("publish", "artifacts/private", "--dry-run", status=2)
    (artifact / "README.md").write_text("---\nlanguage: EN\n---\n# Mine\n")
    assert '"language" must be lowercase' in workspace.run("publish", "artifacts/private", "--dry-run", status=2)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@st.composite
def answered(draw: st.DrawFn) -> tuple[Question, str, str]:
    """A question, and two answers: spans of its context, or none."""
    context = "".join(draw(st.lists(words, min_size=1, max_size=12)))
    ends = st.integers(0, len(context))

    def span() -> str:
        start, end = sorted((draw(ends), draw(ends)))
        return context[start:end]

    name = draw(st.uuids().map(str))
    return Question(id=name, question="?", context=context, answers=(), answer_starts=()), span(), span()


@given(
    st.lists(answered(), min_size=1, max_size=5, unique_by=lambda item: item[0].id), st.sampled_from(["ids", "none"])
)
def test_whoever_has_the_questions_restores_every_text(items, level):
    asked = questions.question_set(tuple(question for question, _, _ in items), "x.json")
    data: dict[str, Any] = {"shown": level, "file": True, "dataset": "x.json"}
    answers = {question.id: answer for question, answer, _ in items}
    sealed = disclosure.hide({"data": data, "probes": [[asked.questions[0].id]], "answers": answers}, asked)
    assert all(not text or text.replace(":", "").isdigit() for text in sealed["answers"].values())
    reference = Reference(answers=sealed["answers"], data=sealed["data"], probes=sealed["probes"])
    assert disclosure.reveal_answers(reference, asked) == answers
    assert [disclosure.by_name(data, asked)[name].id for (name,) in sealed["probes"]] == [asked.questions[0].id]
    flips = [
        Flip(id=q.id, question=q.question, checkpoint=one, artifact=other, gold=[], f1_difference=0.0)
        for q, one, other in items
        if one != other
    ]
    hidden = disclosure.hide_flips(flips, data, asked)
    assert all(flip.checkpoint != flip.artifact and not flip.question for flip in hidden)
    others = disclosure.reveal({flip.id: flip.artifact for flip in hidden}, data, asked)
    assert others == {flip.id: flip.artifact for flip in flips}


@pytest.mark.parametrize("place", ["0:x", "text", "1:2:3", "-1:3"])
def test_a_place_that_is_none_is_refused(place):
    asked = questions.question_set((Question(id="1", question="?", context="abc", answers=(), answer_starts=()),), "x")
    for answers in ({"1": place}, {"2": "0:1"}):
        with pytest.raises(UntrustedInput, match="do not fit these questions"):
            disclosure.reveal(answers, {"shown": "ids"}, asked)
